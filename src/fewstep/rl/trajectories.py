"""What is recorded of episodes, and what an update learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Mdp(NamedTuple):
    """One task, a Markov decision process (section 3.1); a meta-batch of them leads with a `tasks` axis.

    Attributes:
        parameters: What the environment calls the task: a goal, a velocity; `[parameters]`.
        seed: Names the stream of its actions' noise, int64 `[]`. It travels with the task, so the noise does not depend
            on which others are sampled beside it. Random initial states of all tasks come from the first one's.
    """

    parameters: Tensor
    seed: Tensor


class Trajectories(NamedTuple):
    """Episodes of the same length in memory; those that terminated early are masked from there on.

    Attributes:
        observations: Before each action, `[tasks, trajectories, time, features]`.
        actions: `[tasks, trajectories, time, size]`, or indices `[tasks, trajectories, time]`.
        rewards: After each action, `[tasks, trajectories, time]`; 0 where masked.
        mask: 1 where an action was taken, 0 after the episode terminated, `[tasks, trajectories, time]`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor

    def average_return(self) -> Tensor:
        """Sum of rewards, without discount, averaged over trajectories: `[tasks]`."""
        return self.rewards.sum(-1).mean(-1)


class Experience(NamedTuple):
    """Actions and how much better each was than expected; of one task, without its axis, inside losses.

    Attributes:
        observations: `[tasks, trajectories, time, features]`.
        actions: `[tasks, trajectories, time, size]`, or indices `[tasks, trajectories, time]`.
        advantages: `[tasks, trajectories, time]`.
        mask: As in `Trajectories`.
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    mask: Tensor

    def thinned(self, every: int) -> Experience:
        """Every so many-th time step, from the first on, of all trajectories of all tasks."""
        return Experience(*(leaf[:, :, ::every].contiguous() for leaf in self))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over trajectories and time of the actions that were taken: `[..., trajectories, time]` to `[...]`."""
    return (values * mask).sum((-2, -1)) / mask.sum((-2, -1))
