"""The user's own tables as few-shot regression: a task column says which task each row is an example of.

A table of rows that belong to a compound, patient, machine or site, with numeric input and target columns,
becomes a distribution of tasks in four calls:

    table = read_table("assay.csv", task="compound", inputs=["log_dose"], targets=["response"])
    splits = split_tasks(table.groups)
    scale = Standardization.fit([table.groups[name] for name in splits["train"]])
    tasks = TableTasks({name: scale.standardize(table.groups[name]) for name in splits["val"]}, shots=5)
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from fewstep.core.types import Batch, Task
from fewstep.errors import DataError
from fewstep.tasks.task import Curve

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Generator

Split: TypeAlias = Literal["train", "val", "test"]

DOSE_RESPONSE = Path(__file__).parent / "data" / "dose_response.csv"
"""The bundled example, `compound,log_dose,response`; `benchmarks/make_dose_response.py` describes it."""

log = logging.getLogger(__name__)

_LISTED = 10  # so many examples of a fault are named in an error; the rest are counted


class Table(NamedTuple):
    """What was read from a file, in the user's units.

    Attributes:
        groups: For each task, in order of first appearance, its rows as float64 inputs
            `[rows, input columns]` and targets `[rows, target columns]`.
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
    path: str | Path, task: str, inputs: Sequence[str], targets: Sequence[str], *, drop: bool = False
) -> Table:
    """Read a CSV or Parquet file into one group of rows for each task.

    A file whose name ends in `.parquet` is read by pyarrow; any other is UTF-8 text with commas, semicolons or tabs
    between the columns, whose first line names them. Without commas between columns, those in numbers are decimal
    marks. Further columns are ignored.

    Args:
        path: The file.
        task: The column that names the task; its values are taken as text.
        inputs: The input columns, numeric.
        targets: The target columns, numeric.
        drop: As for `read_rows`.

    Returns:
        The rows of each task, in the file's order.

    Raises:
        DataError: The file cannot be read, lacks a column, or has a cell that is no finite number.
    """
    _check_roles([task, *inputs, *targets], inputs, targets)
    rows: dict[str, list[list[float]]] = {}
    read = read_rows(path, task, [*inputs, *targets], drop=drop)
    for name, numbers in zip(read.tasks, read.numbers, strict=True):
        rows.setdefault(name, []).append(numbers)
    values = {name: torch.tensor(group, dtype=torch.float64) for name, group in rows.items()}
    digest = hashlib.sha256(repr((task, tuple(inputs), tuple(targets))).encode())
    for name, group in values.items():
        digest.update(repr((name, len(group))).encode())
        digest.update(group.numpy().astype("<f8").tobytes())
    k = len(inputs)
    groups = {name: Batch(group[:, :k], group[:, k:]) for name, group in values.items()}
    return Table(groups, task, tuple(inputs), tuple(targets), digest.hexdigest())


class Rows(NamedTuple):
    """The rows of a file, in its order.

    Attributes:
        header: The names of all its columns.
        cells: Of each row, as they stand in the file.
        tasks: The task of each row.
        numbers: Of each row, in the order that was asked for.
        delimiter: Between columns, a comma where the file has none.
    """

    header: list[str]
    cells: list[Sequence[Any]]
    tasks: list[str]
    numbers: list[list[float]]
    delimiter: str


def read_rows(path: str | Path, task: str, columns: Sequence[str], *, drop: bool = False, whole: bool = False) -> Rows:
    """The rows of a file as `read_table` takes it.

    Args:
        path: The file.
        task: The column that names the task.
        columns: Numeric columns.
        drop: Whether to leave out rows that lack their task or a number, and say how many, rather than refuse them.
        whole: Whether to read further columns too, for `cells`.

    Raises:
        DataError: As for `read_table`.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".parquet":
        raw = _read_parquet(path, [task, *columns], whole=whole)
    else:
        raw = _read_csv(path, [task, *columns])
    return _numeric_rows(path, raw, [task, *columns], drop=drop)


def split_tasks(
    names: Iterable[str], fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
) -> dict[Split, list[str]]:
    """Divide tasks into meta-train, meta-validation and meta-test by a fixed rule.

    The names are ordered by the SHA-256 of their UTF-8 text and cut where the fractions say, so a task's
    split depends on the set of names alone: not on a seed, the order of the rows or how many a task has. New
    rows never move a task; new tasks move only those that lie beside a cut.

    Args:
        names: The tasks.
        fractions: Shares of meta-train, meta-validation and meta-test. Each split gets at least one task.

    Returns:
        The names in each split, in the order of the rule.

    Raises:
        DataError: There are fewer than three tasks.
        ValueError: The fractions are not three positive numbers that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1):
        raise ValueError(
            f"`fractions` must be three positive shares that sum to 1: got {tuple(fractions)}. "
            "Give those of train, val and test, such as (0.7, 0.15, 0.15)."
        )
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    count = len(ordered)
    if count < 3:
        raise DataError(
            f"A table needs at least 3 tasks, one for each of train, val and test: got {count} "
            f"({_quoted(ordered)}). Add tasks, or check which column `tasks.task` names."
        )
    first = min(max(round(count * fractions[0]), 1), count - 2)
    second = min(max(round(count * (fractions[0] + fractions[1])), first + 1), count - 1)
    return {"train": ordered[:first], "val": ordered[first:second], "test": ordered[second:]}


class Standardization(NamedTuple):
    """Zero mean and unit variance for every column, by the rows of the meta-train tasks.

    Fitted on meta-train alone, so nothing of the validation and test tasks leaks into what the learner sees.
    A column that is constant there keeps its unit: its deviation counts as 1.

    Attributes:
        input_mean: `[input columns]`, float64, as are the others.
        input_std: `[input columns]`.
        target_mean: `[target columns]`.
        target_std: `[target columns]`.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor

    @classmethod
    def fit(cls, groups: Iterable[Batch]) -> Standardization:
        """Mean and (population) deviation over all rows of these tasks, each row counting once.

        Args:
            groups: The meta-train tasks' rows, as in `Table.groups`.

        Raises:
            DataError: A column's values are too large for its deviation to be a finite number.
        """
        inputs, targets = zip(*groups, strict=True)
        return cls(*_mean_and_std(torch.cat(inputs)), *_mean_and_std(torch.cat(targets)))

    @property
    def columns(self) -> tuple[int, int]:
        """Numbers of input and target columns."""
        return len(self.input_mean), len(self.target_mean)

    def standardize(self, batch: Batch) -> Batch:
        """Rows in the user's units -> the float32 examples that a learner sees."""
        return Batch(self.inputs(batch.inputs), self.targets(batch.targets))

    def inputs(self, inputs: Tensor) -> Tensor:
        """Inputs `[..., input columns]` in the user's units -> float32, standardised."""
        _require_columns("inputs", inputs, self.input_mean)
        return ((inputs.to(self.input_mean) - self.input_mean) / self.input_std).float()

    def targets(self, targets: Tensor) -> Tensor:
        """Targets `[..., target columns]` in the user's units -> float32, standardised."""
        _require_columns("targets", targets, self.target_mean)
        return ((targets.to(self.target_mean) - self.target_mean) / self.target_std).float()

    def restore(self, outputs: Tensor) -> Tensor:
        """Outputs `[..., target columns]` of a model -> float64 in the user's units: `targets` undone."""
        return outputs.to(self.target_mean) * self.target_std + self.target_mean

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, which JSON keeps exactly."""
        return {name: values.tolist() for name, values in self._asdict().items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Standardization:
        """The inverse of `to_dict`."""
        return cls(**{name: torch.tensor(values[name], dtype=torch.float64) for name in cls._fields})


def _require_columns(what: str, values: Tensor, mean: Tensor) -> None:
    if values.dim() < 2 or values.shape[-1] != len(mean):
        raise ValueError(
            f"`{what}` must be [rows, {len(mean)}], a column for each that the run was trained with: got "
            f"{list(values.shape)}. For a single column, use unsqueeze(1)."
        )


@final
@dataclass(frozen=True, eq=False)
class TableTasks:
    """The tasks of one split: p(T) is uniform over them, and a task's rows are divided afresh at each draw.

    Attributes:
        groups: For each task, its standardised inputs `[rows, input columns]` and targets
            `[rows, target columns]`.
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
                f"got {len(short)} with fewer, {_listed(short)}. Lower `tasks.shots` or drop these tasks."
            )

    def sample(self, num_tasks: int, generator: Generator) -> Task | list[Task]:
        """Draw tasks, and for each its support and query rows.

        Up to the number of tasks in the split, no task is drawn twice, so drawing that many visits each
        exactly once; beyond it, tasks are drawn with replacement.

        Args:
            num_tasks: How many.
            generator: A CPU stream; the same stream gives the same tasks.

        Returns:
            Inputs `[tasks, rows, input columns]` and targets `[tasks, rows, target columns]`; where the drawn
            query sets differ in size, a list of such `Task`s, one for each size, smallest first.
        """
        groups = list(self.groups.values())
        by_size: dict[int, list[Batch]] = {}
        for index in _indices(len(groups), num_tasks, generator):
            rows = self._rows(groups[index], generator)
            by_size.setdefault(len(rows.targets), []).append(rows)
        tasks = [self._divided(_stacked(by_size[size])) for size in sorted(by_size)]
        return tasks[0] if len(tasks) == 1 else tasks

    def curve(self, generator: Generator) -> Curve:
        """Draw one task of one input and one target, with all its rows by ascending input as the grid.

        Raises:
            DataError: There are several input or target columns, so that there is no curve to draw.
        """
        batch = list(self.groups.values())[_indices(len(self.groups), 1, generator)[0]]
        if batch.inputs.shape[1] != 1 or batch.targets.shape[1] != 1:
            raise DataError(
                "A curve needs one input column and one target column: got "
                f"{batch.inputs.shape[1]} and {batch.targets.shape[1]}. Leave the curve out for this table."
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
        k = self.shots
        return Task(
            Batch(rows.inputs[..., :k, :], rows.targets[..., :k, :]),
            Batch(rows.inputs[..., k:, :], rows.targets[..., k:, :]),
        )


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
            "Every column needs a finite standard deviation over the meta-train tasks: got values as large "
            f"as {rows.abs().max().item():g}. Correct them, or give the column in another unit."
        )
    # By its range too: rounding gives a constant column of 0.1 a deviation that is tiny, yet not zero.
    constant = (std == 0) | (rows.amax(0) == rows.amin(0))
    return mean, torch.where(constant, 1.0, std)


class _Raw(NamedTuple):
    """Cells as they stand in a file: the column names, then each row after its number, counted in `unit`s."""

    header: list[str]
    rows: Sequence[tuple[int, Sequence[Any]]]
    unit: str
    delimiter: str = ","


def _read_csv(path: Path, columns: list[str]) -> _Raw:
    try:
        if path.is_dir():
            raise DataError(f"A table must be a file: got the folder `{path}`. Name the CSV file in it.")
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
            mark = _delimiter(text.lstrip("\r\n").partition("\n")[0], columns)
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise _unreadable(path, error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "A table must be UTF-8 text with commas, semicolons or tabs between the columns, or Parquet in a file that "
            "ends in `.parquet`: "
            f"`{path}` is neither ({error}). Save it as 'CSV UTF-8'."
        ) from error
    if not rows:
        raise _empty(path, "nothing")
    header = [name.strip() for name in rows.pop(0)[1]]
    if len(header) == 1:
        raise _one_column(path, header[0])
    _check_header(path, header, columns)
    odd = [f"line {line} ({len(row)})" for line, row in rows if len(row) != len(header)]
    if odd:
        raise DataError(
            f"Every line of `{path}` must have {len(header)} cells, as its first has: got "
            f"{len(odd)} with fewer or more, {_listed(odd)}. Complete these lines, and quote cells that hold "
            "a comma."
        )
    return _Raw(header, rows, "line", mark)


def _delimiter(first: str, columns: Sequence[str]) -> str:
    """Of comma, semicolon and tab the one by which the first line names most of the columns, or else has most."""

    def names(mark: str) -> tuple[int, int]:
        header = {name.strip() for name in next(csv.reader([first], delimiter=mark, skipinitialspace=True), [])}
        return len(header.intersection(columns)), len(header)

    return max(",;\t", key=names)


def _read_parquet(path: Path, columns: list[str], *, whole: bool) -> _Raw:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"Reading `{path}` needs pyarrow: it is not installed. Run `pip install 'fewstep[parquet]'`, or "
            "save the table as CSV."
        ) from error
    try:
        if path.is_dir():
            raise DataError(f"A table must be a file: got the folder `{path}`. Name one Parquet file in it.")
        with path.open("rb") as file, pyarrow.parquet.ParquetFile(file) as parquet:
            _check_header(path, parquet.schema_arrow.names, columns)
            content = parquet.read(None if whole else columns)
    except pyarrow.ArrowException as error:
        raise DataError(f"A Parquet file was expected: `{path}` is not one ({error}). Write it again.") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    header = content.column_names
    cells = [content.column(name).to_pylist() for name in header]
    return _Raw(header, list(enumerate(zip(*cells, strict=True), start=1)), "row")


def _check_roles(columns: list[str], inputs: Sequence[str], targets: Sequence[str]) -> None:
    for role, names in (("input", inputs), ("target", targets)):
        if not names:
            raise DataError(f"A table needs at least one {role} column: got none. Name it in `tasks.{role}s`.")
    repeated = _repeated(columns)
    if repeated:
        raise DataError(
            f"A column must have one role, task, input or target: got {_quoted(repeated)} more than once. "
            "Name it in one of `tasks.task`, `tasks.inputs` and `tasks.targets`, once."
        )


def _check_header(path: Path, header: list[str], columns: list[str]) -> None:
    repeated = _repeated([name for name in header if name])
    if repeated:
        raise DataError(
            f"The columns of `{path}` must have different names: got {_quoted(repeated)} more than once. "
            "Rename or remove the repeated columns."
        )
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(
            f"`{path}` must have the columns {_quoted(columns)}: it lacks {_quoted(missing)}, and has "
            f"{_quoted(header)}. Rename its columns, or correct `tasks.task`, `tasks.inputs` or `tasks.targets`."
        )


def _numeric_rows(path: Path, raw: _Raw, columns: list[str], *, drop: bool) -> Rows:
    """Rows with their task, named by the first of `columns`, and their numbers in the order of the others."""
    if not raw.rows:
        raise _empty(path, "column names only")
    task, *places = [raw.header.index(name) for name in columns]
    rows = Rows(raw.header, [], [], [], raw.delimiter)
    faults: list[str] = []
    for number, cells in raw.rows:
        name = "" if cells[task] is None else str(cells[task]).strip()
        values = [_number(cells[place], decimal_comma=raw.delimiter != ",") for place in places]
        if name and None not in values:
            rows.cells.append(cells)
            rows.tasks.append(name)
            rows.numbers.append([value for value in values if value is not None])
            continue
        wrong = [place for place, value in zip(places, values, strict=True) if value is None]
        for place in wrong if name else [task, *wrong]:
            cell = "empty" if cells[place] in (None, "") else repr(cells[place])
            faults.append(f"{raw.unit} {number}, {raw.header[place]!r}: {cell}")
    if drop and rows.tasks:
        if len(rows.tasks) < len(raw.rows):
            log.warning(
                "%s: left out %d of %d rows: %s",
                path,
                len(raw.rows) - len(rows.tasks),
                len(raw.rows),
                _listed(faults, "; "),
            )
    elif faults:
        raise DataError(
            f"Every row of `{path}` must name its task and have finite numbers where numbers are read: got "
            f"{len(faults)} other cells, {_listed(faults, '; ')}. Correct or remove these rows, or "
            'let training leave them out with tasks.incomplete = "drop".'
        )
    return rows


def _number(cell: Any, *, decimal_comma: bool) -> float | None:
    """The finite number in a cell, or None. Names such as '12_3' are none, though Python reads 123."""
    try:
        value = float(cell.replace(",", ".", 1) if decimal_comma and isinstance(cell, str) else cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and "_" not in str(cell) else None


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"A table was expected at `{path}`: there is no such file. Check the path, which starts from "
            f"`{Path.cwd()}`. The table of a run that has moved is given as --data."
        )
    return DataError(
        f"The table `{path}` must be readable: got '{error.strerror or error}'. Check the path and its permissions."
    )


def _empty(path: Path, got: str) -> DataError:
    return DataError(
        f"A table needs a first line of column names and a row for each example: `{path}` holds {got}. "
        "Check that it was written to the end."
    )


def _one_column(path: Path, header: str) -> DataError:
    found = ", which looks separated by '|'" if "|" in header else ""
    return DataError(
        f"Columns must be separated by commas, semicolons or tabs: `{path}` has the one column {header!r}{found}. "
        "Save it with commas between the columns and points in the numbers."
    )


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _quoted(names: Sequence[str]) -> str:
    return _listed([repr(name) for name in names])


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    rest = len(items) - _LISTED
    return separator.join(items[:_LISTED]) + (f"{separator}and {rest} more" if rest > 0 else "")
