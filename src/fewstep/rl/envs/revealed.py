"""The paper's oracle: an environment whose observations tell the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch

from fewstep.core.rng import generator
from fewstep.rl.environment import check_tasks

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fewstep.rl.environment import ActionSpace, Environment, Episodes, Transition


@final
class Revealed:
    """Any environment, with the task's parameters appended to every observation.

    Args:
        environment: The one to wrap; its tasks stay what they are.

    Attributes:
        environment: The same.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._parameters = check_tasks(environment.sample_tasks(1, generator(0, "revealed")), 1, environment).shape[-1]

    @property
    def observation_size(self) -> int:
        """Of the observation and the task together."""
        return self.environment.observation_size + self._parameters

    @property
    def actions(self) -> ActionSpace:
        """As before."""
        return self.environment.actions

    @property
    def horizon(self) -> int:
        """As before."""
        return self.environment.horizon

    def sample_tasks(self, num_tasks: int, generator: Generator) -> Tensor:
        """As before."""
        return self.environment.sample_tasks(num_tasks, generator)

    def reset(self, tasks: Tensor, trajectories: int, generator: Generator) -> tuple[Episodes, Tensor]:
        """As before, with the task in sight."""
        episodes, observations = self.environment.reset(tasks, trajectories, generator)
        shown = _Shown(episodes, tasks)
        return shown, shown.with_task(observations)


@final
class _Shown:
    def __init__(self, episodes: Episodes, tasks: Tensor) -> None:
        self._episodes, self._tasks = episodes, tasks

    def step(self, actions: Tensor) -> Transition:
        transition = self._episodes.step(actions)
        return transition._replace(observations=self.with_task(transition.observations))

    def with_task(self, observations: Tensor) -> Tensor:
        task = self._tasks[:, None].expand(*observations.shape[:2], -1).to(observations)
        return torch.cat([observations, task], dim=-1)
