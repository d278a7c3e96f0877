"""Omniglot (Lake et al. 2015): 1623 handwritten characters of 50 alphabets, 20 drawings of each.

Read from the original archives or from folders extracted from them, prepared once, kept in one cached file.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import zipfile
from collections import Counter
from contextlib import ExitStack, suppress
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import platformdirs
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fewstep.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

log = logging.getLogger(__name__)

HOME = "https://github.com/brendenlake/omniglot/tree/master/python"
PARTS = {"images_background": 964, "images_evaluation": 659}
"""The two parts of the data and their numbers of characters."""
DRAWINGS = 20
"""Of each character, by 20 people."""
SIZE = 28
"""Height and width of a prepared image, in pixels."""
PREPARATION = f"1: to grey levels, {SIZE}x{SIZE} Lanczos, inverted"
"""What is done to a drawing. A change here makes every cached file stale."""

_DRAWING = re.compile(r"(?:^|/)(?P<character>[^/]+/character\d+)/\d+_(?P<number>\d+)\.png$")


class OmniglotImages(NamedTuple):
    """All of Omniglot.

    Attributes:
        images: uint8 `[characters, drawings, 1, height, width]`: `[1623, 20, 1, 28, 28]`, ink 255 on paper 0.
        characters: Their names in order, such as "Latin/character03".
        content_hash: SHA-256 of names and pixels, in hexadecimal.
    """

    images: Tensor
    characters: tuple[str, ...]
    content_hash: str


class Drawing(NamedTuple):
    """One image file of the original layout, not yet read.

    Attributes:
        character: Alphabet and character, such as "Latin/character03".
        number: 1 to 20: who drew it.
        part: The archive or folder that holds it.
        member: Its name in there.
        stamp: Differs when the file does: the archive's CRC, or the file's size and time of change.
    """

    character: str
    number: int
    part: Path
    member: str
    stamp: str


def load_omniglot(data: Path | None = None, cache: Path | None = None) -> OmniglotImages:
    """Omniglot at 28x28, ink bright on dark: the preparation of Finn et al. 2017.

    Args:
        data: The folder that holds `omniglot/`, or that folder itself, with `images_background` and
            `images_evaluation`, each as a zip or extracted. None takes the environment variable FEWSTEP_DATA.
        cache: Where the prepared images are kept. None takes FEWSTEP_CACHE, or else the user's cache folder.

    Returns:
        All characters, sorted by name, and the drawings of each sorted by number.

    Raises:
        DataError: The data is missing, incomplete or unreadable.
    """
    drawings = sorted(drawing for part in find_parts(data_folder(data)) for drawing in list_drawings(part))
    check_drawings(drawings)
    file = cache_folder(cache) / f"omniglot-{_key(drawings)}.safetensors"
    omniglot = _read_cache(file)
    if omniglot is None:
        log.info("Preparing the %d drawings of Omniglot, once", len(drawings))
        omniglot = prepare(drawings)
        _write_cache(file, omniglot)
    return omniglot


def omniglot_split(omniglot: OmniglotImages, split: Literal["train", "val", "test"]) -> Tensor:
    """The characters of one split: 1100 of meta-train, 100 of meta-validation, 423 of meta-test.

    The sizes are those of the paper's code, whose lists depended on the order of files on a disk. These lists
    are committed (`splits/omniglot.json`): a random permutation of all characters, whatever their alphabet.

    Args:
        omniglot: All characters.
        split: Which.

    Returns:
        Images uint8 `[characters, drawings, 1, height, width]`, sorted by name.

    Raises:
        DataError: The lists name other characters than the data has.
        ValueError: There is no such split.
    """
    names = split_names()
    if split not in names:
        raise ValueError(f"`split` must be train, val or test: got {split!r}. Choose one of these.")
    strangers = set(omniglot.characters).symmetric_difference(chain(*names.values()))
    if strangers:
        raise DataError(
            "Omniglot must hold exactly the characters that the split lists name. "
            f"On one side only: {_listing(sorted(strangers))}\nDownload the original data again from {HOME}."
        )
    place = {character: i for i, character in enumerate(omniglot.characters)}
    return omniglot.images[torch.tensor([place[name] for name in names[split]])]


def split_names() -> dict[str, list[str]]:
    """The committed lists: names of characters for "train", "val" and "test"."""
    file = resources.files("fewstep.tasks") / "splits" / "omniglot.json"
    return json.loads(file.read_text(encoding="utf-8"))


def data_folder(data: Path | None) -> Path:
    """The folder given, or that of FEWSTEP_DATA."""
    folder = data or os.environ.get("FEWSTEP_DATA")
    if not folder:
        raise DataError(
            "Omniglot needs a data folder: none was given. Give it, or set FEWSTEP_DATA to it, and put "
            f"omniglot/images_background.zip and omniglot/images_evaluation.zip from {HOME} there."
        )
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"The data folder must be a path: got {str(folder)!r} ({error}) Give one that exists."
        ) from None


def cache_folder(cache: Path | None) -> Path:
    """The folder given, or that of FEWSTEP_CACHE, or the user's cache folder of this platform."""
    folder = cache or os.environ.get("FEWSTEP_CACHE") or platformdirs.user_cache_dir("fewstep")
    return Path(folder).expanduser()


def find_parts(folder: Path) -> list[Path]:
    """The archive or else the folder of each part, in `folder/omniglot` or else in `folder`.

    Raises:
        DataError: A part is not there; lists what is.
    """
    found = {  # of several, the last
        part: place / name
        for place in (folder, folder / "omniglot")
        for part in PARTS
        for name in (part, f"{part}.zip")
        if (place / name).exists()
    }
    missing = [part for part in PARTS if part not in found]
    if missing:
        raise DataError(
            f"Omniglot needs {' and '.join(PARTS)}, each as a zip or an extracted folder, "
            f"in {folder / 'omniglot'}: no {' and no '.join(missing)} there. "
            f"{_contents(folder)} {_contents(folder / 'omniglot')} "
            f"Download the zips from {HOME} and put them there."
        )
    return [found[part] for part in PARTS]


def list_drawings(part: Path) -> Iterator[Drawing]:
    """The drawings that an archive or a folder holds; other files are passed over.

    Raises:
        DataError: The archive cannot be read, or has a member that points outside of it.
    """
    for member, stamp in _folder_members(part) if part.is_dir() else _archive_members(part):
        match = _DRAWING.search(member)
        hidden = any(name.startswith(".") or name == "__MACOSX" for name in member.split("/"))
        if match and not hidden:
            yield Drawing(match["character"], int(match["number"]), part, member, stamp)


def check_drawings(drawings: Sequence[Drawing]) -> None:
    """Require every character of both parts, with every drawing once.

    Raises:
        DataError: Lists what is missing or too much.
    """
    problems: list[str] = []
    for part, expected in PARTS.items():
        characters = len({drawing.character for drawing in drawings if drawing.part.stem == part})
        if characters != expected:
            problems.append(f"{part}: {characters} characters instead of {expected}")
    counts = Counter((drawing.character, drawing.number) for drawing in drawings)
    for character in sorted({drawing.character for drawing in drawings}):
        for number in range(1, DRAWINGS + 1):
            count = counts.pop((character, number), 0)
            if count != 1:
                problems.append(f"{character}: drawing {number:02} {f'{count} times' if count else 'missing'}")
    problems += [f"{character}: drawing {number:02} unexpected" for character, number in counts]
    if problems:
        total = " + ".join(map(str, PARTS.values()))
        raise DataError(
            f"Omniglot must hold {total} characters with {DRAWINGS} drawings each: {_listing(problems)}\n"
            f"Extract the zips again, or download them again from {HOME}."
        )


def prepare(drawings: Sequence[Drawing]) -> OmniglotImages:
    """Read, resize and invert the drawings, which come sorted and complete.

    Raises:
        DataError: Lists the files that are not readable images.
    """
    pixels = bytearray()
    unreadable: list[str] = []
    with ExitStack() as archives:
        readers = {part: _reader(part, archives) for part in {drawing.part for drawing in drawings}}
        for drawing in drawings:
            try:
                pixels += _grey_levels(readers[drawing.part](drawing.member))
            except Exception as error:  # broken files raise errors of many kinds
                unreadable.append(f"{drawing.part / drawing.member}: {error}")
    if unreadable:
        raise DataError(
            f"Omniglot must hold readable PNG images: {_listing(unreadable)}\n"
            f"Extract the zips again, or download them again from {HOME}."
        )
    images = 255 - torch.frombuffer(pixels, dtype=torch.uint8).view(-1, DRAWINGS, 1, SIZE, SIZE)
    characters = tuple(sorted({drawing.character for drawing in drawings}))
    return OmniglotImages(images, characters, content_hash(images, characters))


def content_hash(images: Tensor, characters: Iterable[str]) -> str:
    """SHA-256 of the names and of every pixel, in hexadecimal."""
    digest = hashlib.sha256("\n".join(characters).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def _grey_levels(png: bytes) -> bytes:
    """The drawing at 28x28. Lanczos needs grey levels: Pillow resizes 1-bit images by nearest neighbour."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as drawing:
        return drawing.convert("L").resize((SIZE, SIZE), Image.Resampling.LANCZOS).tobytes()


def _reader(part: Path, archives: ExitStack) -> Callable[[str], bytes]:
    if part.is_dir():
        return lambda member: (part / member).read_bytes()
    return archives.enter_context(zipfile.ZipFile(part)).read


def _folder_members(part: Path) -> Iterator[tuple[str, str]]:
    for file in part.rglob("*.png"):
        status = file.stat()
        yield file.relative_to(part).as_posix(), f"{status.st_size} {status.st_mtime_ns}"


def _archive_members(part: Path) -> Iterator[tuple[str, str]]:
    try:
        with zipfile.ZipFile(part) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{part} must be a zip archive: it cannot be read ({error}). Download it again from {HOME}."
        ) from error
    for member in members:
        if re.match(r"[/\\]|[A-Za-z]:", member.filename) or ".." in re.split(r"[/\\]", member.filename):
            raise DataError(
                f"{part} must hold relative paths only: it has a member {member.filename!r}, outside of it. "
                f"Download it again from {HOME}."
            )
        yield member.filename, f"{member.CRC:08x}"


def _key(drawings: Iterable[Drawing]) -> str:
    """Names the cached file: another source or another preparation has another name."""
    digest = hashlib.sha256(PREPARATION.encode())
    for drawing in drawings:
        digest.update(f"\n{drawing.part.name}/{drawing.member} {drawing.stamp}".encode())
    return digest.hexdigest()[:16]


def _read_cache(file: Path) -> OmniglotImages | None:
    """What was cached; None where there is nothing, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            images, metadata = stored.get_tensor("images").clone(), stored.metadata()
        omniglot = OmniglotImages(images, tuple(metadata["characters"].split("\n")), metadata["content_hash"])
        if content_hash(omniglot.images, omniglot.characters) != omniglot.content_hash:
            raise ValueError("its content hash differs")
    except FileNotFoundError:
        return None
    except (KeyError, OSError, SafetensorError, TypeError, ValueError) as error:
        log.warning("Omniglot is prepared again: the cached file %s cannot be used (%s)", file, error)
        return None
    return omniglot


def _write_cache(file: Path, omniglot: OmniglotImages) -> None:
    """Write all of the file or nothing: it appears under its name only when complete."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    metadata = {"characters": "\n".join(omniglot.characters), "content_hash": omniglot.content_hash}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(save({"images": omniglot.images}, metadata))
        unfinished.replace(file)
    except OSError as error:
        log.warning("Omniglot will be prepared again next time: it could not be cached (%s)", error)
        with suppress(OSError):
            unfinished.unlink()


def _listing(problems: Sequence[str], shown: int = 10) -> str:
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "\n  ".join([f"{len(problems)} found", *problems[:shown], *more])


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder."
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} holds {', '.join(names[:10]) or 'nothing'}{', ...' if len(names) > 10 else ''}."
