"""The baseline that advantages are measured against: linear, fitted anew to every task's trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.rl.trajectories import Trajectories

_RIDGE, _ATTEMPTS = 1e-5, 5


def linear_baseline(trajectories: Trajectories, returns: Tensor) -> Tensor:
    """Expected returns V(o_t, t), the ridge regression of returns on features of each task's own trajectories.

        w = (F^T F + ridge I)^-1 F^T G

    With F as of Duan et al. 2016: observations clipped to +-10, their squares, t, t^2 and t^3 in hundreds of steps,
    and 1. Where F^T F + ridge I of a task is not positive definite to rounding, its ridge grows tenfold, up to four
    times; where that does not help, w = 0.

    Args:
        trajectories: Of all tasks.
        returns: G, discounted, `[tasks, trajectories, time]`.

    Returns:
        V, `[tasks, trajectories, time]`; 0 where masked.
    """
    seen = _features(trajectories.observations).double() * trajectories.mask[..., None]
    rows, targets = seen.flatten(1, 2), returns.double().flatten(1)[..., None]
    gram, moment = rows.mT @ rows, rows.mT @ targets
    return (rows @ _ridge_solution(gram, moment)).squeeze(-1).view_as(returns).to(returns)


def _features(observations: Tensor) -> Tensor:
    """`[tasks, trajectories, time, 2 * features + 4]`."""
    clipped = observations.clamp(-10, 10)
    time = torch.arange(observations.shape[-2]).to(observations) / 100
    of_time = torch.stack([time, time**2, time**3, torch.ones_like(time)], dim=-1)
    return torch.cat([clipped, clipped**2, of_time.expand(*observations.shape[:-1], 4)], dim=-1)


def _ridge_solution(gram: Tensor, moment: Tensor) -> Tensor:
    """By Cholesky's factors: half the work of LU's, on which one build of MKL hangs when several threads share it."""
    ridge = torch.full_like(gram[:, :1, :1], _RIDGE)  # of each task
    factor, failed = torch.linalg.cholesky_ex(_with_ridge(gram, ridge))
    for _ in range(_ATTEMPTS - 1):
        if not failed.any():
            break
        ridge = torch.where(failed[:, None, None] > 0, 10 * ridge, ridge)
        factor, failed = torch.linalg.cholesky_ex(_with_ridge(gram, ridge))
    return torch.where(failed[:, None, None] > 0, 0.0, torch.cholesky_solve(moment, factor))


def _with_ridge(gram: Tensor, ridge: Tensor) -> Tensor:
    return gram + ridge * torch.eye(gram.shape[-1]).to(gram)
