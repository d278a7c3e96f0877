"""The paper's tables and figures again: what is missing is trained or gone on with, and evaluated; the rest is used."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from fewstep.errors import RecipeError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fewstep.experiments.config import Recipe
    from fewstep.reporting.reproduction import Reproduced
    from fewstep.training.records import RunFolder


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        name: What was learned, and how.
        recipe: Bundled name.
        shots: K at test; None for reinforcement learning.
        steps: Gradient steps at test that are told.
        settings: Over the recipe.
        method: How a pretrained classifier solves the tasks.
    """

    name: str
    recipe: str
    shots: int | None
    steps: tuple[int, ...]
    settings: tuple[str, ...] = ()
    method: str | None = None


class Progress(NamedTuple):
    """A run that a table needs.

    Attributes:
        recipe: Its name.
        folder: Where it is, or will be.
        done: Iterations that it has.
        wanted: Iterations that it is to have.
    """

    recipe: str
    folder: Path
    done: int
    wanted: int


def _pretrained(name: str, method: str, steps: int) -> tuple[Row, Row]:
    one, five = (
        Row(f"MiniImagenet 5-way {shots}-shot, {name}", "miniimagenet-5way-pretrained", shots, (steps,), (), method)
        for shots in (1, 5)
    )
    return one, five


def _returns(tasks: str, *others: str, steps: int = 3) -> tuple[Row, ...]:
    names = {"": "MAML", "-pretrained": "pretrained on all tasks", "-random": "random", "-oracle": "oracle"}
    names["-context"] = "context adapted alone"
    kinds = ("", "-pretrained", "-random", "-oracle", *others)
    return tuple(
        Row(f"{tasks}, {names[kind]}", tasks + kind, None, tuple(range(1 if kind == "-oracle" else steps + 1)))
        for kind in kinds
    )


def _averaging(regularizer: str) -> Row:
    settings = (f"algorithm.regularizer={regularizer}",)
    return Row(f"separate networks averaged, {regularizer}", "sinusoid-averaging", 5, (1, 5, 10), settings)


TABLES: dict[str, tuple[Row, ...]] = {
    "table1": (
        Row("Omniglot 5-way 1-shot, no convolutions", "omniglot-5way-1shot-nonconv", 1, (3,)),
        Row("Omniglot 5-way 5-shot, no convolutions", "omniglot-5way-1shot-nonconv", 5, (3,)),
        Row("Omniglot 5-way 1-shot", "omniglot-5way-1shot", 1, (3,)),
        Row("Omniglot 5-way 5-shot", "omniglot-5way-1shot", 5, (3,)),
        Row("Omniglot 5-way 1-shot, first-order", "omniglot-5way-1shot-first-order", 1, (3,)),
        Row("Omniglot 5-way 5-shot, first-order", "omniglot-5way-1shot-first-order", 5, (3,)),
        Row("Omniglot 20-way 1-shot", "omniglot-20way-1shot", 1, (5,)),
        Row("Omniglot 20-way 5-shot", "omniglot-20way-1shot", 5, (5,)),
        *_pretrained("pretrained and fine-tuned", "finetune", 10),
        *_pretrained("nearest neighbour", "nearest_neighbour", 0),
        Row("MiniImagenet 5-way 1-shot, first-order", "miniimagenet-5way-1shot-first-order", 1, (10,)),
        Row("MiniImagenet 5-way 5-shot, first-order", "miniimagenet-5way-5shot-first-order", 5, (10,)),
        Row("MiniImagenet 5-way 1-shot", "miniimagenet-5way-1shot", 1, (10,)),
        Row("MiniImagenet 5-way 5-shot", "miniimagenet-5way-5shot", 5, (10,)),
    ),
    "table2": (
        Row("MAML", "sinusoid-10shot", 5, (1, 5, 10)),
        Row("pretrained on all tasks", "sinusoid-pretrained", 5, (1, 5, 10)),
        _averaging("none"),
        _averaging("l2"),
        _averaging("to_mean"),
    ),
    "figure4": _returns("navigation", "-context", steps=4),
    "figure5": (
        *_returns("cheetah-velocity"),
        *_returns("cheetah-direction", "-context"),
        *_returns("ant-velocity"),
        *_returns("ant-direction"),
    ),
    "table3": (
        Row("Omniglot 5-way 1-shot, context adapted alone", "omniglot-5way-1shot-context", 1, (3,)),
        Row("Omniglot 5-way 5-shot, context adapted alone", "omniglot-5way-1shot-context", 5, (3,)),
    ),
}


def reproduce(
    table: str,
    out: Path,
    train: Callable[[Recipe, Path], None],
    *,
    only: str = "*",
    iterations: int | None = None,
    seed: int = 0,
    data: Path | None = None,
    device: str = "cpu",
) -> Iterator[Reproduced]:
    """Go through a table of the paper, row by row.

    Args:
        table: Which: a key of `TABLES`.
        out: Holds a run for each recipe.
        train: Trains a recipe in a folder, or goes on with the run in there.
        only: Pattern of the recipes to go through.
        iterations: Train no run for longer.
        seed: Of the runs.
        data: Folder that holds the data sets.
        device: Where to compute.

    Yields:
        A row and its evaluations: as many queries as shots, or trajectories as the recipe says; for images also 15
        queries, and the `support` policy.

    Raises:
        FewstepError: There is no such table or row; or training or evaluation fails.
    """
    from fewstep.training.records import RunFolder

    for row in _rows(table, only):
        recipe, folder = _training(row, out, iterations, seed)
        train(recipe, folder)
        yield _reproduced(row, RunFolder(folder), data, device)


def progress(table: str, out: Path, *, only: str = "*", iterations: int | None = None, seed: int = 0) -> list[Progress]:
    """What `reproduce`, called likewise, would train, and how far each run is; a run of several rows comes once.

    Raises:
        FewstepError: There is no such table or row, or a run is damaged.
    """
    from fewstep.files import entries
    from fewstep.training.records import RunFolder

    found: dict[Path, Progress] = {}
    for row in _rows(table, only):
        recipe, folder = _training(row, out, iterations, seed)
        run = RunFolder(folder) if "config.json" in entries(folder) else None
        done = max((record["iteration"] for record in run.metrics()), default=0) if run else 0
        found[folder] = Progress(recipe.name, folder, done, recipe.meta.iterations)
    return list(found.values())


def _rows(table: str, only: str) -> list[Row]:
    if table not in TABLES:
        raise RecipeError(f"What to reproduce must be one of {', '.join(sorted(TABLES))}: got {table}.")
    rows = [row for row in TABLES[table] if fnmatchcase(row.recipe, only)]
    if not rows:
        known = ", ".join(dict.fromkeys(row.recipe for row in TABLES[table]))
        raise RecipeError(f"--only must fit a recipe of {table}, {known}: got {only}.")
    return rows


def _training(row: Row, out: Path, iterations: int | None, seed: int) -> tuple[Recipe, Path]:
    """The recipe that a row is trained with, and where."""
    from fewstep.experiments.recipe_files import load_recipe
    from fewstep.experiments.resuming import with_recorded_choices
    from fewstep.experiments.runs import recipe_of
    from fewstep.files import entries
    from fewstep.training.records import RunFolder

    settings = [*row.settings, f"seed={seed}"]
    folder = out / "-".join([row.recipe, *(setting.partition("=")[2] for setting in row.settings), f"seed{seed}"])
    wanted = load_recipe(row.recipe, settings).meta.iterations
    wanted = wanted if iterations is None else min(wanted, iterations)
    if "config.json" in entries(folder):
        wanted = max(wanted, recipe_of(RunFolder(folder)).meta.iterations)
    settings = with_recorded_choices(folder, [*settings, f"meta.iterations={wanted}"])
    return load_recipe(row.recipe, settings), folder


def _reproduced(row: Row, run: RunFolder, data: Path | None, device: str) -> Reproduced:
    from fewstep.experiments.runs import recipe_of
    from fewstep.reporting.reproduction import Reproduced

    recipe = recipe_of(run)
    asked: list[dict[str, Any]] = [{"shots": row.shots, "queries": row.shots}]
    if getattr(recipe.tasks, "ways", None) is not None:
        asked += [{"shots": row.shots, "queries": 15}]
        asked += [{"shots": row.shots, "queries": row.shots, "normalization": "support"}]
    if row.method:
        asked = [each | {"method": row.method} for each in asked]
    return Reproduced(row.name, row.steps, recipe.meta.iterations, _evaluated(run, recipe, asked, data, device))


def _evaluated(
    run: RunFolder, recipe: Recipe, asked: list[dict[str, Any]], data: Path | None, device: str
) -> list[dict[str, Any]]:
    """For each way to evaluate the evaluation that the run has already, or a new one."""
    from fewstep.experiments.evaluate_run import evaluate_each

    found = [_stored(run, recipe, each) for each in asked]
    missing = [each for each, known in zip(asked, found, strict=True) if known is None]
    new = iter(evaluate_each(run, missing, data=data, device=device) if missing else ())
    return [next(new) if known is None else known for known in found]


def _stored(run: RunFolder, recipe: Recipe, asked: dict[str, Any]) -> dict[str, Any] | None:
    from fewstep.experiments.recipe_files import evaluation_plan
    from fewstep.reporting.reading import evaluations

    plan = evaluation_plan(recipe, asked)
    wanted = {"split": "test", "checkpoint": "best", "tasks": plan.tasks, "evaluation_seed": plan.seed}
    keys = ("trajectories",) if recipe.loss.kind == "reinforce" else ("shots", "queries", "normalization")
    wanted |= {key: getattr(plan, key) for key in keys}
    wanted |= {"tasks_from": None, "algorithm": plan.method or recipe.algorithm.kind}
    try:
        stored = evaluations(run)
    except RunError:  # there are none yet
        stored = []
    for evaluation in stored:
        same_steps = len(evaluation["steps"]) == plan.steps + 1
        if same_steps and all(evaluation.get(key) == value for key, value in wanted.items()):
            return evaluation
    return None
