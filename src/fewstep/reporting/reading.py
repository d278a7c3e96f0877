"""What tables and figures share: reading run folders, and saying how a number was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from fewstep.errors import RunError
from fewstep.files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fewstep.training.records import RunFolder

    Entry = tuple[str, Mapping[str, Any]]
    """A label and an evaluation: a row of a table, a curve of a figure."""

METRICS = {
    "mse": "mean squared error",
    "standardised_mse": "mean squared error of standardised targets",
    "accuracy": "accuracy (%)",
    "loss": "loss",
    "return": "average return",
}


class Point(NamedTuple):
    """A metric after some gradient steps, accuracy in percent; nan where it is unknown or not finite.

    Attributes:
        step: Number of gradient steps.
        mean: Over tasks, and over seeds if there are several.
        plus_minus: What stands behind "±"; `interval_note` says what that is.
    """

    step: int
    mean: float
    plus_minus: float


ENVIRONMENT = ("environment", "horizon", "physics")
"""What returns depend on beside the tasks: those of different environments cannot be compared."""


def evaluations(run: RunFolder) -> list[dict[str, Any]]:
    """The evaluations of a run's meta-parameters as they are now; training since has outdated earlier ones.

    Raises:
        RunError: There are none.
    """
    stored = run.evaluations()
    found = [_environment_of(run) | each for each in stored if not _is_outdated(run, each)]
    if not found:
        what = "those of earlier meta-parameters only" if stored else "none"
        raise RunError(
            f"A report needs an evaluation of every run: {run.path} has {what}. "
            f"Run `fewstep evaluate {run.path}` first."
        )
    return found


def _environment_of(run: RunFolder) -> dict[str, Any]:
    """What earlier versions did not write into an evaluation."""
    acts = run.config.get("loss", {}).get("kind") == "reinforce"
    return {"environment": run.config["tasks"]["kind"]} if acts else {}


def _is_outdated(run: RunFolder, evaluation: Mapping[str, Any]) -> bool:
    best, final = run.path / "best.safetensors", run.path / "params.safetensors"
    path = best if evaluation.get("checkpoint") == "best" and best.is_file() else final
    try:
        with safe_open(path, framework="numpy") as file:
            iteration = (file.metadata() or {}).get("iteration")
    except (OSError, SafetensorError):
        return False
    return iteration is not None and int(iteration) != evaluation.get("iteration", int(iteration))


def illustrations(run: RunFolder) -> list[dict[str, Any]]:
    """Examples of adaptation to a task, left by `fewstep evaluate` if tasks have one input and target, or are walks.

    Raises:
        RunError: There are none.
    """
    path = run.path / "illustration.json"
    found = read_json(path) if path.is_file() else []
    if not found:
        raise RunError(
            f"An adaptation figure needs an example task: {run.path} has none in illustration.json. "
            f"Run `fewstep evaluate {run.path}` first; only tasks of one input and one target, and "
            "navigation, can be drawn."
        )
    return found


def curve(evaluation: Mapping[str, Any]) -> list[Point]:
    """The metric along the gradient steps, in the unit that is shown."""
    factor = unit(evaluation["metric"])
    key = "spread" if seeds(evaluation) > 1 else "ci95"
    return [Point(row["step"], factor * finite(row["mean"]), factor * finite(row[key])) for row in evaluation["steps"]]


def unit(metric: str) -> float:
    """What a metric is multiplied by where it is shown: an accuracy is in percent."""
    return 100 if metric == "accuracy" else 1


def metric_name(metric: str) -> str:
    """A metric in words; of the user's own, its name."""
    return METRICS.get(metric, metric)


def with_errors(label: str, evaluation: Mapping[str, Any]) -> list[Entry]:
    """An evaluation, and as others beside it the user's own metrics, and errors of a table's targets in their units."""
    further = {f"rmse of {target}": steps for target, steps in evaluation.get("rmse", {}).items()}
    further |= evaluation.get("metrics", {})
    beside = [{**evaluation, "metric": metric, "steps": steps} for metric, steps in further.items()]
    return [(label, one) for one in (evaluation, *beside)]


def finite(value: float | None) -> float:
    """A number that can be shown: nan for whatever is missing or not finite."""
    return value if value is not None and math.isfinite(value) else math.nan


def seeds(evaluation: Mapping[str, Any]) -> int:
    """Number of training seeds behind an evaluation."""
    return len(evaluation.get("seeds", [None]))


def algorithm_name(evaluation: Mapping[str, Any]) -> str:
    """The algorithm, with the regulariser of averaging and the distance between neighbours."""
    kind = evaluation.get("regularizer") or evaluation.get("distance")
    return f"{evaluation['algorithm']} ({kind})" if kind else evaluation["algorithm"]


def required(entries: Sequence[Entry]) -> None:
    """Check that there is something to show.

    Raises:
        RunError: There is not.
    """
    if not entries:
        raise RunError("A report needs at least one evaluation: got none. Run `fewstep evaluate RUN` first.")


def differing(entries: Iterable[Entry], fields: Iterable[str]) -> list[str]:
    """Those of the fields that are not the same in all evaluations."""
    rows = [evaluation for _, evaluation in entries]
    return [field for field in fields if any(row.get(field) != rows[0].get(field) for row in rows)]


def mixed_tasks(entries: Iterable[Entry]) -> bool:
    """Whether evaluations of one setting were made on different tasks, which their fingerprints tell."""
    settings: dict[tuple[object, ...], set[object]] = {}
    for _, evaluation in entries:
        setting = tuple(
            evaluation.get(field)
            for field in (
                *("tasks_from", *ENVIRONMENT, "split", "tasks"),
                *("ways", "shots", "queries", "repeats", "trajectories"),
            )
        )
        settings.setdefault(setting, set()).add(evaluation.get("fingerprint"))
    return any(len(fingerprints) > 1 for fingerprints in settings.values())


def described(field: str, evaluation: Mapping[str, Any]) -> str:
    """One setting of an evaluation in words, or "" if it does not apply."""
    value = evaluation.get(field)
    per_class = " per class" if evaluation.get("ways") is not None else ""
    match field, value:
        case "queries", None:
            return "" if evaluation.get("metric") == "return" else "all other examples as queries"
        case _, None:
            return ""
        case "metric", _:
            return metric_name(str(value))
        case "tasks_from", _:
            return f"of {value}, not the run's own"
        case "tasks", _:
            return f"{value} task{'s' * (value != 1)}"
        case "split", _:
            return "meta-validation" if value == "val" else f"meta-{value}"
        case "ways" | "shots", _:
            return f"{value}-{field.removesuffix('s')}"
        case "repeats", _:
            return f"mean of {value} divisions of each task's rows"
        case "trajectories", _:
            return f"{value} trajectories"
        case "horizon", _:
            return f"at most {value} time steps"
        case "physics", _:
            return f"physics: {value}"
        case "queries", 1:
            return f"1 query{per_class}"
        case "queries", _:
            most = "up to " if evaluation.get("metric") == "standardised_mse" else ""  # a table's tasks have their own
            return f"{most}{value} queries{per_class}"
        case "normalization", _:
            return f"{value} normalization"
        case "checkpoint", _:
            return f"{value} meta-parameters"
        case "inner_lr", list():
            return f"inner rates {', '.join(f'{rate:g}' for rate in value)}"
        case "inner_lr", _:
            return f"inner rate {value:g}"
        case "fingerprint", _:
            return f"fingerprint of tasks {value}"
        case _:
            return f"{field} {value}"


_MANY = 30
"""Tasks from which 1.96 is less than 5 % below Student's t."""


def interval_note(entries: Iterable[Entry]) -> str:
    """What "±" means for these evaluations, in one line."""
    evaluations = [evaluation for _, evaluation in entries]
    several = {seeds(evaluation) > 1 for evaluation in evaluations}
    task = "95 % confidence interval over tasks"
    if any(seeds(each) == 1 and (each.get("tasks") or _MANY) < _MANY for each in evaluations):
        task += " (1.96 standard errors: somewhat narrow for so few)"
    if few := {each["classes"] for each in evaluations if 0 < each.get("classes", 0) < 3 * (each.get("ways") or 0)}:
        task += f", all of the same {', '.join(map(str, sorted(few)))} classes: it does not tell of others"
    spread = "standard deviation over training seeds"
    if several == {True}:
        return spread
    return f"{task}; with several seeds, {spread}" if True in several else task
