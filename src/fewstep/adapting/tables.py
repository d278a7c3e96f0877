"""`fewstep adapt` for a run on a table: a few measured rows of new tasks, and what they say of further rows."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.adapting.fitting import fit_same_outputs
from fewstep.adapting.initialisation import classes_of, initialisation
from fewstep.adapting.units import tell_of_far
from fewstep.errors import DataError, FewstepError, NonFiniteError, RecipeError, listed, quoted
from fewstep.experiments.build import mean_squared_error
from fewstep.experiments.runs import open_run, recipe_of, standardization
from fewstep.experiments.sections import TableTasks
from fewstep.files import replaced
from fewstep.tasks.features import numeric
from fewstep.tasks.rows import read_rows
from fewstep.tasks.table import inputs_of, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from fewstep.core.types import Batch
    from fewstep.experiments.config import Recipe
    from fewstep.learners.supervised import Loss
    from fewstep.names import Checkpoint
    from fewstep.tasks.rows import Rows
    from fewstep.tasks.table import Standardization
    from fewstep.training.records import RunFolder

log = logging.getLogger(__name__)


class TablePredictions(NamedTuple):
    """Rows that were predicted, in the order of their file.

    Attributes:
        columns: The columns that name the task, its inputs and its targets.
        tasks: The task of each row.
        inputs: In the user's units, float64 `[rows, features]`: of a column of categories 1 for the row's own, 0 for
            each other.
        targets: Predicted, in the user's units, float64 `[rows, target columns]`; of a target that is a class the
            probability of each, `[rows, classes]`.
        classes: Their names; of numbers none.
        errors: Root mean squared error of each target that the file has in some rows, in the user's units; of a class
            the share of wrong ones; over rows that are not among those adapted to.
        known: In how many rows.
        support: The number of support rows of each task.
        steps: Gradient steps.
        file: What was read, with all its columns.
    """

    columns: tuple[str, tuple[str, ...], tuple[str, ...]]
    tasks: list[str]
    inputs: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    errors: dict[str, float]
    known: dict[str, int]
    support: dict[str, int]
    steps: int
    file: Rows

    def __repr__(self) -> str:
        """In a line; `to_csv` and `rows` tell all."""
        counts = ", ".join(f"{name!r} ({rows})" for name, rows in self.support.items())
        return f"TablePredictions of {len(self.tasks)} rows, adapted to {counts}; steps {self.steps}"

    @property
    def labels(self) -> list[str]:
        """The most probable class of each row; of numbers none."""
        return [self.classes[place] for place in self.targets.argmax(1).tolist()] if self.classes else []

    def header(self) -> list[str]:
        """Task, inputs and predicted targets: `predicted_` and their names; and `probability_` and each class."""
        task, inputs, _ = self.columns
        return [task, *inputs, *self._predicted()]

    def rows(self) -> list[list[str]]:
        """The cells of each row below `header`, predictions with up to six digits, probabilities with four."""
        cells = zip(self.tasks, self.file.shown(self.columns[1]), self._cells(), strict=True)
        return [[task, *given, *found] for task, given, found in cells]

    def to_csv(self) -> str:
        """All columns of the file as they are, and the predicted ones after them, written as the file is."""
        text, form = io.StringIO(), self.file.form
        if form.delimiter not in ",;\t":  # which are looked for where none is told
            text.write(f"sep={form.delimiter}{form.newline}")
        task, inputs, targets = self.columns
        before = {*self._predicted()} - {task, *inputs, *targets}  # predictions that were written into the file
        kept = [place for place, name in enumerate(self.file.header) if name not in before]
        writer = csv.writer(text, lineterminator=form.newline, delimiter=form.delimiter)
        writer.writerow([*(self.file.header[place] for place in kept), *self._predicted()])
        decimal = "," if self.file.numerals.decimal == {","} else "."
        for given, cells in zip(self.file.cells, self._cells(decimal), strict=True):
            writer.writerow([*(given[place] for place in kept), *cells])
        return text.getvalue()

    def encoded(self) -> bytes:
        """`to_csv` in the encoding of the file, or in UTF-8 where that lacks a sign of a target's name."""
        text = self.to_csv()
        try:
            return text.encode(self.file.form.encoding)
        except UnicodeEncodeError:
            return text.encode("utf-8-sig")

    def write(self, file: Path) -> None:
        """`encoded`, into a file that is there whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as temporary:
            temporary.write_bytes(self.encoded())

    def _predicted(self) -> list[str]:
        predicted = [f"predicted_{name}" for name in self.columns[2]]
        return [*predicted, *(f"probability_{name}" for name in self.classes)]

    def _cells(self, decimal: str = ".") -> list[list[str]]:
        form = ".4f" if self.classes else ".6g"
        numbers = [[f"{value:{form}}".replace(".", decimal) for value in row] for row in self.targets.tolist()]
        return [[label, *row] for label, row in zip(self.labels, numbers, strict=True)] if self.classes else numbers


def check_file(file: Path) -> None:
    """See that predictions may be written to a file: a new one, or one of predictions.

    Raises:
        FewstepError: They may not.
    """
    if file.suffix.lower() != ".csv" or file.is_dir():
        raise FewstepError(f"--out must be a CSV file for a run on a table: got {file}. End it in .csv.")
    if not file.exists():
        return
    with file.open("rb") as opened:
        start = opened.read(2**16)
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = start.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    if not re.match(r"(?:sep=(.)\s+)?.*(?:[\"' \t,;|]|\1)predicted_", text):
        raise FewstepError(f"--out must be a new file, or predictions of before: {file} holds something else.")


def is_on_table(run: str | Path | RunFolder) -> bool:
    """Whether a run learned from a table.

    Raises:
        FewstepError: It is no run.
    """
    return isinstance(recipe_of(open_run(run)).tasks, TableTasks)


def predict_table(
    run: str | Path | RunFolder,
    support: str | Path,
    queries: str | Path,
    *,
    steps: int | None = None,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    checkpoint: Checkpoint = "best",
    device: str = "cpu",
) -> TablePredictions:
    """Adapt a run's initialisation to each task of a table, and predict the targets of further rows.

    Args:
        run: A run folder, trained on a table.
        support: CSV or Parquet file with the run's columns for task, inputs and targets: the measured rows of one new
            task or of several, each of which is adapted to by itself.
        queries: Such a file with the columns for task and inputs: rows of these tasks to predict.
        steps: Gradient steps; by default what the recipe is evaluated with.
        model: The module that the run was trained with, if it was passed from Python.
        loss: Likewise the loss.
        checkpoint: "best" by validation, or "final".
        device: Where to adapt.

    Raises:
        FewstepError: The run was not trained on a table, a file lacks a column or a number, or a task has no support.
    """
    folder = open_run(run)
    recipe = recipe_of(folder)
    tasks = _table_of(folder, recipe, loss)
    classes, scale = classes_of(recipe), standardization(folder)
    measured, asked = _read(tasks, classes, support, queries)
    rows_of: dict[str, list[int]] = {}
    for row, task in enumerate(asked.tasks):
        rows_of.setdefault(task, []).append(row)
    _require_support(measured, rows_of, support, queries)
    inputs = inputs_of(asked, tasks.inputs, tasks.categories)
    _tell_of_units(tasks, scale, inputs, [measured[task] for task in rows_of])

    natural, descended = ("cross_entropy", functional.cross_entropy) if classes else ("mse", mean_squared_error)
    start = initialisation(folder, model, checkpoint, natural if loss is None else "custom", loss)
    steps = recipe.evaluate.steps if steps is None else steps
    targets = torch.empty(len(inputs), len(classes or tasks.targets), dtype=torch.float64)
    for task, rows in rows_of.items():
        try:
            adapted = fit_same_outputs(
                start, scale.standardize(measured[task]), steps, loss or descended, device=device
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"Task {task!r} of `{support}`: {error}") from None
        outputs = adapted(scale.inputs(inputs[rows])).cpu()
        targets[rows] = outputs.double().softmax(1) if classes else scale.restore(outputs)

    counts = {task: len(measured[task].targets) for task in rows_of}
    columns = (tasks.task, tuple(tasks.inputs), tuple(tasks.targets))
    found = TablePredictions(columns, asked.tasks, inputs, targets, classes or (), {}, {}, counts, steps, asked)
    new = _new(found, rows_of, measured)
    errors, known = _mistakes(found, new) if classes else _errors(found, new)
    return found._replace(errors=errors, known=known)


def _table_of(folder: RunFolder, recipe: Recipe, loss: Loss | None) -> TableTasks:
    if not isinstance(recipe.tasks, TableTasks):
        raise RecipeError(
            f"Tables need a run that was trained on a table: {folder.path.name} was trained on {recipe.tasks.kind} "
            "tasks. Use another run."
        )
    if recipe.loss.kind == "custom" and loss is None:
        raise RecipeError(
            f"{folder.path.name} was trained with a loss from Python: pass it as `loss=`. The command line cannot."
        )
    return recipe.tasks


def _read(
    tasks: TableTasks, classes: tuple[str, ...] | None, support: str | Path, queries: str | Path
) -> tuple[dict[str, Batch], Rows]:
    """The measured rows of each task, and those to predict."""
    given, categories = tasks.inputs, tasks.categories
    # Rows that are still to be measured may stand beside those that are.
    drop = [tasks.task, *given, *tasks.targets] if tasks.incomplete == "drop" else tasks.targets
    measured = read_table(
        support, tasks.task, given, tasks.targets, classes=classes, categories=categories, drop=drop
    ).groups
    further = () if classes else tasks.targets
    asked = read_rows(queries, tasks.task, numeric(given, categories), named=categories, further=further, whole=True)
    return measured, asked


def _require_support(
    measured: Mapping[str, Batch], asked: Iterable[str], support: str | Path, queries: str | Path
) -> None:
    if strangers := [task for task in asked if task not in measured]:
        raise DataError(
            f"Every task of `{queries}` must have measured rows in `{support}`: there are none of {quoted(strangers)}. "
            "Add some, or correct the names."
        )


def _tell_of_units(tasks: TableTasks, scale: Standardization, inputs: Tensor, adapted_to: Sequence[Batch]) -> None:
    every = torch.cat([inputs, *(examples.inputs for examples in adapted_to)])
    tell_of_far("Inputs", [feature.name for feature in tasks.features], scale.inputs(every))
    if not tasks.classes:
        targets = torch.cat([scale.standardize(examples).targets for examples in adapted_to])
        tell_of_far("Targets", tasks.targets, targets)


def _new(found: TablePredictions, rows_of: Mapping[str, list[int]], measured: Mapping[str, Batch]) -> list[bool]:
    """Which rows are none that was adapted to: those of a task are there if all of them are."""
    _, _, targets = found.columns
    there = [place for place, name in enumerate(targets) if name in found.file.further]
    truths: list[Any]
    if found.classes:
        places = {name: place for place, name in enumerate(found.classes)}
        truths = [places.get(label) for label in found.file.labels_of(targets[0], found.classes)]
    else:
        truths = list(zip(*(found.file.further[targets[place]] for place in there), strict=True))
    new = [True] * len(found.tasks)
    for task, rows in rows_of.items() if truths else ():
        inputs, known = measured[task].inputs.tolist(), measured[task].targets.tolist()
        truths_of: list[Any] = known if found.classes else [tuple(y[place] for place in there) for y in known]
        left = Counter((*x, y) for x, y in zip(inputs, truths_of, strict=True))
        keys = {row: (*found.inputs[row].tolist(), truths[row]) for row in rows}
        if left - Counter(keys.values()):
            continue
        for row, key in keys.items():
            new[row] = left[key] == 0
            left[key] -= not new[row]
    return new


def _mistakes(found: TablePredictions, new: Sequence[bool]) -> tuple[dict[str, float], dict[str, int]]:
    """The share of new rows whose class is told and is another than the predicted one, and how many tell it."""
    (target,) = found.columns[2]
    truths = found.file.labels_of(target, found.classes)
    if strangers := sorted({*truths} - {"", *found.classes}):
        log.warning("Rows whose %s is none of the run's classes are not judged: %s", target, listed(strangers))
    told = [
        (label, truth)
        for label, truth, is_new in zip(found.labels, truths, new, strict=False)
        if truth in found.classes and is_new
    ]
    wrong = sum(label != truth for label, truth in told)
    return ({target: wrong / len(told)}, {target: len(told)}) if told else ({}, {})


def _errors(found: TablePredictions, new: Sequence[bool]) -> tuple[dict[str, float], dict[str, int]]:
    """Root mean squared error of each target over the new rows that have it, and how many these are."""
    errors: dict[str, float] = {}
    known: dict[str, int] = {}
    for name, predicted in zip(found.columns[2], found.targets.unbind(1), strict=True):
        values = found.file.further.get(name, [])
        rows = [row for row, value in enumerate(values) if value is not None and new[row]]
        if rows:
            truth = torch.tensor([values[row] for row in rows], dtype=torch.float64)
            errors[name], known[name] = (predicted[rows] - truth).square().mean().sqrt().item(), len(rows)
    return errors, known
