"""The one place that imports Gymnasium and MuJoCo: both come with the extra `rl`, and only when they are needed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from types import ModuleType


def gymnasium() -> ModuleType:
    """The module `gymnasium`.

    Raises:
        FewstepError: It is not installed.
    """
    return _imported("gymnasium")


def mujoco() -> ModuleType:
    """The module `mujoco`, with `mujoco.batch` loaded.

    Raises:
        FewstepError: It is not installed, or is older than version 4.
    """
    _imported("mujoco.batch")
    return _imported("mujoco")


def asset(name: str) -> Path:
    """A robot's description among those that Gymnasium installs; Gymnasium itself is not imported.

    Raises:
        FewstepError: Gymnasium is not installed.
    """
    spec = find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise _missing("gymnasium", "is not installed")
    return Path(spec.origin).parent / "envs" / "mujoco" / "assets" / name


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise _missing({"mujoco.batch": "mujoco >= 4"}.get(name, name), f"cannot be imported ({error})") from error


def _missing(name: str, what: str) -> FewstepError:
    return FewstepError(f"This environment needs {name}, which {what}. Run: pip install 'fewstep[rl]'")
