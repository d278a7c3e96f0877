"""Where pictures lie: files, folders and zip archives of them, and the classes that their folders stand for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from PIL import Image

from fewstep.errors import DataError
from fewstep.tasks.archives import Member, list_members, listing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Picture: TypeAlias = Path | Member | Image.Image | np.ndarray
"""A file, a member of an archive, or in memory: of Pillow, or uint8 `[height, width]` or `[height, width, 3]`."""

_READABLE = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_SUFFIXES = (*_READABLE, ".heic", ".heif", ".avif", ".jxl", ".svg")
"""Names of pictures. Those that are not readable are told of, rather than passed over."""


def list_classes(folder: Path) -> dict[str, list[Member]]:
    """The classes of a folder, or of a zip archive of it: each folder that holds pictures is one.

    A class is called after its folder, with those above it where there are several levels ("Greek/alpha"); folders
    around all classes do not count. Files that are no pictures by their name are passed over.

    Args:
        folder: The folder or archive.

    Returns:
        For each class its pictures; classes and pictures sorted by name.

    Raises:
        DataError: There are no pictures, or some lie outside of class folders or beside further folders.
    """
    if not folder.exists():
        raise DataError(f"A folder or zip archive of pictures was expected: there is no {folder}. Check the path.")
    found: dict[PurePosixPath, list[Member]] = {}
    for member in list_members(folder):
        path = PurePosixPath(member.name)
        if path.suffix.lower() in _SUFFIXES:
            found.setdefault(path.parent, []).append(member)
    if not found:
        raise DataError(
            f"{folder} must hold pictures ({', '.join(_READABLE)}), a folder for each class: there are none. "
            "Check the path, and the names of the files."
        )
    _check_places(folder, found)
    outer = _common_length(list(found))
    classes: dict[str, list[Member]] = {}
    for path, members in found.items():  # two folders may have one name, written in two ways
        classes.setdefault(_class_name(folder, path, outer), []).extend(members)
    return {name: sorted(classes[name]) for name in sorted(classes)}


def folders_without_pictures(folder: Path, classes: Mapping[str, Sequence[Member]]) -> list[str]:
    """Folders beside those of its classes, at the same level, that hold no pictures; none are told of in an archive."""
    if not folder.is_dir():
        return []
    holders = {PurePosixPath(each.name).parent for members in classes.values() for each in members}
    known = holders.union(*(path.parents for path in holders))
    beside = {
        place.relative_to(folder).as_posix()
        for parent in {path.parent for path in holders}
        for place in (folder / parent).iterdir()
        if place.is_dir() and not place.name.startswith((".", "__MACOSX"))
    }
    return sorted(name for name in beside if PurePosixPath(name) not in known)


def chosen_pictures(pictures: object) -> list[Picture]:
    """The pictures that a caller means: one file or folder or zip archive of them, one in memory, or several of these.

    Raises:
        DataError: They are something else, or a folder holds none.
    """
    one = isinstance(pictures, str | Picture) or not isinstance(pictures, Iterable)
    each: list[Any] = [pictures] if one else [*cast("Iterable[Any]", pictures)]
    strange = [picture for picture in each if not isinstance(picture, str | Picture)]
    if strange:
        raise DataError(
            "Pictures are given as files (str or Path), a folder or zip archive of them, PIL.Image, uint8 arrays "
            "[height, width] or [height, width, 3], or as prepared pictures, a uint8 tensor: got "
            f"{type(strange[0]).__name__}. Make it one of these."
        )
    found = (list_pictures(Path(picture)) if isinstance(picture, str | Path) else [picture] for picture in each)
    return list(chain.from_iterable(found))


def picture_name(picture: Picture, place: int) -> str:
    """Its file's, or its place among others."""
    return str(picture) if isinstance(picture, Path | Member) else str(place)


def list_pictures(path: Path) -> list[Member]:
    """One picture, or all those of a folder or zip archive, at any depth, sorted by name.

    Args:
        path: A picture, a folder or an archive. Files that are no pictures by their name are passed over in these.

    Raises:
        DataError: There are none.
    """
    if not path.exists():
        raise DataError(
            f"A picture, or a folder or zip archive of them, was expected: there is no {path}. Check the path."
        )
    if path.is_file() and path.suffix.lower() != ".zip":
        return [Member(path.parent, path.name)]
    found = [each for each in list_members(path) if PurePosixPath(each.name).suffix.lower() in _SUFFIXES]
    if not found:
        raise DataError(
            f"{path} must be or hold pictures ({', '.join(_READABLE)}): there are none. Check the path, and the names "
            "of the files."
        )
    return found


def _check_places(folder: Path, found: Mapping[PurePosixPath, Sequence[Member]]) -> None:
    loose = found.get(PurePosixPath("."), ())
    if loose:
        raise DataError(
            f"Every picture in {folder} must lie in the folder of its class: {listing([m.name for m in loose])}\n"
            "Make a folder for each class and move them there."
        )
    holders = set(found)
    mixed = sorted({above for path in found for above in path.parents if above in holders})
    if mixed:
        raise DataError(
            f"A folder in {folder} must hold either pictures or further folders of them, so that it is clear what a "
            f"class is: {listing([str(path) for path in mixed])}\nMove the pictures that lie beside folders."
        )


def _common_length(paths: Sequence[PurePosixPath]) -> int:
    """How many folders, from the outermost, are around all classes; the class's own is none of them."""
    length = min(len(path.parts) for path in paths) - 1
    while length and len({path.parts[:length] for path in paths}) > 1:
        length -= 1
    return length


def _class_name(folder: Path, path: PurePosixPath, outer: int) -> str:
    name = unicodedata.normalize("NFC", "/".join(path.parts[outer:]))  # macOS writes accents apart
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"Names of classes must be Unicode: {folder} has the folder {str(path)!a}. Rename it."
        ) from None
    return name
