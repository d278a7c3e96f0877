"""What is inside an adaptation: the two views of Finn et al. 2017, section 2.2, as measurements.

MAML "builds an internal representation that is broadly suitable for many tasks" (feature learning), and it maximises
"the sensitivity of the loss functions of new tasks with respect to the parameters" (dynamical systems). Both are
measured by the inner loop itself, restricted to a part of the parameters with `Only` and `Except`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.core.layers import by_layer, escaped
from fewstep.core.rules import Except, Only, UpdateRule, selected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fewstep.core.types import Task
    from fewstep.learners.supervised import SupervisedLearner
    from fewstep.names import Normalization


def sensitivity(
    learner: SupervisedLearner, tasks: Task | Sequence[Task], steps: int, normalization: Normalization | None = None
) -> dict[str, Tensor]:
    """How much the loss of new tasks answers to each layer: what is gained where it alone takes the inner steps.

    With L the query loss and theta_l^(k) the parameters after k inner steps of layer l, all others as they were:

        gain_l^(k) = L(theta) - L(theta_l^(k))

    It is measured, not linearised: to first order in alpha one step of gradient descent gains
    alpha <grad_l L_support(theta), grad_l L(theta)>, so a small step gains much where the loss is sensitive to the
    layer in a direction that support and query set agree on.

    Args:
        learner: The initialisation, the rule and the loss.
        tasks: As for `SupervisedLearner.evaluate`.
        steps: S, inner steps.
        normalization: Policy for the query sets, by default the learner's own.

    Returns:
        For each layer that the rule adapts, `[tasks, S + 1]`.
    """
    gains: dict[str, Tensor] = {}
    for layer, names in by_layer(learner.meta.model).items():
        alone = Only(escaped(names), learner.algorithm.rule)
        if selected(learner.meta.model, alone):
            losses = learner.evaluate(tasks, steps, normalization=normalization, rule=alone)["loss"]
            gains[layer] = losses[:, :1] - losses
    return gains


def feature_learning(
    learner: SupervisedLearner,
    tasks: Task | Sequence[Task],
    steps: int,
    head: Sequence[str],
    normalization: Normalization | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Query metrics where everything adapts, the head alone (Raghu et al. 2020), and everything but the head.

    Where the representation suits new tasks as it is, the head alone gains about as much as everything.

    Args:
        learner: The initialisation, the rule and the loss.
        tasks: As for `SupervisedLearner.evaluate`.
        steps: S, inner steps.
        head: Names of the head's parameters.
        normalization: Policy for the query sets, by default the learner's own.

    Returns:
        For "everything", "head" and "rest": each metric, `[tasks, S + 1]`.
    """
    rule = learner.algorithm.rule
    parts: dict[str, UpdateRule] = {
        "everything": rule,
        "head": Only(escaped(head), rule),
        "rest": Except(escaped(head), rule),
    }
    return {part: _curves(learner, tasks, steps, normalization, part_rule) for part, part_rule in parts.items()}


def _curves(
    learner: SupervisedLearner,
    tasks: Task | Sequence[Task],
    steps: int,
    normalization: Normalization | None,
    rule: UpdateRule,
) -> dict[str, Tensor]:
    """As `SupervisedLearner.evaluate`; a rule that adapts nothing leaves every metric as it was."""
    if selected(learner.meta.model, rule):
        return learner.evaluate(tasks, steps, normalization=normalization, rule=rule)
    before = learner.evaluate(tasks, 0, normalization=normalization)
    return {name: values.expand(-1, steps + 1) for name, values in before.items()}
