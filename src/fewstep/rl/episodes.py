"""Episodes that were recorded elsewhere: on a robot, in a simulator of one's own, in one Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import EpisodeError, NonFiniteError
from fewstep.rl.environment import Continuous
from fewstep.rl.trajectories import Trajectories

if TYPE_CHECKING:
    from fewstep.rl.environment import ActionSpace, Environment


class Episode(NamedTuple):
    """One episode as it happened; arrays will do.

    Attributes:
        observations: Before each action, `[time, features]`.
        actions: As the policy gave them, before any clipping or scaling, `[time, size]`, or indices `[time]`.
        rewards: After each action, `[time]`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor


Record: TypeAlias = Callable[[nn.Module], Sequence[Episode]]
"""Acts with a policy in the one task at hand, and gives back the episodes."""


def as_trajectories(episodes: Any, environment: Environment, like: Tensor) -> Trajectories:
    """Episodes of one task as trajectories `[1, episodes, time, ...]`, masked where they are shorter than the longest.

    Args:
        episodes: What a `Record` gave.
        environment: Says what observations and actions are like.
        like: Gives the type and device that the policy computes in.

    Raises:
        EpisodeError: There is none, or one is of another shape.
        NonFiniteError: Something in one is infinite or nan.
    """
    if not isinstance(episodes, Sequence) or isinstance(episodes, Episode) or not episodes:
        came = "none" if isinstance(episodes, Sequence) and not episodes else type(episodes).__name__
        raise EpisodeError(
            f"What records must give back a list of at least one `fewstep.rl.episodes.Episode`: got {came}."
        )
    checked = [_checked(episode, number, environment, like) for number, episode in enumerate(episodes)]
    longest = max(len(episode.rewards) for episode in checked)
    mask = torch.zeros(len(checked), longest).to(like)
    for row, episode in zip(mask, checked, strict=True):
        row[: len(episode.rewards)] = 1.0
    leaves = (nn.utils.rnn.pad_sequence(list(leaf), batch_first=True) for leaf in zip(*checked, strict=True))
    return Trajectories(*(leaf[None] for leaf in (*leaves, mask)))


def _checked(episode: Any, number: int, environment: Environment, like: Tensor) -> Episode:
    where = f"episode {number}"
    if not isinstance(episode, Sequence) or len(episode) != len(Episode._fields):  # any three in this order will do
        raise EpisodeError(
            f"An episode has observations, actions and rewards: got {type(episode).__name__} for {where}. Make it "
            "with `fewstep.rl.episodes.Episode`."
        )
    observations, actions, rewards = (_tensor(part, where) for part in episode)
    time = len(rewards) if rewards.dim() else 0
    wanted = {
        "observations": (observations, (time, environment.observation_size)),
        "actions": (actions, _shape(environment.actions, time)),
        "rewards": (rewards, (time,)),
    }
    for name, (values, shape) in wanted.items():
        if not time or values.shape != shape:
            raise EpisodeError(
                f"An episode has at least one time step, with an observation before it, an action and a reward: "
                f"{name} must be {list(shape)} where there are {time} rewards, got {list(values.shape)} in {where}. "
                "Leave out the last observation, after which nothing was done."
            )
        if not values.isfinite().all():
            raise NonFiniteError(f"{name.capitalize()} must be finite: got one that is not in {where}. Leave it out.")
    if isinstance(environment.actions, Continuous):
        return Episode(observations.to(like), actions.to(like), rewards.to(like))
    chosen, count = actions.long(), environment.actions.count
    if not ((chosen == actions) & (chosen >= 0) & (chosen < count)).all():
        raise EpisodeError(
            f"Actions are indices of choices, whole numbers below {count}: got {actions.tolist()} in {where}. Give "
            "them as the policy gave them."
        )
    return Episode(observations.to(like), chosen.to(like.device), rewards.to(like))


def _tensor(values: Any, where: str) -> Tensor:
    try:
        return torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EpisodeError(
            f"Observations, actions and rewards are tensors or arrays of numbers: got {type(values).__name__} in "
            f"{where}. Stack them along time."
        ) from error


def _shape(actions: ActionSpace, time: int) -> tuple[int, ...]:
    return (time, actions.size) if isinstance(actions, Continuous) else (time,)
