"""Algorithm 1, lines 5-6: adapt parameters to one task by gradient steps on its support set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fewstep.core.rules import State, UpdateRule, checked_step, selected
from fewstep.core.trees import detach

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from fewstep.core.types import LossFn, MetaParams, Params


def support_gradient(loss: LossFn, params: Params, data: Any, rule: UpdateRule) -> Params:
    """The gradient of the support loss, grad_theta L(theta) (Algorithm 1, line 5).

    Args:
        loss: Scalar loss of parameters on data.
        params: theta, all parameters of the model.
        data: What the loss is taken on, usually the support set.
        rule: Says which parameters adapt, and whether the outer gradient flows through this one.

    Returns:
        The gradient with respect to the parameters that the rule selects.
    """
    adapting = selected(params, rule)
    # A first-order rule differentiates at constants: the outer loop then records nothing of the inner gradient.
    point = adapting if rule.second_order else detach(adapting)
    fixed = params if rule.second_order else detach(params)

    def support_loss(chosen: Params) -> Tensor:
        return loss(fixed | chosen, data)

    return torch.func.grad(support_loss)(point)


def updated(
    params: Params, grads: Params, rule: UpdateRule, state: State, learned: Params, step: int
) -> tuple[Params, State]:
    """The parameters after one step along a gradient, theta' = theta - alpha g (Algorithm 1, line 6).

    Args:
        params: theta, all parameters of the model; those that the rule does not select stay as they are.
        grads: g, from `support_gradient`.
        rule: How the gradient becomes a step.
        state: The rule's state.
        learned: The rule's learnable hyper-parameters.
        step: Index of this step, from 0.

    Returns:
        theta' and the rule's new state.
    """
    adapted, state = checked_step(rule, rule(selected(params, rule), grads, state, learned, step))
    return params | adapted, state


def inner_step(
    loss: LossFn, params: Params, data: Any, rule: UpdateRule, state: State, learned: Params, step: int
) -> tuple[Params, State]:
    """One inner gradient step: theta' = theta - alpha grad_theta L(theta) (equation 1).

    Takes the arguments of `support_gradient` and `updated`, and returns what the latter does.
    """
    return updated(params, support_gradient(loss, params, data, rule), rule, state, learned, step)


def adaptation_path(loss: LossFn, meta: MetaParams, batches: Iterable[Any], rule: UpdateRule) -> Iterator[Params]:
    """Every theta^(k) of the inner loop, from theta^(0), the initialisation itself.

    Args:
        loss: Scalar support loss of parameters on one of the batches.
        meta: The initialisation and the rule's learnable hyper-parameters.
        batches: Data for each step. Supervised learning repeats the support set; reinforcement learning passes fresh
            trajectories sampled with the parameters that the iterator yielded last.
        rule: The inner-loop rule.

    Yields:
        The parameters before the first step and after each.
    """
    params, state = meta.model, rule.init(selected(meta.model, rule))
    yield params
    for step, data in enumerate(batches):
        params, state = inner_step(loss, params, data, rule, state, meta.rule, step)
        yield params


def adapt(loss: LossFn, meta: MetaParams, batches: Iterable[Any], rule: UpdateRule) -> Params:
    """The adapted parameters theta': the last element of `adaptation_path`, whose arguments it takes."""
    params = meta.model
    for params in adaptation_path(loss, meta, batches, rule):  # noqa: B007
        pass
    return params
