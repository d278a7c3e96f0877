"""Omniglot (Lake et al. 2015): 1623 handwritten characters of 50 alphabets, 20 drawings of each.

Read from the original archives, from folders extracted from them or from one folder of all alphabets; prepared once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from fewstep.errors import DataError
from fewstep.tasks.archives import Member, contents, list_members, listing
from fewstep.tasks.images import Preparation
from fewstep.tasks.prepared import PreparedImages, data_folder, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fewstep.names import Split

HOME = "https://github.com/brendenlake/omniglot/tree/master/python"
PARTS = {"images_background": 964, "images_evaluation": 659}
"""The two parts of the data and their numbers of characters."""
DRAWINGS = 20
"""Of each character, by 20 people."""
SIZE = 28
"""Height and width of a prepared image, in pixels."""
PREPARATION = Preparation(SIZE, channels=1, invert="auto")
"""Bright ink on dark paper. All drawings are dark on light, so "auto" inverts each; and a user's likewise."""
NEEDS = f"Put omniglot/images_background.zip and omniglot/images_evaluation.zip from {HOME} there."

_AGAIN = f"Extract the zips again, or download them again from {HOME}."
_DRAWING = re.compile(r"(?:^|/)(?P<character>[^/]+/character\d+)/\d+_(?P<number>\d+)\.png$")


class Drawing(NamedTuple):
    """One image file of the original layout, not yet read.

    Attributes:
        character: Alphabet and character, such as "Latin/character03".
        number: 1 to 20: who drew it.
        member: The file.
    """

    character: str
    number: int
    member: Member


def load_omniglot(data: Path | None = None, cache: Path | None = None) -> PreparedImages:
    """Omniglot at 28x28, ink bright on dark: the preparation of Finn et al. 2017.

    Args:
        data: The folder that holds `omniglot/`, or that folder itself, with `images_background` and
            `images_evaluation`, each as a zip or extracted; or with a folder for each of the 50 alphabets. None
            takes the environment variable FEWSTEP_DATA.
        cache: Where the prepared images are kept. None takes FEWSTEP_CACHE, or else the user's cache folder.

    Returns:
        All characters, sorted by name, and the drawings of each sorted by number.

    Raises:
        DataError: The data is missing, incomplete or unreadable.
    """
    parts = find_parts(data_folder(data, NEEDS))
    drawings = sorted(drawing for part in parts for drawing in list_drawings(part))
    check_drawings(drawings)
    classes: dict[str, list[Member]] = {}
    for drawing in drawings:
        classes.setdefault(drawing.character, []).append(drawing.member)
    strangers = classes.keys() ^ chain.from_iterable(split_names().values())
    if strangers:
        raise DataError(
            "Omniglot must hold exactly the characters that the split lists name. "
            f"On one side only: {listing(sorted(strangers))}\nDownload the original data again from {HOME}."
        )
    return prepare("Omniglot", classes, PREPARATION, cache, _AGAIN)


def split_names() -> dict[Split, list[str]]:
    """The committed lists: 1100 characters of meta-train, 100 of meta-validation, 423 of meta-test.

    The sizes are those of the paper's code, whose lists depended on the order of files on a disk. These are a random
    permutation of all characters, whatever their alphabet.
    """
    file = resources.files("fewstep.tasks") / "splits" / "omniglot.json"
    return json.loads(file.read_text(encoding="utf-8"))


def is_omniglot(folder: Path) -> bool:
    """Whether a folder looks like it holds the data set, complete or not."""
    return bool(_parts(folder) or _alphabets(folder))


def find_parts(folder: Path) -> list[Path]:
    """The archive or else the folder of each part, or one folder of all alphabets; in `folder/omniglot` or `folder`.

    Raises:
        DataError: A part is not there; lists what is.
    """
    found = _parts(folder)
    if not found and _alphabets(folder):
        return _alphabets(folder)[-1:]
    missing = [part for part in PARTS if part not in found]
    if missing:
        raise DataError(
            f"Omniglot needs {' and '.join(PARTS)}, each as a zip or an extracted folder, "
            f"in {folder / 'omniglot'}: no {' and no '.join(missing)} there. "
            f"{contents(folder)} {contents(folder / 'omniglot')} "
            f"Download the zips from {HOME} and put them there."
        )
    return [found[part] for part in PARTS]


def _parts(folder: Path) -> dict[str, Path]:
    """The archive or folder of each part; of several, the last."""
    return {
        part: place / name
        for place in (folder, folder / "omniglot")
        for part in PARTS
        for name in (part, f"{part}.zip")
        if (place / name).exists()
    }


def _alphabets(folder: Path) -> list[Path]:
    """Folders that hold a folder for each alphabet."""
    return [place for place in (folder, folder / "omniglot") if next(place.glob("*/character[0-9]*"), None)]


def list_drawings(part: Path) -> Iterator[Drawing]:
    """The drawings that an archive or a folder holds; other files are passed over.

    Raises:
        DataError: The archive cannot be read, or has a member that points outside of it.
    """
    for member in list_members(part):
        match = _DRAWING.search(member.name)
        if match:
            yield Drawing(match["character"], int(match["number"]), member)


def check_drawings(drawings: Sequence[Drawing]) -> None:
    """Require every character, of both parts where there are two, with every drawing once.

    Raises:
        DataError: Lists what is missing or too much.
    """
    problems: list[str] = []
    places = {drawing.member.place.stem for drawing in drawings}
    groups = PARTS if places <= set(PARTS) else {next(iter(places)): sum(PARTS.values())}
    for part, expected in groups.items():
        characters = len({drawing.character for drawing in drawings if drawing.member.place.stem == part})
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
            f"Omniglot must hold {total} characters with {DRAWINGS} drawings each: {listing(problems)}\n{_AGAIN}"
        )
