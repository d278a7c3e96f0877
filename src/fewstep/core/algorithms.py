"""Meta-learning algorithms by their names in the literature: one line each.

Each is a point in one space: an inner-loop rule, a number of inner steps while training, and what is descended outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from fewstep.core.expect import expect_number, expect_steps
from fewstep.core.meta import Displacement, QueryGradient
from fewstep.core.rules import Detached, Except, LearnedSgd, Only, Sgd, UpdateRule, expect_rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewstep.core.types import LossFn, TaskGradient

Patterns = str | tuple[str, ...]


@final
@dataclass(frozen=True)
class Algorithm:
    """A meta-learning algorithm.

    Attributes:
        rule: How one inner gradient becomes one inner step.
        steps: Inner steps while training; at test there may be any number.
        gradient: What the outer loop descends: `QueryGradient` or `Displacement`.
    """

    rule: UpdateRule
    steps: int
    gradient: Callable[[LossFn, LossFn, UpdateRule, int], TaskGradient] = QueryGradient

    def __post_init__(self) -> None:
        expect_rule(self.rule)
        expect_steps(self.steps)


def expect_algorithm(algorithm: object) -> None:
    """See that something is an algorithm.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(algorithm, Algorithm):
        raise ValueError(
            "An algorithm is what a function such as fewstep.maml makes of an inner rule, "
            f"fewstep.maml(fewstep.Sgd(0.01)): got {algorithm!r}."
        )


def maml(rule: UpdateRule, steps: int = 1) -> Algorithm:
    """MAML (Finn et al. 2017): min_theta sum_i L_i(theta - alpha grad L_i(theta)), exactly differentiated."""
    return Algorithm(rule, steps)


def fomaml(rule: UpdateRule, steps: int = 1) -> Algorithm:
    """First-order MAML (Finn et al. 2017, section 5.2): the same objective, inner gradients taken as constants."""
    return Algorithm(Detached(rule), steps)


def anil(rule: UpdateRule, steps: int = 1, head: Patterns = "head.*") -> Algorithm:
    """ANIL (Raghu et al. 2020): almost no inner loop, only the head adapts."""
    return Algorithm(Only(head, rule), steps)


def boil(rule: UpdateRule, steps: int = 1, head: Patterns = "head.*") -> Algorithm:
    """BOIL (Oh et al. 2021): body only inner loop, all but the head adapts."""
    return Algorithm(Except(head, rule), steps)


def meta_sgd(inner_lr: float, steps: int = 1) -> Algorithm:
    """Meta-SGD (Li et al. 2017): theta' = theta - a * grad L(theta), learning a elementwise beside theta."""
    expect_number("inner_lr", inner_lr)  # its rule is given: a rate is all that there is to choose
    return Algorithm(LearnedSgd(inner_lr, per="parameter"), steps)


def reptile(rule: UpdateRule, steps: int = 5) -> Algorithm:
    """Reptile (Nichol et al. 2018): move theta towards theta'_i, the parameters after several steps."""
    return Algorithm(rule, steps, Displacement)


def joint(rule: UpdateRule | None = None) -> Algorithm:
    """Joint training (the paper's "pretrained"): no inner step in training; `rule` fine-tunes at test."""
    return Algorithm(rule or Sgd(0.01), 0)
