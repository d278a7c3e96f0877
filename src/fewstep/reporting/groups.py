"""Runs that differ only in their seed, taken together.

For S seeds, with m_s the mean over tasks of seed s:

    mean      (1/S) sum_s m_s
    spread    sqrt(sum_s (m_s - mean)^2 / (S - 1)), the sample standard deviation over seeds
    ci95      (1/S) sum_s ci95_s

The spread says how far one training comes out from another. It is what "±" shows where there are several
seeds. It is no confidence interval: with three seeds, that would be 2.5 spreads to either side (Student's t).

All seeds are tested on the same tasks, so the spread does not say what other tasks would change. That is
ci95: it bounds the half-width of the pooled mean's interval over tasks from above, reached if the seeds erred
alike on every task.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.reporting.reading import ENVIRONMENT, evaluations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from fewstep.reporting.reading import Entry
    from fewstep.training.records import RunFolder

T = TypeVar("T")

_KIND = (
    "recipe",
    "tasks_from",
    "algorithm",
    "regularizer",
    "distance",
    "metric",
    "split",
    "tasks",
    "ways",
    "shots",
    "queries",
    "repeats",
    "trajectories",
    *ENVIRONMENT,
    "normalization",
    "evaluation_seed",
    "fingerprint",
    "checkpoint",
)
"""Evaluations that agree in these and in their steps are pooled; seeds may differ in a tuned inner rate."""
_CURVES = ("steps", "rmse", "metrics", "per_task")
"""What an evaluation tells of each step; the rest says how it was made."""


def grouped_by_seed(runs: Sequence[RunFolder]) -> list[Entry]:
    """One entry for each kind of evaluation of each group of runs whose recipes differ only in the seed.

    A group of one run keeps its evaluations as they are, and so its interval over tasks. Two runs of the same
    recipe *and* seed are not two seeds: such runs stay apart. A run given twice counts once.

    Args:
        runs: Any runs; entries follow their order.

    Returns:
        Labels and evaluations. Every evaluation has `seeds` and, for each, the path of its table of tasks, if there is
        one, and is `unfinished` if a run is. One of several seeds also has `spread` in each of its steps, and its mean
        and ci95 are those of this module's docstring.

    Raises:
        RunError: A run has no evaluation.
    """
    groups = _groups(list({run.path.resolve(): run for run in runs}.values()))
    return [
        (label, evaluation)
        for label, group in zip(_labels(groups), groups, strict=True)
        for evaluation in _pooled_by_kind(group)
    ]


def _groups(runs: Sequence[RunFolder]) -> list[list[RunFolder]]:
    def recipe(run: RunFolder) -> object:
        return {key: value for key, value in run.config.items() if key != "seed"}

    groups: list[list[RunFolder]] = []
    for group in _alike(runs, recipe):
        distinct = len({run.config.get("seed") for run in group}) == len(group)
        groups.extend([group] if distinct else [[run] for run in group])
    return groups


def _alike(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """Items with equal keys together, in order of first appearance."""
    found: dict[str, list[T]] = {}
    for item in items:
        found.setdefault(json.dumps(key(item), sort_keys=True), []).append(item)
    return list(found.values())


def _labels(groups: Sequence[list[RunFolder]]) -> list[str]:
    """Folder names of single runs, recipe names of groups; where not unique, what tells them apart."""
    short = [_label(group) for group in groups]
    return [
        label if short.count(label) == 1 else _long_label(group, [g for g in groups if _label(g) == label])
        for label, group in zip(short, groups, strict=True)
    ]


def _label(group: list[RunFolder]) -> str:
    return str(group[0].config.get("name")) if len(group) > 1 else group[0].path.resolve().name


def _long_label(group: list[RunFolder], namesakes: Sequence[list[RunFolder]]) -> str:
    if len(group) == 1:
        return str(group[0].path)
    own, *others = (dict(_flat(g[0].config)) for g in [group, *(g for g in namesakes if g is not group)])
    keys = [key for key in own if key != "seed" and any(own[key] != other.get(key) for other in others)]
    return f"{_label(group)} {', '.join(f'{key}={own[key]}' for key in keys)}".rstrip()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _pooled_by_kind(group: Sequence[RunFolder]) -> list[dict[str, Any]]:
    found = [{**e, **_origin(run, e)} for run in group for e in evaluations(run)]
    pooled: list[dict[str, Any]] = []
    for same in _alike(found, _kind):
        if _one_per_seed(same):
            pooled.append(_pooled(same))
        else:  # a run was evaluated so more than once, perhaps at several inner rates: pool equal ones
            for at_one_rate in _alike(same, lambda e: e.get("inner_lr")):
                pooled.extend([_pooled(at_one_rate)] if _one_per_seed(at_one_rate) else at_one_rate)
    return _longest(pooled)


def _origin(run: RunFolder, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    origin: dict[str, Any] = {"seeds": [run.config.get("seed")]}
    if not run.is_finished:
        origin["unfinished"] = True
    if name := evaluation.get("per_task"):
        path = run.path / "evaluations" / name
        origin["per_task"] = [path] if path.is_file() else []
    return origin


def _longest(stored: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that another one goes on from, on the same tasks: they would say the same twice."""
    longest: dict[str, dict[str, Any]] = {}
    for evaluation in stored:
        about = repr(sorted((key, value) for key, value in evaluation.items() if key not in (*_CURVES, "classes")))
        if about not in longest or len(evaluation["steps"]) > len(longest[about]["steps"]):
            longest[about] = evaluation
    return list(longest.values())


def _kind(evaluation: Mapping[str, Any]) -> list[object]:
    return [*(evaluation.get(field) for field in _KIND), [row["step"] for row in evaluation["steps"]]]


def _one_per_seed(same: Sequence[Mapping[str, Any]]) -> bool:
    return len({e["seeds"][0] for e in same}) == len(same)


def _pooled(same: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Evaluations of one kind by several seeds, as one."""
    if len(same) == 1:
        return same[0]
    rates = sorted({e["inner_lr"] for e in same if e.get("inner_lr") is not None})
    return {
        **{key: value for key, value in same[0].items() if key not in ("seed", "iteration")},
        "inner_lr": rates[0] if len(rates) == 1 else rates or None,
        "seeds": [seed for e in same for seed in e["seeds"]],
        "unfinished": any(e.get("unfinished") for e in same),
        "per_task": [path for e in same for path in e.get("per_task", [])],
        "steps": _pooled_curve([e["steps"] for e in same]),
        **{kind: _pooled_curves([e.get(kind, {}) for e in same]) for kind in ("rmse", "metrics")},
    }


def _pooled_curves(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those that all seeds have, by name."""
    shared = [name for name in curves[0] if all(name in each for each in curves)]
    return {name: _pooled_curve([each[name] for each in curves]) for name in shared}


def _pooled_curve(curves: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [_pooled_step(rows) for rows in zip(*curves, strict=True)]


def _pooled_step(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = [_number(row["mean"]) for row in rows]
    mean = sum(means) / len(means)
    return {
        "step": rows[0]["step"],
        "mean": mean,
        "spread": math.sqrt(sum((m - mean) * (m - mean) for m in means) / (len(means) - 1)),
        "ci95": sum(_number(row["ci95"]) for row in rows) / len(rows),
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else value
