"""From a recipe to what tasks are drawn from: one plain function for each kind of tasks."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from fewstep.errors import DataError, RecipeError, quoted
from fewstep.experiments.build_reinforcement import build_environment, spaces_of
from fewstep.experiments.execution import checked_device
from fewstep.experiments.sections import (
    FolderTasks,
    GlyphsTasks,
    ImageTasks,
    MiniImagenetTasks,
    OmniglotTasks,
    Pretrained,
    ReinforceLoss,
    SinusoidTasks,
    TableTasks,
)
from fewstep.rl.sampling import Mdps
from fewstep.tasks import glyphs, miniimagenet, omniglot, table
from fewstep.tasks.all_classes import AllClasses
from fewstep.tasks.archives import expanded
from fewstep.tasks.few_shot import FewShot
from fewstep.tasks.folder import counts, load_folder
from fewstep.tasks.images import Preparation
from fewstep.tasks.prepared import PreparedImages, data_folder
from fewstep.tasks.sinusoid import Sinusoid
from fewstep.tasks.splitting import split_tasks

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.types import Batch
    from fewstep.experiments.config import Recipe
    from fewstep.names import Split
    from fewstep.rl.environment import Environment
    from fewstep.tasks.task import TaskDistribution

log = logging.getLogger(__name__)

OwnTasks: TypeAlias = "TaskDistribution | Mapping[str, TaskDistribution] | Environment"
"""What may be passed from Python: a distribution for every split, or one for each; or an environment."""


DATA_SETS = ("omniglot", "miniimagenet")
"""Kinds of tasks from data sets that many recipes share, which lie where `--data` or FEWSTEP_DATA says."""


_PURPOSES = {"train": "meta-training", "val": "validation", "test": "testing"}


class Data(NamedTuple):
    """What tasks are drawn from, loaded once.

    Attributes:
        distribution: The tasks of a split, given shots and queries.
        record: What a run must remember about it, as plain values; equal records, equal data.
        standardization: Between the user's units and the model's, for tables.
        at_once: Tasks to evaluate together; None: all.
        available: Number of tasks in a split, where it is finite: more are not evaluated.
        environment: That the tasks are of, in reinforcement learning.
        ragged: Whether meta-train tasks differ in their numbers of examples.
    """

    distribution: Callable[[Split, int | None, int | None], TaskDistribution]
    record: dict[str, Any]
    standardization: table.Standardization | None = None
    at_once: int | None = None
    available: Callable[[Split], int] | None = None
    environment: Environment | None = None
    ragged: bool = False


def load_data(
    recipe: Recipe,
    folder: Path | None = None,
    custom: OwnTasks | None = None,
    stored: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Data:
    """Load what the recipe's tasks are drawn from.

    Args:
        recipe: Says what.
        folder: Where data sets lie, for the kinds that have one; where the recipe's own folder or table lies now.
        custom: A distribution for every split, or one for each, or an environment, for `tasks.kind = "custom"`.
        stored: The record of an earlier load, as a run keeps it; its split and standardisation are used again.
        device: Where images are kept, as bytes: tasks are gathered where the learner computes.

    Raises:
        DataError: Data are missing or damaged, or not those of the record.
        RecipeError: Custom tasks are asked for and not given, or the other way round.
    """
    tasks = recipe.tasks
    if (tasks.kind == "custom") != (custom is not None):
        raise RecipeError(
            f"Tasks were passed, and tasks.kind is {tasks.kind!r}. Set tasks.kind = 'custom', or leave them out."
            if custom is not None
            else "tasks.kind is 'custom', so tasks come from Python: pass them as `task_distribution=`, to "
            "`fewstep.train` as to `fewstep.evaluate`. The command line cannot."
        )
    if isinstance(recipe.loss, ReinforceLoss):
        data = _environment_data(recipe, custom)
    elif isinstance(tasks, SinusoidTasks):
        data = _sinusoid_data(tasks)
    elif isinstance(tasks, OmniglotTasks):
        data = _omniglot_data(tasks, folder, device)
    elif isinstance(tasks, GlyphsTasks):
        data = _glyphs_data(tasks, device)
    elif isinstance(tasks, MiniImagenetTasks):
        data = _miniimagenet_data(tasks, folder, device)
    elif isinstance(tasks, FolderTasks):
        data = _folder_data(tasks, folder, stored, device)
    elif isinstance(tasks, TableTasks):
        data = _table_data(tasks, folder, stored)
    else:
        data = _custom_data(custom)
    if isinstance(recipe.algorithm, Pretrained):
        data = data._replace(distribution=_pretraining(data.distribution, recipe.algorithm.classes))
    if stored is not None and stored.get("content_hash") != data.record.get("content_hash"):
        raise DataError(
            "A run goes on with the data it was trained with: "
            f"{data.record.get('file') or data.record.get('folder') or 'what is there now'} holds others (content hash "
            f"{_short(data.record)}, expected {_short(stored)}). Restore the data, say where they are now with --data, "
            "or train a new run."
        )
    return data


def _short(record: Mapping[str, Any]) -> str:
    return str(record.get("content_hash"))[:12]


def find_data(
    recipe: Recipe,
    stored: Mapping[str, Any] | None,
    folder: str | Path | None,
    custom: OwnTasks | None,
    device: str,
) -> Data:
    """The data of a recipe, or of a run that stored their record.

    Args:
        recipe: Says which.
        stored: The record; None for a new run.
        folder: Where data sets lie: else in the folder of FEWSTEP_DATA, else where the run found them. For a recipe
            with a folder or table of its own, where that lies, whatever the recipe says.
        custom: Tasks from Python.
        device: Where images are kept.

    Raises:
        FewstepError: As for `load_data`, or there is no such device.
    """
    where = folder
    if recipe.tasks.kind in DATA_SETS:
        where = folder or os.environ.get("FEWSTEP_DATA") or (stored or {}).get("folder")
    elif folder and not _has_a_place(recipe):
        raise RecipeError(
            f"--data says where a data set, a folder or a table lies, and {recipe.name} has none: its tasks are "
            f"{recipe.tasks.kind!r}{', of a table that comes with fewstep' if recipe.tasks.kind == 'table' else ''}. "
            "Leave it out."
        )
    return load_data(recipe, Path(where) if where else None, custom, stored, checked_device(device))


def _has_a_place(recipe: Recipe) -> bool:
    tasks = recipe.tasks
    return isinstance(tasks, FolderTasks) or (isinstance(tasks, TableTasks) and not tasks.path.startswith("bundled:"))


def _sinusoid_data(tasks: SinusoidTasks) -> Data:
    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:
        pool = tasks.pool if split == "train" else None
        return Sinusoid(shots or tasks.shots, queries or tasks.queries, tasks.reveal, pool)

    return Data(distribution, {})


def _omniglot_data(tasks: OmniglotTasks, folder: Path | None, device: str) -> Data:
    images, splits = omniglot.load_omniglot(folder), omniglot.split_names()
    place = data_folder(folder, omniglot.NEEDS).resolve()
    return _prepared_data(tasks, images, splits, omniglot.PREPARATION, place, device)


def _glyphs_data(tasks: GlyphsTasks, device: str) -> Data:
    images = glyphs.load_glyphs()
    splits = glyphs.split_names(images)
    return _prepared_data(tasks, images, splits, omniglot.PREPARATION, glyphs.font_folder(), device)


def _miniimagenet_data(tasks: MiniImagenetTasks, folder: Path | None, device: str) -> Data:
    images, splits = miniimagenet.load_miniimagenet(folder), miniimagenet.split_names()
    place = data_folder(folder, miniimagenet.NEEDS).resolve()
    return _prepared_data(tasks, images, splits, miniimagenet.PREPARATION, place, device)


def _folder_data(tasks: FolderTasks, folder: Path | None, stored: Mapping[str, Any] | None, device: str) -> Data:
    known = stored or {}
    preparation = Preparation(tasks.image_size, tasks.channels, tasks.invert, tasks.fit)
    if "preparation" in known:
        preparation = Preparation.from_dict(known["preparation"])
    first, second, third = tasks.fractions
    path = expanded(folder or _own_or_found(Path(tasks.path), known.get("folder")), "The folder of pictures").resolve()
    if not path.exists():
        raise DataError(
            f"A folder or zip archive of pictures was expected: there is no {path}. Check the path. The pictures of a "
            "run that have moved are given as --data."
        )
    drop = tasks.unreadable == "drop"
    images, splits = load_folder(path, preparation, (first, second, third), known.get("splits"), drop_unreadable=drop)
    data = _prepared_data(tasks, images, splits, preparation, path, device)
    return data._replace(record=data.record | {"splits": splits})


def _prepared_data(
    tasks: ImageTasks,
    images: PreparedImages,
    splits: Mapping[Split, list[str]],
    preparation: Preparation,
    folder: Path,
    device: str,
) -> Data:
    record = {
        "content_hash": images.content_hash,
        "folder": str(folder),
        "preparation": preparation.to_dict(),
        "counts": counts(splits, images.classes),
    }

    @cache
    def on_device(split: Split) -> tuple[Tensor, dict[str, int]]:
        chosen, classes = images.only(splits[split])
        return chosen.to(device), classes

    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:
        chosen, classes = on_device(split)
        sizes = (tasks.ways, shots or tasks.shots, queries or tasks.queries)
        try:
            return FewShot(chosen, *sizes, tasks.rotate, classes)
        except ValueError as error:
            raise RecipeError(f"Split {split!r} is too small for such tasks. {error}") from None

    # A fixed rule, since the stream of evaluation tasks depends on it: 50 at 28 pixels, 5 at 84.
    at_once = min(50, max(1, 50 * 28**2 // tasks.image_shape[-1] ** 2))
    return Data(distribution, record, at_once=at_once)


def _pretraining(
    few_shot: Callable[[Split, int | None, int | None], TaskDistribution], classes: int
) -> Callable[[Split, int | None, int | None], TaskDistribution]:
    """All meta-train classes as one task; the other splits as they are."""

    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:
        tasks = few_shot(split, shots, queries)
        if split != "train" or not isinstance(tasks, FewShot):
            return tasks
        images, counts = tasks.flat()
        found = len(counts)
        if found != classes:
            raise RecipeError(
                f"algorithm.classes must be the number of meta-train classes: expected {found}, got {classes}. "
                f"Set algorithm.classes = {found}."
            )
        return AllClasses(images, tuple(counts), tasks.rotate)

    return distribution


def _table_data(tasks: TableTasks, file: Path | None, stored: Mapping[str, Any] | None) -> Data:
    bundled = tasks.path.startswith("bundled:")
    own = table.DOSE_RESPONSE.parent / tasks.path.removeprefix("bundled:") if bundled else Path(tasks.path)
    path = file or _own_or_found(own, (stored or {}).get("file"))
    columns = [tasks.task, *tasks.inputs, *tasks.targets]
    read = table.read_table(
        path,
        tasks.task,
        tasks.inputs,
        tasks.targets,
        classes=tasks.classes,
        categories=tasks.categories,
        drop=columns if tasks.incomplete == "drop" else (),
        remedy='Correct or remove these rows, or let training leave them out with tasks.incomplete = "drop".',
    )
    read = read._replace(groups=_of_enough_rows(read.groups, tasks))
    if stored is None:
        first, second, third = tasks.fractions
        splits: dict[str, list[str]] = {**split_tasks(read.groups, (first, second, third))}
        scale = table.Standardization.fit([read.groups[name] for name in splits["train"]], tasks.features)
    else:
        splits, scale = stored["splits"], table.Standardization.from_dict(stored["standardization"])

    log.info(
        "%s: %d rows in %d tasks: %s",
        path.name,
        sum(len(group.targets) for group in read.groups.values()),
        len(read.groups),
        ", ".join(f"{len(names)} for {_PURPOSES[split]}" for split, names in splits.items()),
    )

    of_train = [read.groups[name] for name in splits["train"] if name in read.groups]
    _tell_of_names(tasks, of_train)

    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:
        groups = {name: scale.standardize(read.groups[name]) for name in splits[split] if name in read.groups}
        return table.GroupedRows(groups, shots or tasks.shots, queries)

    record = {"content_hash": read.content_hash, "splits": splits, "standardization": scale.to_dict()}
    record |= {} if bundled else {"file": str(path.expanduser().resolve())}
    rows = [len(group.targets) for group in of_train]
    ragged = tasks.queries is None or min(rows, default=0) < tasks.shots + tasks.queries
    return Data(distribution, record, scale, available=lambda split: len(splits[split]), ragged=ragged)


def _tell_of_names(tasks: TableTasks, of_train: Sequence[Batch]) -> None:
    """How many rows for meta-training each class has, and which classes and categories have none."""
    absent = list[str]()
    if tasks.classes:
        rows_of = Counter(chain.from_iterable(group.targets.tolist() for group in of_train))
        told = [f"{rows_of[place]} of {name!r}" for place, name in enumerate(tasks.classes)]
        log.info("Rows for meta-training: %s", ", ".join(told))
        absent += [name for place, name in enumerate(tasks.classes) if not rows_of[place]]
    for place, feature in enumerate(tasks.features):
        if feature.category is not None and not any(group.inputs[:, place].any() for group in of_train):
            absent.append(feature.name)
    if absent:
        log.warning("No row for meta-training is of %s: nothing is learned of it", quoted(absent))


def _own_or_found(own: Path, found: str | None) -> Path:
    """Where a run found its data; where it has none, or they are gone, where the recipe says that they lie."""
    return Path(found) if found is not None and Path(found).exists() else own


def _of_enough_rows(groups: Mapping[str, Batch], tasks: TableTasks) -> dict[str, Batch]:
    """The tasks to learn from: all, or where incomplete ones are dropped those with rows for support and query."""
    if tasks.incomplete == "refuse":
        return dict(groups)
    kept = {name: group for name, group in groups.items() if len(group.targets) > tasks.shots}
    if len(kept) < len(groups):
        log.warning(
            "%s: left out %d of %d tasks, which have fewer than %d rows",
            tasks.path,
            len(groups) - len(kept),
            len(groups),
            tasks.shots + 1,
        )
    if len(kept) < 3 <= len(groups):
        raise DataError(
            f"A table needs at least 3 tasks with {tasks.shots + 1} rows or more, tasks.shots + 1: got {len(kept)} of "
            f"{len(groups)}. Lower tasks.shots, or add rows."
        )
    return kept


def _environment_data(recipe: Recipe, custom: Any) -> Data:
    """All splits are the same distribution, of which each stream draws tasks of its own."""
    environment = build_environment(recipe, custom)
    record = {} if custom is None else {"environment": spaces_of(environment)}
    # A fixed rule, since what is random in an environment may depend on the tasks that are sampled together.
    return Data(lambda split, shots, queries: Mdps(environment), record, at_once=40, environment=environment)  # noqa: ARG005


def _custom_data(custom: Any) -> Data:
    for each in custom.values() if isinstance(custom, Mapping) else [custom]:
        if isinstance(each, type) or not callable(getattr(each, "sample", None)):
            came = f"the class {each.__name__}, not one made of it" if isinstance(each, type) else type(each).__name__
            raise RecipeError(
                "Tasks from Python are a distribution, an object with sample(num_tasks, generator), or one for each "
                f"split: got {came}. docs/extending.md has one to begin with."
            )

    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:  # noqa: ARG001
        if not isinstance(custom, Mapping):
            assert custom is not None
            return custom
        if split not in custom:
            raise DataError(
                f"Tasks of split {split!r} are needed: got {', '.join(custom) or 'none'}. Pass a distribution for "
                "every split, or one for all."
            )
        return custom[split]

    return Data(distribution, {})
