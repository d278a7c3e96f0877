"""What an evaluation leaves behind: means with their intervals, of tables in the user's units, and each task's own."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, get_args

import torch

from fewstep.errors import RecipeError
from fewstep.experiments.build import metric_of, mse_of
from fewstep.experiments.sections import Method, TableTasks
from fewstep.training.evaluation import mean_and_ci95

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from fewstep.experiments.config import Recipe
    from fewstep.experiments.data import Data
    from fewstep.experiments.sections import Evaluate
    from fewstep.names import Split
    from fewstep.training.evaluation import Evaluation


def summary(recipe: Recipe, plan: Evaluate, evaluation: Evaluation, split: Split) -> dict[str, Any]:
    """Means and intervals, with all that they depend on."""
    metric = metric_of(recipe)
    return {
        "recipe": recipe.name,
        "algorithm": plan.method or recipe.algorithm.kind,
        "distance": getattr(recipe.algorithm, "distance", None) if plan.method == "nearest_neighbour" else None,
        "regularizer": getattr(recipe.algorithm, "regularizer", None),
        "metric": _name_of_metric(recipe),
        "split": split,
        "tasks": len(evaluation.curves[metric]),
        "ways": getattr(recipe.tasks, "ways", None),
        "shots": plan.shots,
        "queries": plan.queries,
        **({"repeats": plan.repeats} if plan.repeats > 1 else {}),
        "trajectories": plan.trajectories,
        "environment": recipe.tasks.kind if recipe.loss.kind == "reinforce" else None,
        "horizon": getattr(recipe.tasks, "horizon", None),
        "physics": getattr(recipe.tasks, "physics", None),
        "normalization": plan.normalization,
        "seed": recipe.seed,
        "trained_steps": getattr(recipe.algorithm, "steps", None),
        "steps": points(evaluation.curves[metric]),
        "evaluation_seed": plan.seed,
        "fingerprint": evaluation.fingerprint,
    }


def check_split(split: str) -> None:
    """See that a split is one to evaluate on.

    Raises:
        RecipeError: It is not.
    """
    if split not in ("val", "test"):
        raise RecipeError(f"The split must be 'val' or 'test': got {split!r}.")


def check_metrics(recipe: Recipe, metrics: Iterable[str]) -> None:
    """See that metrics of the user's own have names that nothing else has in an evaluation.

    Raises:
        RecipeError: One has not.
    """
    if metrics and recipe.loss.kind == "reinforce":
        raise RecipeError("Reinforcement learning is told in returns: leave out `metrics=`; see `learner.rollouts`.")
    targets = recipe.tasks.targets if isinstance(recipe.tasks, TableTasks) else []
    known = {"task", "step", "loss", "accuracy", "return", "mse", "standardised_mse"}
    known |= {name for target in targets for name in (f"rmse of {target}", mse_of(target))}
    if taken := sorted(known.intersection(metrics)):
        raise RecipeError(f"Metrics have names of their own: got {', '.join(taken)}, which is there already.")


def per_task(recipe: Recipe, data: Data, evaluation: Evaluation, further: Iterable[str] = ()) -> list[list[Any]]:
    """A table with a line for each task and step: the metric, errors of a table's targets, and others."""
    metric = metric_of(recipe)
    squares = _squares(recipe, data, evaluation)
    further = [*further]
    columns = [evaluation.curves[metric].double(), *(square.sqrt() for square in squares.values())]
    columns += [evaluation.curves[name].double() for name in further]
    names: Sequence[Any] = evaluation.names or range(len(columns[0]))
    header = ["task", "step", _name_of_metric(recipe), *(f"rmse of {name}" for name in squares), *further]
    values = torch.stack(columns, 2).tolist()
    lines = [
        [name, s, *(f"{value:.7g}" for value in row)]
        for name, curve in zip(names, values, strict=True)
        for s, row in enumerate(curve)
    ]
    return [header, *lines]


def errors(recipe: Recipe, data: Data, evaluation: Evaluation) -> dict[str, Any]:
    """Of each target column of a table, in its own unit: root-mean-square error over all tasks, along the steps."""
    squares = _squares(recipe, data, evaluation)
    return {"rmse": {name: _roots(square) for name, square in squares.items()}} if squares else {}


def _squares(recipe: Recipe, data: Data, evaluation: Evaluation) -> dict[str, Tensor]:
    """Mean squared error of each target column of a table, in its own unit squared; else nothing."""
    if data.standardization is None or recipe.loss.kind != "mse":
        return {}
    assert isinstance(recipe.tasks, TableTasks)
    units = zip(recipe.tasks.targets, data.standardization.target_std.tolist(), strict=True)
    return {name: unit * unit * evaluation.curves[mse_of(name)].double() for name, unit in units}


def _roots(squares: Tensor) -> list[dict[str, Any]]:
    """Roots of the means over tasks; their half-widths are d sqrt(x) = dx / (2 sqrt(x))."""
    means, intervals = mean_and_ci95(squares)
    roots = [math.sqrt(mean) for mean in means]
    return [
        {"step": step, "mean": number(root), "ci95": number(ci / (2 * root)) if root else 0.0}
        for step, (root, ci) in enumerate(zip(roots, intervals, strict=True))
    ]


def _name_of_metric(recipe: Recipe) -> str:
    """As reports call it: errors of tables are in standard deviations of the targets, squared."""
    if recipe.loss.kind == "mse":
        return "standardised_mse" if isinstance(recipe.tasks, TableTasks) else "mse"
    return metric_of(recipe)


def points(values: Tensor) -> list[dict[str, Any]]:
    """Mean over tasks and half-width of its 95 % confidence interval after each step; values `[tasks, steps + 1]`."""
    return [
        {"step": step, "mean": number(mean), "ci95": number(ci)}
        for step, (mean, ci) in enumerate(zip(*mean_and_ci95(values), strict=True))
    ]


def file_name(result: Mapping[str, Any]) -> str:
    """A file name that differs wherever two evaluations of a run do."""
    others = [re.sub(r"[^\w.-]+", "_", f"tasks-from-{result['tasks_from']}")] if "tasks_from" in result else []
    sizes = [f"{len(result['steps']) - 1}steps", f"{result['tasks']}tasks"]
    if result["metric"] == "return":
        own = [f"{result['trajectories']}trajectories", *sizes]
    else:
        method = [result["algorithm"]] if result["algorithm"] in get_args(Method) else []
        shots, queries = f"{result['shots'] or 'own'}shots", f"{result['queries'] or 'all'}queries"
        sizes += [f"{result['repeats']}repeats"] if "repeats" in result else []
        own = [*method, shots, queries, *sizes, *filter(None, [result["normalization"]])]
    return "-".join([*others, result["split"], *own, result["checkpoint"]])


def number(value: float) -> float | None:
    """JSON has no infinity and no nan."""
    return value if math.isfinite(value) else None
