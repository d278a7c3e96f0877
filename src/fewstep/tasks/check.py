"""What a folder holds, told to its owner: data sets that fewstep knows, or pictures in a folder for each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from fewstep.errors import DataError
from fewstep.tasks import miniimagenet, omniglot
from fewstep.tasks.folder import counts, list_folder, split_classes
from fewstep.tasks.images import check_pictures
from fewstep.tasks.picture_files import folders_without_pictures

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    _Contents: TypeAlias = tuple[dict[str, dict[str, int]], list[str]]
    """Counts as of `Found`, and the folders that hold no pictures."""


class Found(NamedTuple):
    """A data set, complete or not.

    Attributes:
        what: Its name.
        counts: For each split, its numbers of classes and pictures; empty where there is a problem.
        problem: What is wrong with it, if anything.
        empty: Folders beside those of its classes that hold no pictures.
    """

    what: str
    counts: dict[str, dict[str, int]]
    problem: str | None = None
    empty: tuple[str, ...] = ()

    def __str__(self) -> str:
        splits = [
            f"{split} {n['classes']:,} {'class' if n['classes'] == 1 else 'classes'}, {n['pictures']:,} pictures "
            f"({_range(n['fewest'], n['most'])} each)"
            for split, n in self.counts.items()
        ]
        if self.counts and min(n["classes"] for n in self.counts.values()) < 2:
            splits.append("too few classes to train on, since each split tells at least two apart; enough to adapt to")
        elif self.counts:
            ways, examples = (min(n[what] for n in self.counts.values()) for what in ("classes", "fewest"))
            splits.append(f"enough for tasks of up to {ways} ways, with shots and queries up to {examples} together")
        if self.empty:
            splits.append(f"without pictures, and no classes: {', '.join(self.empty)}")
        return f"{self.what}: {'; '.join(splits)}"


def check(folder: Path) -> list[Found]:
    """Look for data sets in a folder, and read every picture of those that are there.

    Omniglot and MiniImagenet are prepared and cached on the way, so that training starts at once.

    Raises:
        DataError: There is nothing that can be used.
    """
    if folder.is_file() and folder.suffix.lower() in (".csv", ".tsv", ".txt", ".parquet"):
        raise DataError(
            f"Pictures are looked at, in a folder or a zip archive: got the table {folder}. What is in a table, "
            "`fewstep train` tells first."
        )
    kinds: list[tuple[str, Callable[[Path], _Contents]]] = []
    if omniglot.is_omniglot(folder):
        kinds.append(("Omniglot", _omniglot))
    if any(miniimagenet.is_miniimagenet(place) for place in (folder / "miniimagenet", folder)):
        kinds.append(("MiniImagenet", _miniimagenet))
    return [_found(what, look, folder) for what, look in kinds or [("A folder of pictures", _folder)]]


def _found(what: str, look: Callable[[Path], _Contents], folder: Path) -> Found:
    try:
        numbers, empty = look(folder)
    except DataError as error:
        return Found(what, {}, str(error))
    return Found(what, numbers, empty=tuple(empty))


def _omniglot(folder: Path) -> _Contents:
    return counts(omniglot.split_names(), omniglot.load_omniglot(folder).classes), []


def _miniimagenet(folder: Path) -> _Contents:
    return counts(miniimagenet.split_names(), miniimagenet.load_miniimagenet(folder).classes), []


def _folder(folder: Path) -> _Contents:
    found = list_folder(folder)
    check_pictures([member for pictures in found.classes.values() for member in pictures])
    numbers = {name: len(pictures) for name, pictures in found.classes.items()}
    splits = found.splits or (split_classes(folder, numbers) if len(numbers) > 2 else {"all": list(numbers)})
    return counts(splits, numbers), folders_without_pictures(folder, found.classes)


def _range(fewest: int, most: int) -> str:
    return f"{fewest}" if fewest == most else f"{fewest} to {most}"
