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
from typing import TYPE_CHECKING, Any

from fewstep.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fewstep.reporting.reading import Entry

_SAME = ("fingerprint", "metric", "shots", "queries", "normalization", "trajectories")
"""What two evaluations have in common if their difference is one of the runs."""


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
    first: dict[str, tuple[str, Mapping[int, list[float]]]] = {}
    for label, evaluation in entries:
        scores = _scores(evaluation)
        if not scores:
            continue
        key = repr([evaluation.get(field) for field in _SAME])
        if key not in first:
            first[key] = label, scores
            continue
        reference, others = first[key]
        steps = [_difference(step, scores[step], others[step]) for step in scores if step in others]
        if label != reference and steps:
            found.append((f"{label} - {reference}", {**evaluation, "steps": steps, "seeds": [None]}))
    return found


def _difference(step: int, scores: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    of_tasks = [score - other for score, other in zip(scores, others, strict=True)]
    if not all(map(math.isfinite, of_tasks)):  # one of the two diverged
        return {"step": step, "mean": math.nan, "ci95": math.nan}
    several = len(of_tasks) > 1
    ci95 = 1.96 * statistics.stdev(of_tasks) / math.sqrt(len(of_tasks)) if several else math.nan
    return {"step": step, "mean": statistics.fmean(of_tasks), "ci95": ci95}


def _scores(evaluation: Mapping[str, Any]) -> dict[int, list[float]]:
    """The metric of each task, by step, in the order of the tasks; the mean over seeds where there are several."""
    of_seeds = [_read(path, evaluation["metric"]) for path in evaluation.get("per_task", [])]
    if len(of_seeds) < len(evaluation["seeds"]):
        return {}
    return {
        step: [sum(same) / len(same) for same in zip(*(scores[step] for scores in of_seeds), strict=True)]
        for step in of_seeds[0]
    }


def _read(path: Path, metric: str) -> dict[int, list[float]]:
    by_step: dict[int, list[float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                by_step.setdefault(int(row["step"]), []).append(float(row[metric]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"The table of an evaluation's tasks must have the columns step and {metric}: {path}: {error!r}. Evaluate "
            "the run again, or delete the file."
        ) from None
    return by_step
