"""What a folder holds, told to its owner: data sets that fewstep knows, or pictures in a folder for each class."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fewstep.errors import DataError
from fewstep.tasks import miniimagenet, omniglot
from fewstep.tasks.folder import counts, list_folder, split_classes
from fewstep.tasks.images import check_pictures, folders_without_pictures

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
    kinds: list[tuple[str, Callable[[Path], dict[str, dict[str, int]]]]] = []
    if omniglot.is_omniglot(folder):
        kinds.append(("Omniglot", _omniglot))
    if any(miniimagenet.is_miniimagenet(place) for place in (folder / "miniimagenet", folder)):
        kinds.append(("MiniImagenet", _miniimagenet))
    if kinds:
        return [_found(what, numbers, folder) for what, numbers in kinds]
    found = _found("A folder of pictures", _folder, folder)
    return [found if found.problem else found._replace(empty=tuple(folders_without_pictures(folder)))]


def _found(what: str, numbers: Callable[[Path], dict[str, dict[str, int]]], folder: Path) -> Found:
    try:
        return Found(what, numbers(folder))
    except DataError as error:
        return Found(what, {}, str(error))


def _omniglot(folder: Path) -> dict[str, dict[str, int]]:
    characters = omniglot.load_omniglot(folder).characters
    return counts(omniglot.split_names(), dict.fromkeys(characters, omniglot.DRAWINGS))


def _miniimagenet(folder: Path) -> dict[str, dict[str, int]]:
    return counts(miniimagenet.split_names(), miniimagenet.load_miniimagenet(folder).classes)


def _folder(folder: Path) -> dict[str, dict[str, int]]:
    found = list_folder(folder)
    check_pictures([member for pictures in found.classes.values() for member in pictures])
    numbers = {name: len(pictures) for name, pictures in found.classes.items()}
    splits = found.splits or (split_classes(folder, numbers) if len(numbers) > 2 else {"all": list(numbers)})
    return counts(splits, numbers)


def _range(fewest: int, most: int) -> str:
    return f"{fewest}" if fewest == most else f"{fewest} to {most}"
