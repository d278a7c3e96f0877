"""Files that are written as a whole or not at all."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fewstep.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Write a file as a whole: yields a temporary path beside it, which becomes `path` if nothing fails.

    Raises:
        RunError: The disk is full, or the folder cannot be written to; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        RunError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"A run needs a readable {path.name}: {path}: {error}. Restore it from a copy.") from None


def entries(path: Path) -> list[str]:
    """Names in a folder that count: not the lock, nor leftovers of a write that was killed."""
    if not path.exists():
        return []
    if not path.is_dir():
        raise RunError(f"--out must be a folder: {path} is a file. Choose another.")
    try:
        names = sorted(p.name for p in path.iterdir())
    except OSError as error:
        raise unwritable(path, error) from error
    return [name for name in names if name != ".lock" and not name.endswith(".tmp")]


def unwritable(path: Path, error: OSError) -> RunError:
    """What to say where a file cannot be written."""
    return RunError(
        f"Could not write {path}: {error.strerror or error}. Nothing that was saved before is lost: free space or "
        "mend the permissions, and try again (training goes on with --resume)."
    )
