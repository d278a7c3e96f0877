"""Bandits: the smallest tasks from which a policy can learn anything. Their optimum is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from fewstep.rl.environment import Discrete, Transition

if TYPE_CHECKING:
    from torch import Generator, Tensor


@final
@dataclass(frozen=True)
class Bandit:
    """Several arms, of which one pays 1 at every pull and the others nothing; a task says which.

    Without knowing the task, no policy gets more than horizon / arms on average; knowing it, `horizon`.

    Attributes:
        arms: How many.
        horizon: Pulls in an episode.
    """

    arms: int = 5
    horizon: int = 10

    @property
    def observation_size(self) -> int:
        """One number, always 1: there is nothing to see."""
        return 1

    @property
    def actions(self) -> Discrete:
        """Which arm to pull."""
        return Discrete(self.arms)

    def sample_tasks(self, num_tasks: int, generator: Generator) -> Tensor:
        """The arm that pays, `[tasks, 1]`."""
        return torch.randint(self.arms, (num_tasks, 1), generator=generator).float()

    def reset(self, tasks: Tensor, trajectories: int, generator: Generator) -> tuple[_Pulls, Tensor]:  # noqa: ARG002
        """Begin to pull."""
        nothing = torch.ones(len(tasks), trajectories, 1, dtype=tasks.dtype, device=tasks.device)
        return _Pulls(tasks, nothing), nothing


@final
class _Pulls:
    def __init__(self, paying: Tensor, observations: Tensor) -> None:
        self._paying, self._observations = paying, observations

    def step(self, actions: Tensor) -> Transition:
        rewards = (actions == self._paying).to(self._observations)
        return Transition(self._observations, rewards, torch.zeros_like(rewards, dtype=torch.bool))
