"""Episodes of one Gymnasium environment: a policy adapts to the robot or the simulator that is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fewstep.core.rng import generator
from fewstep.errors import FewstepError
from fewstep.rl.environment import Continuous
from fewstep.rl.envs.slots import act, begin
from fewstep.rl.envs.spaces import Spaces
from fewstep.rl.episodes import Episode
from fewstep.rl.policy import draw_noise

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewstep.rl.envs.slots import Floats
    from fewstep.rl.episodes import Record
    from fewstep.rl.policy import Distribution


def recorder(environment: Any, episodes: int, horizon: int, seed: int = 0) -> Record:
    """A function that acts in one Gymnasium environment with the policy that it is given, for `learner.adapt`.

    Args:
        environment: A Gymnasium environment: the one task there is. It is reset, and stays open.
        episodes: How many to play for each step.
        horizon: Time steps after which an episode is left, if it has not ended before.
        seed: Of the first reset, and of the policy's actions.

    Raises:
        FewstepError: Its spaces are none that a policy can act in, or there is nothing to play.
    """
    if episodes < 1 or horizon < 1:
        raise FewstepError(
            f"A recorder plays at least one episode of at least one time step: got {episodes} and {horizon}."
        )
    spaces = Spaces(environment)
    stream = generator(seed, "recorder")
    first_seed: int | None = seed  # later resets go on from there

    def record(policy: nn.Module) -> list[Episode]:
        nonlocal first_seed
        played: list[Episode] = []
        for _ in range(episodes):
            first = begin(environment, first_seed)
            first_seed = None
            played.append(_played(environment, spaces, policy, first, horizon, stream))
        return played

    return record


@torch.no_grad()
def _played(
    environment: Any, spaces: Spaces, policy: nn.Module, observation: Floats, horizon: int, stream: torch.Generator
) -> Episode:
    seen: list[torch.Tensor] = []
    done: list[torch.Tensor] = []
    earned: list[float] = []
    like = next(policy.parameters(), torch.zeros(()))
    for _ in range(horizon):
        # A copy: an environment may change its own state in place.
        seen.append(torch.tensor(observation, dtype=like.dtype, device=like.device))
        choice = _choice(policy, seen[-1], spaces)
        done.append(choice.sample(draw_noise(spaces.actions, (), stream).to(choice.mode.device)))
        observation, reward, ended = act(environment, spaces.native(done[-1]))
        earned.append(reward)
        if ended:
            break
    return Episode(torch.stack(seen), torch.stack(done), torch.tensor(earned))


def _choice(policy: nn.Module, observation: Tensor, spaces: Spaces) -> Distribution:
    """What the policy says, if it is one for this environment."""
    came = "none for such observations"
    try:
        choice: Distribution = policy(observation)
        came = f"actions {list(choice.mode.shape)}"
        if choice.mode.shape == ((spaces.actions.size,) if isinstance(spaces.actions, Continuous) else ()):
            return choice
    except RuntimeError as error:
        came = f"{came} ({error})"
    raise FewstepError(
        f"A policy acts in an environment whose observations and actions are like those it was trained with: this one "
        f"has {spaces.observation_size} features and {spaces.actions}, and the policy gives {came}. Wrap the "
        "environment, so that they agree."
    )
