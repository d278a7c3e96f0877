"""What policy gradients descend, for one task: functions of distributions and experience."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fewstep.rl.trajectories import masked_mean

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.rl.policy import Distribution
    from fewstep.rl.trajectories import Experience

D = TypeVar("D", bound="Distribution")


def reinforce_loss(policy: Distribution, experience: Experience) -> Tensor:
    """The inner loss: -mean_t [log pi(a_t | o_t) A_t] (equation 4; Williams 1992).

    Its gradient is that of the expected return, where the experience was sampled with this very policy.

    Args:
        policy: At the observations.
        experience: Of one task.
    """
    return -masked_mean(policy.log_prob(experience.actions) * experience.advantages, experience.mask)


def surrogate_loss(policy: D, behaviour: D, experience: Experience) -> Tensor:
    """The outer loss: -mean_t [pi(a_t | o_t) / pi_old(a_t | o_t) A_t] (Schulman et al. 2015, equation 14).

    Args:
        policy: At the observations.
        behaviour: The policy that sampled them, a constant.
        experience: Of one task.
    """
    ratio = (policy.log_prob(experience.actions) - behaviour.log_prob(experience.actions)).exp()
    return -masked_mean(ratio * experience.advantages, experience.mask)


def mean_kl(behaviour: D, policy: D, mask: Tensor) -> Tensor:
    """mean_t KL(pi_old(. | o_t) || pi(. | o_t)): how far a policy is from the one that sampled.

    Args:
        behaviour: The policy that sampled the observations, a constant.
        policy: Another, at the same observations.
        mask: 1 where an action was taken.
    """
    return masked_mean(behaviour.kl(policy), mask)
