"""Files of a data set, alike whether they lie in a folder or in a zip archive."""

from __future__ import annotations

import os
import re
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, final

from fewstep.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

_LARGEST = 256 * 2**20
"""Bytes of a file, unpacked: more is no picture, but an archive made to fill the memory."""


class Member(NamedTuple):
    """A file of a folder or an archive, not yet read.

    Attributes:
        place: The folder or archive.
        name: The file's path in there, with slashes.
        stamp: Differs when the file does: the archive's CRC, or the file's size and time of change.
    """

    place: Path
    name: str
    stamp: str = ""

    def __str__(self) -> str:
        return str(self.place / self.name)


def list_members(place: Path) -> list[Member]:
    """The files that a folder or a zip archive holds, at any depth, sorted by name.

    Hidden ones and what macOS adds to archives (`__MACOSX`) are passed over.

    Args:
        place: The folder or archive.

    Raises:
        DataError: It cannot be read, or the archive has a member that points outside of it.
    """
    found = _folder_members(place) if place.is_dir() else _archive_members(place)
    return sorted(member for member in found if not _is_hidden(member.name))


@final
class Reader:
    """Reads members; archives stay open in between. A context manager."""

    def __init__(self) -> None:
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def read(self, member: Member) -> bytes:
        """All bytes of a member. Broken archives and files raise errors of many kinds."""
        if member.place.is_dir():
            file = member.place / member.name
            self._check_size(file.stat().st_size)
            return file.read_bytes()
        if member.place not in self._archives:
            self._archives[member.place] = self._closing.enter_context(zipfile.ZipFile(member.place))
        archive = self._archives[member.place]
        self._check_size(archive.getinfo(member.name).file_size)
        return archive.read(member.name)

    @staticmethod
    def _check_size(size: int) -> None:
        if size > _LARGEST:
            raise ValueError(f"it has {size / 2**20:,.0f} MiB, more than {_LARGEST // 2**20}")


def listing(problems: Sequence[str], shown: int = 10) -> str:
    """How many problems there are, and the first of them, a line each."""
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "\n  ".join([f"{len(problems)} found", *problems[:shown], *more])


def contents(folder: Path) -> str:
    """A sentence on what a folder holds."""
    if not folder.is_dir():
        return f"{folder} is not a folder."
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} holds {', '.join(names[:10]) or 'nothing'}{', ...' if len(names) > 10 else ''}."


def expanded(path: str | Path, what: str) -> Path:
    """A path in which `~` is the folder of the user, or of another one.

    Args:
        path: The path.
        what: What lies there, for an error.

    Raises:
        DataError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{what} must be a path: got {str(path)!r} ({error}) Give one that exists.") from None


def folder_or_archive(folder: Path, name: str) -> Path | None:
    """`folder/name.zip` or else `folder/name`, whichever is there."""
    return next((place for place in (folder / f"{name}.zip", folder / name) if place.exists()), None)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder_members(place: Path) -> Iterator[Member]:
    try:
        # Path.rglob passes over folders that it cannot read.
        for folder, folders, names in os.walk(place, onerror=_raise, followlinks=True):
            folders[:] = [name for name in folders if not _leads_back(Path(folder, name))]
            for file in (Path(folder, name) for name in names):
                if file.is_file():
                    status = file.stat()
                    yield Member(place, file.relative_to(place).as_posix(), f"{status.st_size} {status.st_mtime_ns}")
    except OSError as error:
        raise DataError(
            f"{place} must be a readable folder: {error.strerror} ({error.filename}). Check its permissions."
        ) from error


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it lies in."""
    return folder.is_symlink() and folder.resolve() in {parent.resolve() for parent in folder.parents}


def _raise(error: OSError) -> None:
    raise error


def _archive_members(place: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(place) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:  # of names, of later versions
        raise DataError(
            f"{place} must be a folder or a zip archive: it cannot be read ({error}). "
            "Get it again from where it is from."
        ) from error
    for member in members:
        if re.match(r"[/\\]|[A-Za-z]:", member.filename) or ".." in re.split(r"[/\\]", member.filename):
            raise DataError(
                f"{place} must hold relative paths only: it has a member {member.filename!r}, outside of it. "
                "Get it again from where it is from."
            )
        if not member.is_dir():
            yield Member(place, member.filename, f"{member.CRC:08x}")
