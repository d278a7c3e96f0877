"""The user's own pictures: a folder, or a zip archive of it, that holds a folder for each class."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from fewstep.errors import DataError
from fewstep.tasks.archives import listing
from fewstep.tasks.picture_files import list_classes
from fewstep.tasks.prepared import PreparedImages, prepare
from fewstep.tasks.splitting import split_tasks

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from fewstep.names import Split
    from fewstep.tasks.archives import Member
    from fewstep.tasks.images import Preparation

_ADVICE = 'Replace these files, take them away, or have a recipe leave them out with tasks.unreadable = "drop".'
_SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "dev", "test"}


class Folder(NamedTuple):
    """What a folder holds, not yet read.

    Attributes:
        classes: The pictures of each class, both sorted by name.
        splits: The names of each split's classes, where the folder says so with `train`, `val` and `test` in it.
    """

    classes: dict[str, list[Member]]
    splits: dict[Split, list[str]] | None


def list_folder(path: Path) -> Folder:
    """The classes of a folder, and their split where it has one.

    Raises:
        DataError: What is a class is not clear, or a class stands in two splits.
    """
    found = list_classes(path)
    firsts = {name.partition("/")[0] for name in found}
    if len(firsts) < 2 or not firsts <= _SPLIT_WORDS:
        return Folder(found, None)
    if firsts != {"train", "val", "test"} or any("/" not in name for name in found):
        raise DataError(
            f"A folder that is split must hold `train`, `val` and `test`, each with a folder for each class: {path} "
            f"holds pictures in {', '.join(sorted(found)[:10])}. Rename or move them, or leave the split to fewstep: "
            "a folder for each class, and nothing around them."
        )
    splits: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
    for name in found:
        split, _, rest = name.partition("/")
        splits[split].append(rest)  # pyright: ignore[reportArgumentType]
    twice = sorted(name for name, count in Counter(chain.from_iterable(splits.values())).items() if count > 1)
    if twice:
        raise DataError(
            f"In few-shot learning the splits of {path} must differ in their classes: in several are "
            f"{listing(twice)}\nPut all pictures of a class together, and leave the split to fewstep or give each "
            "class to one of train, val and test."
        )
    classes = {name.partition("/")[2]: members for name, members in found.items()}
    return Folder({name: classes[name] for name in sorted(classes)}, splits)


def load_folder(
    path: Path,
    preparation: Preparation,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    splits: dict[Split, list[str]] | None = None,
    cache: Path | None = None,
    *,
    drop_unreadable: bool = False,
) -> tuple[PreparedImages, dict[Split, list[str]]]:
    """All pictures of a folder, and the split of its classes.

    Args:
        path: The folder, or a zip archive of it.
        preparation: What to do to a picture.
        fractions: Shares of meta-train, meta-validation and meta-test, for a folder that is not split itself.
        splits: The split of an earlier time, to use again.
        cache: Where the prepared images are kept. None takes FEWSTEP_CACHE, or else the user's cache folder.
        drop_unreadable: Whether pictures that cannot be read are left out, and classes that have no others.

    Raises:
        DataError: What is a class is not clear, there are too few, or pictures cannot be read.
    """
    folder = list_folder(path)
    chosen = splits or folder.splits or split_classes(path, folder.classes, fractions)
    images = prepare(
        f"folder {path.stem}", folder.classes, preparation, cache, _ADVICE, drop_unreadable=drop_unreadable
    )
    readable: dict[Split, list[str]] = {
        split: [name for name in names if name in images.classes] for split, names in chosen.items()
    }
    empty = [split for split, names in chosen.items() if folder.classes.keys() & names and not readable[split]]
    if empty:
        raise DataError(
            f"Each split of {path} must have a class with pictures that can be read: there is none in "
            f"{', '.join(empty)}. Replace these files."
        )
    return images, readable


def split_classes(
    path: Path, names: Collection[str], fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
) -> dict[Split, list[str]]:
    """The rule of `split_tasks`: by the names of the classes alone.

    Raises:
        DataError: There are fewer than three.
    """
    if len(names) < 3:
        raise DataError(
            f"Training needs at least 3 classes, one for each of train, val and test, and in practice dozens: {path} "
            f"has {len(names)} ({', '.join(names)}). Add classes."
        )
    return {split: sorted(chosen) for split, chosen in split_tasks(names, fractions).items()}


def counts(splits: Mapping[Any, Sequence[str]], classes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """For each split, how many classes and pictures it has, and the fewest and most of a class."""
    numbers = {split: [classes[name] for name in names if name in classes] for split, names in splits.items()}
    return {
        split: {
            "classes": len(each),
            "pictures": sum(each),
            "fewest": min(each, default=0),
            "most": max(each, default=0),
        }
        for split, each in numbers.items()
    }
