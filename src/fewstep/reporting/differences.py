"""Runs that were evaluated on the same tasks, compared task by task.

With d_i = b_i - a_i the difference of two runs on task i of N:

    mean      (1/N) sum_i d_i
    ci95      1.96 std(d) / sqrt(N)

What makes a task hard is hard for both and falls out, so this interval is narrower than those of the runs themselves
suggest: whether it holds 0 is what says if one run is better. Of several seeds, b_i is the mean over these.
"""

from __future__ import annotations

import csv
import math
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

from fewstep.errors import RunError
from fewstep.reporting.reading import ENVIRONMENT, algorithm_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fewstep.reporting.reading import Entry

_SAME = ("fingerprint", *ENVIRONMENT, "metric", "shots", "queries", "normalization", "trajectories", "checkpoint")
"""What two evaluations have in common if their difference is one of the runs."""
_OWN = ("metrics", "rmse", "per_task", "inner_lr")
"""What an evaluation tells of its own run, which says nothing of a difference."""


def differences(entries: Sequence[Entry]) -> list[Entry]:
    """Each run minus the first that was evaluated likewise, on the same tasks.

    Args:
        entries: As `groups.grouped_by_seed` gives them. Evaluations without a table of their tasks are passed over.

    Returns:
        Labels, and evaluations whose steps are those of both, with the means and intervals of the differences.

    Raises:
        RunError: A table of tasks is damaged.
    """
    found: list[Entry] = []
    first: dict[str, tuple[str, _Scores]] = {}
    for label, evaluation in entries:
        scores = _scores(evaluation)
        if scores is None:
            continue
        several = len({algorithm_name(other) for name, other in entries if name == label}) > 1
        name = f"{label} ({algorithm_name(evaluation)})" if several else label
        key = repr([evaluation.get(field) for field in _SAME])
        reference, others = first.setdefault(key, (name, scores))
        if name == reference:
            continue
        if scores.tasks != others.tasks:
            raise RunError(
                f"Tasks of one fingerprint must come in one order: those of {name} do not. Evaluate it again."
            )
        shared = [step for step in scores.by_step if step in others.by_step]
        steps = [_difference(step, scores.by_step[step], others.by_step[step]) for step in shared]
        about = {key: value for key, value in evaluation.items() if key not in _OWN}
        found.append((f"{name} - {reference}", {**about, "steps": steps, "seeds": [None]}))
    return found


class _Scores(NamedTuple):
    """The metric of each task by step, in the order of the tasks."""

    tasks: list[str]
    by_step: dict[int, list[float]]


def _difference(step: int, scores: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    of_tasks = [score - other for score, other in zip(scores, others, strict=True)]
    if not all(map(math.isfinite, of_tasks)):  # one of the two diverged
        return {"step": step, "mean": math.nan, "ci95": math.nan}
    several = len(of_tasks) > 1
    ci95 = 1.96 * statistics.stdev(of_tasks) / math.sqrt(len(of_tasks)) if several else math.nan
    return {"step": step, "mean": statistics.fmean(of_tasks), "ci95": ci95}


def _scores(evaluation: Mapping[str, Any]) -> _Scores | None:
    """Of an evaluation, the mean over seeds where there are several."""
    steps = [row["step"] for row in evaluation["steps"]]
    of_seeds = [_read(path, evaluation["metric"], steps) for path in evaluation.get("per_task", [])]
    if len(of_seeds) < len(evaluation["seeds"]):
        return None
    tasks = of_seeds[0].tasks
    if any(scores.tasks != tasks for scores in of_seeds):
        raise RunError("Tasks of one fingerprint must come in one order in all seeds. Evaluate these runs again.")
    values = {step: zip(*(scores.by_step[step] for scores in of_seeds), strict=True) for step in steps}
    return _Scores(tasks, {step: [sum(same) / len(same) for same in of_tasks] for step, of_tasks in values.items()})


def _read(path: Path, metric: str, steps: Sequence[int]) -> _Scores:
    """A file of `RunFolder.write_evaluation`: for each task its steps, in order."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(row["task"], int(row["step"]), float(row[metric])) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged(path, metric, repr(error)) from None
    tasks = [task for task, _, _ in rows[:: len(steps)]]
    if [(task, step) for task, step, _ in rows] != [(task, step) for task in tasks for step in steps]:
        raise _damaged(path, metric, "rows are missing, or in another order")
    values = [value for _, _, value in rows]
    return _Scores(tasks, {step: values[i :: len(steps)] for i, step in enumerate(steps)})


def _damaged(path: Path, metric: str, fault: str) -> RunError:
    return RunError(
        f"The table of an evaluation's tasks must have the columns task, step and {metric}, as `fewstep evaluate` "
        f"wrote it: {path}: {fault}. Evaluate the run again, or delete the file."
    )
