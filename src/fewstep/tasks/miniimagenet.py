"""MiniImagenet (Vinyals et al. 2016), in the split of Ravi and Larochelle 2017: 64, 16 and 20 classes at 84x84.

The published set has 600 pictures of each class; a set with fewer is taken too, and its numbers are told.
"""

from __future__ import annotations

import csv
import json
import logging
from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from fewstep.errors import DataError
from fewstep.tasks.archives import Member, contents, folder_or_archive, list_members, listing
from fewstep.tasks.images import Preparation
from fewstep.tasks.picture_files import list_classes
from fewstep.tasks.prepared import PreparedImages, data_folder, prepare

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fewstep.names import Split

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "val", "test")
PUBLISHED = 600
"""Pictures of each class in the published set."""
FEWEST = 20
"""Pictures of a class, below which something is missing: enough for 5 shots and 15 queries."""
PREPARATION = Preparation(84, channels=3, fit="stretch")
"""As published; most pictures are of that size already."""
NEEDS = (
    "Put miniimagenet/ there, with train, val and test, each as a folder (or its zip) with a folder of pictures for "
    "each class; or with images (or images.zip) and train.csv, val.csv and test.csv (columns filename, label). Its "
    "licence allows no free download: ask for ImageNet, or for the set where you got the lists."
)


def load_miniimagenet(data: Path | None = None, cache: Path | None = None) -> PreparedImages:
    """All of MiniImagenet, as colours at 84x84.

    Args:
        data: The folder that holds `miniimagenet/`, or that folder itself; see `NEEDS`. None takes the environment
            variable FEWSTEP_DATA.
        cache: Where the prepared images are kept. None takes FEWSTEP_CACHE, or else the user's cache folder.

    Returns:
        The classes of meta-train, meta-validation and meta-test, in that order, each split sorted by name.

    Raises:
        DataError: The data is missing, incomplete or unreadable.
    """
    found = list_images(data_folder(data, NEEDS))
    check_images(found)
    log.info("MiniImagenet: %s", "; ".join(_described(split, found[split]) for split in SPLITS))
    classes = {name: found[split][name] for split in SPLITS for name in sorted(found[split])}
    return prepare("MiniImagenet", classes, PREPARATION, cache, "Get these files again.")


def split_names() -> dict[Split, list[str]]:
    """The committed lists: WordNet's names of the classes of each split."""
    file = resources.files("fewstep.tasks") / "splits" / "miniimagenet.json"
    return json.loads(file.read_text(encoding="utf-8"))


def is_miniimagenet(place: Path) -> bool:
    """Whether a folder looks like the data set, complete or not: a split, and a class or a list of one."""
    if any((place / f"{split}.csv").exists() for split in SPLITS) and folder_or_archive(place, "images"):
        return True
    found = {split: folder_or_archive(place, split) for split in SPLITS}
    known = {name for names in split_names().values() for name in names}
    return any(
        bool({part for member in list_members(part_of) for part in PurePosixPath(member.name).parts[:-1]} & known)
        for part_of in found.values()
        if part_of is not None
    )


def list_images(folder: Path) -> dict[Split, dict[str, list[Member]]]:
    """The pictures of each class of each split, in `folder/miniimagenet` or else in `folder`.

    Raises:
        DataError: A split is not there; lists what is.
    """
    for place in (folder / "miniimagenet", folder):
        parts: dict[Split, Path | None] = {split: folder_or_archive(place, split) for split in SPLITS}
        lists: dict[Split, Path] = {split: place / f"{split}.csv" for split in SPLITS}
        images = folder_or_archive(place, "images")
        if images and all(path.is_file() for path in lists.values()):
            return _listed(images, lists)
        if all(parts.values()):
            return {split: list_classes(part) for split, part in parts.items() if part}
    raise DataError(
        f"MiniImagenet needs train, val and test in {folder / 'miniimagenet'}: not all are there. "
        f"{contents(folder)} {contents(folder / 'miniimagenet')} {NEEDS}"
    )


def check_images(found: Mapping[Split, Mapping[str, Sequence[Member]]]) -> None:
    """Require the classes of the committed lists, with enough pictures of each.

    Raises:
        DataError: Lists what is missing or too much.
    """
    lists = split_names()
    home = {name: split for split, names in lists.items() for name in names}
    problems: list[str] = []
    for split, names in lists.items():
        classes = found[split]
        if len(classes) != len(names):
            problems.append(f"{split}: {len(classes)} classes instead of {len(names)}")
        problems += [f"{split}: {name} is missing" for name in names if name not in classes]
        for name, members in classes.items():
            if home.get(name) != split:
                problems.append(f"{split}: {name} is {f'of {home[name]}' if name in home else 'no class of any split'}")
            if len(members) < FEWEST:
                problems.append(f"{split}: {name} has {len(members)} pictures, fewer than {FEWEST}")
    if problems:
        raise DataError(
            f"MiniImagenet must hold {' + '.join(str(len(names)) for names in lists.values())} classes with at least "
            f"{FEWEST} pictures each ({PUBLISHED} as published): {listing(problems)}\nGet the data again, in the split "
            "of Ravi and Larochelle."
        )


def _described(split: Split, classes: Mapping[str, Sequence[Member]]) -> str:
    counts = {len(members) for members in classes.values()}
    each = "-".join(str(count) for count in sorted({min(counts), max(counts)}))
    note = "" if counts == {PUBLISHED} else f" ({PUBLISHED} as published)"
    return f"{split} {len(classes)} classes x {each} pictures{note}"


def _listed(images: Path, lists: Mapping[Split, Path]) -> dict[Split, dict[str, list[Member]]]:
    """The pictures that the lists name, wherever in `images` they lie."""
    members = {PurePosixPath(member.name).name: member for member in list_members(images)}
    found: dict[Split, dict[str, list[Member]]] = {}
    missing: list[str] = []
    for split, path in lists.items():
        rows = _read_list(path)
        missing += [f"{path.name}: {name}" for name, _ in rows if name not in members]
        found[split] = {}
        for name, label in sorted(rows):
            found[split].setdefault(label, []).extend([members[name]] if name in members else [])
    if missing:
        raise DataError(
            f"{images} must hold every picture that the lists beside it name. Not there: {listing(missing)}\nGet the "
            "pictures again, or the lists that go with them."
        )
    return found


def _read_list(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} must be a readable CSV file: {error}. Get it again.") from error
    if not rows or not {"filename", "label"} <= set(rows[0]) or any(None in row.values() for row in rows):
        raise DataError(
            f"{path} must have the columns filename and label, and a row for each picture: got "
            f"{', '.join(map(str, rows[0])) if rows else 'no rows'}. Get it again."
        )
    return [(row["filename"].strip(), row["label"].strip()) for row in rows]
