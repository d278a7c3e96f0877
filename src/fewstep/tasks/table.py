"""The user's own tables as few-shot tasks: a task column says which task each row is an example of.

A table of rows that belong to a compound, patient, machine or site, with numeric input and target columns,
becomes a distribution of tasks in four calls (`split_tasks` is that of `tasks.splitting`):

    table = read_table("assay.csv", task="compound", inputs=["log_dose"], targets=["response"])
    splits = split_tasks(table.groups)
    scale = Standardization.fit([table.groups[name] for name in splits["train"]])
    tasks = GroupedRows({name: scale.standardize(table.groups[name]) for name in splits["val"]}, shots=5)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.core.types import Batch, Task
from fewstep.errors import DataError, listed, quoted
from fewstep.tasks.features import check_categories, numeric
from fewstep.tasks.rows import read_rows, repeated
from fewstep.tasks.task import Curve

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from torch import Generator

    from fewstep.tasks.features import Categories, Feature
    from fewstep.tasks.rows import Rows

DOSE_RESPONSE = Path(__file__).parent / "data" / "dose_response.csv"
"""The bundled example, `compound,log_dose,response`; `benchmarks/make_dose_response.py` describes it."""


class Table(NamedTuple):
    """What was read from a file, in the user's units.

    Attributes:
        groups: For each task, in order of first appearance, its rows as float64 inputs
            `[rows, features]` and targets `[rows, target columns]`; classes as their numbers, int64 `[rows]`.
        task: The column that names the task.
        inputs: The input columns.
        targets: The target columns.
        content_hash: SHA-256 of column names, task names and values: the same for a CSV and a Parquet file of
            equal content.
    """

    groups: dict[str, Batch]
    task: str
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    content_hash: str


def read_table(
    path: str | Path,
    task: str,
    inputs: Sequence[str],
    targets: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    categories: Categories | None = None,
    drop: Collection[str] = (),
    remedy: str = "Correct or remove these rows.",
) -> Table:
    """Read a CSV or Parquet file, as `read_rows` does, into one group of rows for each task.

    Args:
        path: The file.
        task: The column that names the task; its values are taken as text.
        inputs: The input columns.
        targets: The target columns, numeric; or one of classes.
        classes: All that its cells may hold: a class is told by its place here.
        categories: Input columns that are no numbers, and all that the cells of each may hold; see
            `fewstep.tasks.features`.
        drop: As for `read_rows`.
        remedy: As for `read_rows`.

    Returns:
        The rows of each task, in the file's order.

    Raises:
        DataError: The file cannot be read, lacks a column, or has a cell that is no finite number or none of the
            classes and categories.
        ValueError: Categories are not those of input columns.
    """
    categories = categories or {}
    _check_roles([task, *inputs, *targets], inputs, targets, categories)
    numbers = [*numeric(inputs, categories), *([] if classes else targets)]
    named = {**categories, **({targets[0]: classes} if classes else {})}
    read = read_rows(path, task, numbers, named=named, drop=drop, remedy=remedy)
    given = inputs_of(read, inputs, categories)
    wanted = _numbered(read.labels[targets[0]], classes) if classes else _columns([read.numbers[t] for t in targets])
    about = (task, tuple(inputs), tuple(targets), *([tuple(classes)] if classes else []))
    about += (tuple(tuple(categories.get(name, ())) for name in inputs),) if categories else ()
    digest = hashlib.sha256(repr(about).encode())
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(read.tasks):
        rows_of.setdefault(name, []).append(row)
    groups = {name: Batch(given[rows], wanted[rows]) for name, rows in rows_of.items()}
    for name, group in groups.items():
        digest.update(repr((name, len(group.targets))).encode())
        values = torch.cat([group.inputs, group.targets.reshape(len(group.targets), -1)], 1)
        digest.update(values.numpy().astype("<f8").tobytes())
    return Table(groups, task, tuple(inputs), tuple(targets), digest.hexdigest())


def inputs_of(rows: Rows, inputs: Sequence[str], categories: Categories) -> Tensor:
    """The features of rows, float64 `[rows, features]`; see `fewstep.tasks.features`."""
    parts = [
        functional.one_hot(_numbered(rows.labels[name], categories[name]), len(categories[name])).double()
        if name in categories
        else _columns([rows.numbers[name]])
        for name in inputs
    ]
    return torch.cat(parts, 1)


def _numbered(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([places[label] for label in labels])


def _columns(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).T.contiguous()


class Standardization(NamedTuple):
    """Zero mean and unit variance for every column of numbers, by the rows of the meta-train tasks.

    Fitted on meta-train alone, so nothing of the validation and test tasks leaks into what the learner sees.
    A column that is constant there keeps its unit: its deviation counts as 1. Categories stay 0 and 1.

    Attributes:
        input_mean: `[features]`, float64, as are the others.
        input_std: `[features]`.
        target_mean: `[target columns]`.
        target_std: `[target columns]`.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor

    @classmethod
    def fit(cls, groups: Iterable[Batch], features: Sequence[Feature] = ()) -> Standardization:
        """Mean and (population) deviation over all rows of these tasks, each row counting once.

        Args:
            groups: The meta-train tasks' rows, as in `Table.groups`.
            features: What the inputs are; by default all are numbers.

        Raises:
            DataError: A column's values are too large for its deviation to be a finite number.
        """
        inputs, targets = (torch.cat(parts) for parts in zip(*groups, strict=True))
        none = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)  # of classes
        mean, std = _mean_and_std(inputs)
        for place, feature in enumerate(features):
            if feature.category is not None:
                mean[place], std[place] = 0, 1
        return cls(mean, std, *(_mean_and_std(targets) if targets.is_floating_point() else none))

    @property
    def columns(self) -> tuple[int, int]:
        """Numbers of features and target columns."""
        return len(self.input_mean), len(self.target_mean)

    def standardize(self, batch: Batch) -> Batch:
        """Rows in the user's units -> the float32 examples that a learner sees; classes stay as they are."""
        targets = self.targets(batch.targets) if batch.targets.is_floating_point() else batch.targets
        return Batch(self.inputs(batch.inputs), targets)

    def inputs(self, inputs: Tensor) -> Tensor:
        """Inputs `[..., features]` in the user's units -> float32, standardised."""
        _require_columns("inputs", inputs, self.input_mean)
        return ((inputs.to(self.input_mean) - self.input_mean) / self.input_std).float()

    def targets(self, targets: Tensor) -> Tensor:
        """Targets `[..., target columns]` in the user's units -> float32, standardised."""
        _require_columns("targets", targets, self.target_mean)
        return ((targets.to(self.target_mean) - self.target_mean) / self.target_std).float()

    def restore(self, outputs: Tensor) -> Tensor:
        """Outputs `[..., target columns]` of a model -> float64 in the user's units: `targets` undone."""
        _require_columns("outputs", outputs, self.target_mean)
        return outputs.to(self.target_mean) * self.target_std + self.target_mean

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, which JSON keeps exactly."""
        return {name: values.tolist() for name, values in self._asdict().items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Standardization:
        """The inverse of `to_dict`."""
        return cls(**{name: torch.tensor(values[name], dtype=torch.float64) for name in cls._fields})


def _require_columns(what: str, values: Tensor, mean: Tensor) -> None:
    if not len(mean):
        raise ValueError(
            "Classes have no scale: the target of this run is one. A model's outputs are their scores, and examples "
            "have their numbers, int64 `[rows]`, both in the order of tasks.classes."
        )
    if values.dim() < 2 or values.shape[-1] != len(mean):
        raise ValueError(
            f"`{what}` must be [rows, {len(mean)}], a column for each that the run was trained with: got "
            f"{list(values.shape)}. For a single column, use unsqueeze(1)."
        )


@final
@dataclass(frozen=True, eq=False)
class GroupedRows:
    """The tasks of one split: p(T) is uniform over them, and a task's rows are divided afresh at each draw.

    Attributes:
        groups: For each task, its standardised inputs `[rows, features]` and targets
            `[rows, target columns]`, or classes `[rows]`.
        shots: Support rows of each task.
        queries: Query rows of each task, or as many as are left, at least one; None takes all that are left.

    Raises:
        DataError: A task has fewer than `shots + 1` rows.
        ValueError: There is no task, or `shots` or `queries` is less than 1.
    """

    groups: Mapping[str, Batch]
    shots: int
    queries: int | None = None

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("`groups` must hold at least one task: got none. Pass the tasks of one split.")
        if self.shots < 1 or (self.queries is not None and self.queries < 1):
            raise ValueError(
                "`shots` and `queries` must be at least 1: "
                f"got shots={self.shots} and queries={self.queries}. "
                "Raise them, or leave out `queries` to use all rows that remain."
            )
        short = [
            f"{name!r} ({len(batch.targets)})"
            for name, batch in self.groups.items()
            if len(batch.targets) <= self.shots
        ]
        if short:
            raise DataError(
                f"Every task needs at least {self.shots + 1} rows, {self.shots} for support and 1 for query: "
                f"got {len(short)} with fewer, {listed(short)}. Lower `tasks.shots` (--shots), or train a "
                'run that leaves tasks out which are too small for its own shots, with tasks.incomplete = "drop".'
            )

    def sample(self, num_tasks: int, generator: Generator) -> Task | list[Task]:
        """Draw tasks, and for each its support and query rows.

        Up to the number of tasks in the split, no task is drawn twice, so drawing that many visits each
        exactly once; beyond it, tasks are drawn with replacement.

        Args:
            num_tasks: How many.
            generator: A CPU stream; the same stream gives the same tasks.

        Returns:
            Inputs `[tasks, rows, features]` and targets `[tasks, rows, target columns]`, or classes
            `[tasks, rows]`; where the drawn query sets differ in size, a list of such `Task`s, one for each size,
            smallest first.
        """
        by_size = self._by_size(num_tasks, generator)
        tasks = [self._divided(_stacked([rows for _, rows in drawn])) for drawn in by_size]
        return tasks[0] if len(tasks) == 1 else tasks

    def names(self, num_tasks: int, generator: Generator) -> list[str]:
        """The names of the tasks that `sample` draws from the same stream, in its order."""
        return [name for drawn in self._by_size(num_tasks, generator) for name, _ in drawn]

    def _by_size(self, num_tasks: int, generator: Generator) -> list[list[tuple[str, Batch]]]:
        """Tasks drawn, with their names; those of one size together, smallest first."""
        groups = list(self.groups.items())
        by_size: dict[int, list[tuple[str, Batch]]] = {}
        for index in _indices(len(groups), num_tasks, generator):
            name, batch = groups[index]
            rows = self._rows(batch, generator)
            by_size.setdefault(len(rows.targets), []).append((name, rows))
        return [by_size[size] for size in sorted(by_size)]

    def curve(self, generator: Generator) -> Curve:
        """Draw one task of one input and one target, with all its rows by ascending input as the grid.

        Raises:
            DataError: There are several input or target columns, so that there is no curve to draw.
        """
        batch = list(self.groups.values())[_indices(len(self.groups), 1, generator)[0]]
        if batch.inputs.shape[1] != 1 or batch.targets.shape[1:] != (1,):
            raise DataError(
                "A curve needs one input column and one target column of numbers: got "
                f"{list(batch.inputs.shape[1:])} and {list(batch.targets.shape[1:])}. Leave the curve out."
            )
        order = batch.inputs[:, 0].argsort(stable=True)
        task = self._divided(self._rows(batch, generator))
        return Curve(task, batch.inputs[order], batch.targets[order])

    def _rows(self, batch: Batch, generator: Generator) -> Batch:
        """Random rows of one task in random order, as many as support and query take together."""
        chosen = torch.randperm(len(batch.targets), generator=generator)
        if self.queries is not None:
            chosen = chosen[: self.shots + self.queries]
        return Batch(batch.inputs[chosen], batch.targets[chosen])

    def _divided(self, rows: Batch) -> Task:
        """The first `shots` rows for support and the others for query, with or without a `tasks` axis."""
        axis = rows.inputs.dim() - 2
        sizes = [self.shots, rows.inputs.shape[axis] - self.shots]
        return Task(*map(Batch, rows.inputs.split(sizes, axis), rows.targets.split(sizes, axis)))


def _indices(count: int, draws: int, generator: Generator) -> list[int]:
    if draws > count:
        return torch.randint(count, (draws,), generator=generator).tolist()
    return torch.randperm(count, generator=generator)[:draws].tolist()


def _stacked(batches: list[Batch]) -> Batch:
    return Batch(torch.stack([b.inputs for b in batches]), torch.stack([b.targets for b in batches]))


def _mean_and_std(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = rows.mean(0), rows.std(0, correction=0)
    if not (mean.isfinite() & std.isfinite()).all():
        raise DataError(
            "Every column needs a finite standard deviation over the rows that it is computed from: got values as "
            f"large as {rows.abs().max().item():g}. Correct them, or give the column in another unit."
        )
    # By its range too: rounding gives a constant column of 0.1 a deviation that is tiny, yet not zero.
    constant = (std == 0) | (rows.amax(0) == rows.amin(0))
    return mean, torch.where(constant, 1.0, std)


def _check_roles(columns: list[str], inputs: Sequence[str], targets: Sequence[str], categories: Categories) -> None:
    for role, names in (("input", inputs), ("target", targets)):
        if not names:
            raise DataError(f"A table needs at least one {role} column: got none. Name it in `tasks.{role}s`.")
    twice = repeated(columns)
    if twice:
        raise DataError(
            f"A column must have one role, task, input or target: got {quoted(twice)} more than once. "
            "Name it in one of `tasks.task`, `tasks.inputs` and `tasks.targets`, once."
        )
    check_categories(inputs, categories)
