"""What every family of environments offers: episodes of many tasks, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Continuous:
    """Actions that are vectors; policies act in [-1, 1], which the environment maps to its own range, clipping.

    Attributes:
        size: Elements of one action.
    """

    size: int


@dataclass(frozen=True)
class Discrete:
    """Actions that are one of a few choices.

    Attributes:
        count: How many there are to choose from; an action is an index below it.
    """

    count: int


ActionSpace: TypeAlias = Continuous | Discrete


class Transition(NamedTuple):
    """What one action leads to, in every episode.

    Attributes:
        observations: After the action, `[tasks, trajectories, features]`.
        rewards: `[tasks, trajectories]`.
        terminated: Whether the episode has ended by its own rules, `[tasks, trajectories]`, bool. The horizon ends
            the others, and is no affair of the environment.
    """

    observations: Tensor
    rewards: Tensor
    terminated: Tensor


class Episodes(Protocol):
    """Episodes that run at the same time, `[tasks, trajectories]` of them."""

    def step(self, actions: Tensor) -> Transition:
        """Act once in every episode.

        Args:
            actions: `[tasks, trajectories, size]`, or indices `[tasks, trajectories]` where they are discrete.

        Returns:
            What they lead to. Of an episode that has terminated, whatever is finite: it is masked by the caller.
        """
        ...


class Environment(Protocol):
    """A distribution of tasks p(T) of one kind, each a Markov decision process (section 3.1).

    A task is a vector of numbers (a goal, a velocity), so tasks of all kinds are stored, compared and replayed
    alike.
    """

    @property
    def observation_size(self) -> int:
        """Features of one observation."""
        ...

    @property
    def actions(self) -> ActionSpace:
        """What a policy chooses from."""
        ...

    @property
    def horizon(self) -> int:
        """H, the time steps after which an episode ends."""
        ...

    def sample_tasks(self, num_tasks: int, generator: torch.Generator) -> Tensor:
        """Draw tasks, `[tasks, parameters]`; the same stream gives the same tasks."""
        ...

    def reset(self, tasks: Tensor, trajectories: int, generator: torch.Generator) -> tuple[Episodes, Tensor]:
        """Begin episodes.

        Args:
            tasks: `[tasks, parameters]`.
            trajectories: Episodes of each.
            generator: A CPU stream, of the initial states and of all that is random in the environment.

        Returns:
            The episodes and their first observations `[tasks, trajectories, features]`.
        """
        ...
