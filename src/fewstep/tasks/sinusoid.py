"""Sinusoid regression (Finn et al. 2017, section 5.1): y = A sin(x - phi), one amplitude and phase per task."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import torch

from fewstep.core.rng import generator as stream
from fewstep.core.types import Batch, Task
from fewstep.tasks.task import Curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, math.pi)
INPUT = (-5.0, 5.0)


class _Uniform:
    """U[low, high], its bounds in tensors: with Python's numbers, scaling would take as long again as drawing."""

    def __init__(self, low: float | Sequence[float], high: float | Sequence[float]) -> None:
        lowest, highest = (torch.tensor(end, dtype=torch.float64)[..., None, None, None] for end in (low, high))
        self.low, self.span = lowest.float(), (highest - lowest).float()

    def draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        return torch.rand(shape, generator=generator).mul_(self.span).add_(self.low)


_FUNCTIONS, _INPUTS = _Uniform(*zip(AMPLITUDE, PHASE, strict=True)), _Uniform(*INPUT)


@final
@dataclass(frozen=True)
class Sinusoid:
    """Tasks y = A sin(x - phi), A ~ U[0.1, 5], phi ~ U[0, pi], x ~ U[-5, 5].

    Attributes:
        shots: K, support examples.
        queries: Query examples.
        reveal: Append amplitude and phase to every input: the paper's oracle.
        pool: Draw the functions from a fixed pool of this many, in order, with fresh examples each time; None draws
            from the whole distribution.
        pool_seed: Which pool.
    """

    shots: int = 10
    queries: int = 10
    reveal: bool = False
    pool: int | None = None
    pool_seed: int = field(default=0, kw_only=True)

    def sample(self, num_tasks: int, generator: Generator) -> Task:
        """Draw tasks: inputs `[tasks, examples, 1]` (or 3 with `reveal`), targets `[tasks, examples, 1]`."""
        functions = self._functions(num_tasks, generator)
        inputs = _INPUTS.draw((num_tasks, self.shots + self.queries, 1), generator)
        batch = self._batch(inputs, functions)
        k = self.shots
        return Task(Batch(batch.inputs[:, :k], batch.targets[:, :k]), Batch(batch.inputs[:, k:], batch.targets[:, k:]))

    def curve(self, generator: Generator, points: int = 200) -> Curve:
        """Draw one task, with its true function on a grid over the whole input range."""
        functions = self._functions(1, generator)
        support = self._batch(_INPUTS.draw((1, self.shots, 1), generator), functions)
        query = self._batch(_INPUTS.draw((1, self.queries, 1), generator), functions)
        grid = self._batch(torch.linspace(*INPUT, points).view(1, points, 1), functions)
        task = Task(Batch(support.inputs[0], support.targets[0]), Batch(query.inputs[0], query.targets[0]))
        return Curve(task, grid.inputs[0], grid.targets[0])

    def _functions(self, num_tasks: int, generator: Generator) -> Tensor:
        """Amplitudes and phases `[2, tasks, 1, 1]`."""
        if self.pool is None:
            return _FUNCTIONS.draw((2, num_tasks, 1, 1), generator)
        pool = _FUNCTIONS.draw((2, self.pool, 1, 1), stream(self.pool_seed, "sinusoid pool"))
        return pool[:, torch.arange(num_tasks) % self.pool]

    def _batch(self, inputs: Tensor, functions: Tensor) -> Batch:
        amplitude, phase = functions
        targets = torch.sin(inputs - phase).mul_(amplitude)
        if self.reveal:
            inputs = torch.cat([inputs, *(value.expand_as(inputs) for value in functions)], dim=-1)
        return Batch(inputs, targets)
