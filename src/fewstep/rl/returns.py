"""From rewards to advantages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fewstep.rl.trajectories import masked_mean

if TYPE_CHECKING:
    from torch import Tensor


def discounted_sums(values: Tensor, discount: float) -> Tensor:
    """Sums over the future, G_t = x_t + discount * G_{t+1}, with nothing after the last.

    Args:
        values: x, `[..., time]`. Of rewards, G are the discounted returns.
        discount: Factor from one time step to the next, in [0, 1].
    """
    future = torch.zeros_like(values[..., 0])
    sums: list[Tensor] = []
    for now in reversed(values.unbind(-1)):
        future = now + discount * future
        sums.append(future)
    return torch.stack(sums[::-1], dim=-1)


def generalized_advantages(rewards: Tensor, values: Tensor, discount: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, equations 11-16).

        A_t = sum_k (discount * gae_lambda)^k delta_{t+k},   delta_t = r_t + discount * V_{t+1} - V_t

    With gae_lambda = 1, the paper's choice, that is the discounted return minus V_t. What follows the horizon, or an
    episode's end, counts as nothing: V is 0 there, as in the paper's code.

    Args:
        rewards: r, `[..., time]`, 0 after an episode's end.
        values: V, `[..., time]`, likewise.
        discount: gamma.
        gae_lambda: lambda.
    """
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    return discounted_sums(rewards + discount * following - values, discount * gae_lambda)


def standardized(advantages: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over the actions of each task; 0 where masked.

    Args:
        advantages: `[tasks, trajectories, time]`.
        mask: 1 where an action was taken.
        eps: Added to the deviation.
    """
    centred = advantages - masked_mean(advantages, mask)[..., None, None]
    deviation = masked_mean(centred.square(), mask).sqrt()[..., None, None]
    return centred / (deviation + eps) * mask
