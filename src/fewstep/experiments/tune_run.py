"""`fewstep tune`: which way to execute a recipe is fastest on this machine."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fewstep.core.rng import generator
from fewstep.errors import RecipeError
from fewstep.experiments.build import build_learner
from fewstep.experiments.data import find_data
from fewstep.experiments.execution import checked_device, keep_compiled
from fewstep.experiments.recipe_files import as_text, load_recipe
from fewstep.experiments.runs import computing_as, shots_and_queries
from fewstep.experiments.sections import Averaging, ReinforceLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from fewstep.experiments.config import Recipe
    from fewstep.tasks.task import TaskDistribution

_LEAST = 3
"""Meta-iterations in a round, however long they take."""
_ROUNDS = 2


class Timed(NamedTuple):
    """A way to execute a recipe, and what it took.

    Attributes:
        settings: Of the recipe, as for `--set`.
        first: Seconds until the first meta-update was done, compiling included.
        later: Seconds of a further one, the median.
        whole: Seconds that all of the recipe's iterations would take so, without validation.
    """

    settings: tuple[str, ...]
    first: float
    later: float
    whole: float


def tune(
    recipe: str | Path | Mapping[str, Any],
    *,
    settings: Iterable[str] | Mapping[str, Any] = (),
    data: str | Path | None = None,
    device: str = "cpu",
    rounded: bool = False,
    seconds: float = 3.0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Timed]:
    """Time each way to execute a recipe; all of them compute the same, unless rounding is allowed.

    Args:
        recipe: A bundled name, a TOML file, or the values of a recipe.
        settings: `key=value` strings over the recipe; what they say of its execution is not varied.
        data: As for `train`.
        device: Where to compute.
        rounded: Whether to try products in bfloat16 too.
        seconds: Timed in each of two rounds, so that a slow minute of the machine meets all ways.
        progress: Told what is next.

    Returns:
        The ways, the one that ends soonest first.

    Raises:
        FewstepError: The recipe or its data are at fault, or it needs objects from Python.
    """
    settings = as_text(settings)
    base = load_recipe(recipe, settings)
    if "custom" in (base.tasks.kind, base.model.kind, base.loss.kind, base.algorithm.kind):
        raise RecipeError(
            f"Only what a recipe describes can be tuned: {base.name} takes a model, tasks, a loss or an algorithm "
            "from Python. Time `learner.step` there."
        )
    device = checked_device(device)
    loaded = find_data(base, None, data, None, device)
    tasks = loaded.distribution("train", *shots_and_queries(base))
    keep_compiled()
    runs: dict[tuple[str, ...], tuple[_Execution, list[float]]] = {}
    for candidate in _candidates(base, settings, device, rounded=rounded):
        progress(", ".join(candidate))
        asked = load_recipe(recipe, [*settings, *candidate])
        learner = build_learner(asked, environment=loaded.environment, device=device, ragged=loaded.ragged)
        execution = _Execution(asked, learner, tasks)
        runs[candidate] = execution, [execution.seconds()]
    for _ in range(_ROUNDS):
        for candidate, (execution, taken) in runs.items():
            progress(", ".join(candidate))
            end, least = time.perf_counter() + seconds, len(taken) + _LEAST
            while len(taken) < least or time.perf_counter() < end:
                taken.append(execution.seconds())
    timed = [_timed(candidate, taken, base.meta.iterations) for candidate, (_, taken) in runs.items()]
    return sorted(timed, key=lambda each: each.whole)


class _Execution:
    """A learner, and the next of its meta-iterations."""

    def __init__(self, recipe: Recipe, learner: Any, tasks: TaskDistribution) -> None:
        self._recipe, self._learner, self._tasks = recipe, learner, tasks
        self._count = 0

    def seconds(self) -> float:
        """What one takes, on tasks of its own as in training: they may be of sizes that were not seen before."""
        batch = self._tasks.sample(self._recipe.meta.batch_size, generator(self._recipe.seed, "tune", self._count))
        self._count += 1
        with computing_as(self._recipe):
            start = time.perf_counter()
            self._learner.step(batch)  # which reads its loss, and so waits for the device
            return time.perf_counter() - start


def _candidates(base: Recipe, settings: Iterable[str], device: str, *, rounded: bool) -> Iterator[tuple[str, ...]]:
    fixed = {setting.replace(" ", "").partition("=")[0] for setting in settings}
    choices: dict[str, list[Any]] = {}
    if device == "cpu":
        choices["execution.threads"] = sorted({1, _cores(), torch.get_num_threads()})
    if not isinstance(base.algorithm, Averaging):
        choices["execution.compile"] = ["false", "true"]
    if not isinstance(base.algorithm, Averaging) and not isinstance(base.loss, ReinforceLoss):
        choices["execution.precision"] = ["float32", *(["tf32"] if device != "cpu" else []), "bf16"] if rounded else []
    varied = {key: values for key, values in choices.items() if values and not {key, "execution"} & fixed}
    for values in itertools.product(*varied.values()):
        yield tuple(f"{key}={value}" for key, value in zip(varied, values, strict=True))


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _timed(settings: tuple[str, ...], taken: list[float], iterations: int) -> Timed:
    first, *rest = taken
    later = statistics.median(rest)
    return Timed(settings, first, later, first + later * max(iterations - 1, 0))
