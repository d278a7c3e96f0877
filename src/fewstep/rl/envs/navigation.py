"""Navigation in the plane to a goal that the agent does not see (section 5.3, "2D Navigation")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from fewstep.rl.environment import Continuous, Transition

if TYPE_CHECKING:
    from torch import Generator, Tensor

_REACH = 0.1
"""Distance along each axis that the largest action goes."""
_NEAR = 0.01
"""Distance from the goal along each axis below which an episode ends."""


@final
@dataclass(frozen=True)
class Navigation:
    """A point starts at the origin and moves by at most 0.1 along each axis; its reward is -|s - g|, after the move.

    A task is a goal g from the square [-0.5, 0.5]^2. The observation is the position s. An episode ends where both
    coordinates are within 0.01 of the goal's. The distance is not squared: the paper says so, its code and its numbers
    do not (a point that stands still would get -17 over 100 steps; the paper's, before adaptation, gets -40).

    Attributes:
        horizon: Time steps.
    """

    horizon: int = 100

    @property
    def observation_size(self) -> int:
        """The position."""
        return 2

    @property
    def actions(self) -> Continuous:
        """A step along x and y."""
        return Continuous(2)

    def sample_tasks(self, num_tasks: int, generator: Generator) -> Tensor:
        """Goals `[tasks, 2]`."""
        return torch.rand(num_tasks, 2, generator=generator) - 0.5

    def reset(self, tasks: Tensor, trajectories: int, generator: Generator) -> tuple[_Walks, Tensor]:  # noqa: ARG002
        """Every walk begins at the origin."""
        start = torch.zeros(len(tasks), trajectories, 2, dtype=tasks.dtype, device=tasks.device)
        return _Walks(tasks[:, None], start), start


@final
class _Walks:
    def __init__(self, goals: Tensor, positions: Tensor) -> None:
        self._goals, self._positions = goals, positions

    def step(self, actions: Tensor) -> Transition:
        self._positions = self._positions + _REACH * actions.clamp(-1, 1)
        missing = self._positions - self._goals
        terminated = (missing.abs() < _NEAR).all(-1)
        return Transition(self._positions, -missing.norm(dim=-1), terminated)
