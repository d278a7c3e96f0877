from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.func import grad

from fewstep.core.adapt import adapt, adaptation_path, inner_step
from fewstep.core.rules import Adam, Detached, Only, Sgd
from fewstep.core.types import MetaParams

from .problems import DTYPE, assert_same, draw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fewstep.core.types import Params

LR = 0.1
CURVATURE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DTYPE)
MINIMUM = torch.tensor([1.0, -2.0], dtype=DTYPE)
START = torch.tensor([3.0, 4.0], dtype=DTYPE)


def quadratic(params: Params, minimum: Tensor) -> Tensor:
    offset = params["theta"] - minimum
    return 0.5 * offset @ CURVATURE @ offset


def closed_form(steps: int, theta: Tensor = START) -> Tensor:
    """theta^(k) = c + (I - lr A)^k (theta - c)."""
    contraction = torch.eye(2, dtype=DTYPE) - LR * CURVATURE
    return MINIMUM + torch.linalg.matrix_power(contraction, steps) @ (theta - MINIMUM)


def meta(**params: Tensor) -> MetaParams:
    return MetaParams(params, {})


def test_one_inner_step_on_a_quadratic_by_hand() -> None:
    # gradient A (theta - c) = [[2, .5], [.5, 1]] [2, 6] = [7, 7]
    stepped, state = inner_step(quadratic, {"theta": START}, MINIMUM, Sgd(LR), {}, {}, 0)
    assert_same(stepped, {"theta": torch.tensor([2.3, 3.3], dtype=DTYPE)})
    assert state == {}


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_adapting_to_a_quadratic_equals_the_closed_form(steps: int) -> None:
    adapted = adapt(quadratic, meta(theta=START), [MINIMUM] * steps, Sgd(LR))
    assert_same(adapted["theta"], closed_form(steps))


def test_a_first_order_rule_takes_the_same_steps() -> None:
    adapted = adapt(quadratic, meta(theta=START), [MINIMUM] * 4, Detached(Sgd(LR)))
    assert_same(adapted["theta"], closed_form(4))


def test_the_derivative_of_adaptation_on_a_quadratic_is_the_power_of_the_contraction() -> None:
    def adapted(theta: Tensor) -> Tensor:
        return adapt(quadratic, meta(theta=theta), [MINIMUM] * 3, Sgd(LR))["theta"]

    contraction = torch.eye(2, dtype=DTYPE) - LR * CURVATURE
    assert_same(torch.func.jacrev(adapted)(START), torch.linalg.matrix_power(contraction, 3))


def test_the_derivative_of_first_order_adaptation_is_the_identity() -> None:
    def adapted(theta: Tensor) -> Tensor:
        return adapt(quadratic, meta(theta=theta), [MINIMUM] * 3, Detached(Sgd(LR)))["theta"]

    assert_same(torch.func.jacrev(adapted)(START), torch.eye(2, dtype=DTYPE))


def test_autograd_differentiates_adaptation_just_as_well_as_torch_func() -> None:
    theta = START.clone().requires_grad_()
    value = quadratic(adapt(quadratic, meta(theta=theta), [MINIMUM] * 3, Sgd(LR)), MINIMUM)
    (by_autograd,) = torch.autograd.grad(value, theta)
    by_func = grad(lambda t: quadratic(adapt(quadratic, meta(theta=t), [MINIMUM] * 3, Sgd(LR)), MINIMUM))(START)
    assert_same(by_autograd, by_func)


def test_the_adaptation_path_holds_the_parameters_before_the_first_step_and_after_each() -> None:
    initial = meta(theta=START)
    path = list(adaptation_path(quadratic, initial, [MINIMUM] * 5, Sgd(LR)))
    assert len(path) == 6
    assert path[0] is initial.model
    for k, params in enumerate(path):
        assert_same(params["theta"], closed_form(k))


def test_adapt_is_the_end_of_the_adaptation_path() -> None:
    *_, last = adaptation_path(quadratic, meta(theta=START), [MINIMUM] * 3, Adam(LR))
    assert_same(adapt(quadratic, meta(theta=START), [MINIMUM] * 3, Adam(LR)), last, atol=0, rtol=0)


def test_each_step_takes_the_next_batch() -> None:
    # On 0.5 (theta - d)^2 a step of size 1/2 halves the way to d, so the order of the data shows.
    data = [torch.tensor(d, dtype=DTYPE) for d in (8.0, -4.0, 2.0)]
    start = meta(theta=torch.tensor(0.0, dtype=DTYPE))
    path = adaptation_path(lambda p, d: 0.5 * (p["theta"] - d) ** 2, start, data, Sgd(0.5))
    assert [params["theta"].item() for params in path] == [0.0, 4.0, 0.0, 1.0]


def test_a_batch_is_asked_for_only_once_the_parameters_before_it_were_yielded() -> None:
    # Reinforcement learning samples each batch with the parameters of the step before.
    latest = START

    def sampled() -> Iterator[Tensor]:
        for _ in range(3):
            yield latest + 1.0

    path = adaptation_path(lambda p, d: 0.5 * (p["theta"] - d).square().sum(), meta(theta=START), sampled(), Sgd(0.5))
    for k, params in enumerate(path):
        latest = params["theta"]
        assert_same(latest, START + 0.5 * k)


def test_only_the_selected_parameters_move() -> None:
    params = {"head.weight": draw(3), "body.weight": draw(3, seed=1), "body.bias": draw(3, seed=2)}
    loss = lambda p, d: sum(value.square().sum() for value in p.values()) * d  # noqa: E731
    path = list(adaptation_path(loss, MetaParams(params, {}), [1.0, 2.0], Only("head.*", Sgd(LR))))
    for adapted in path:
        assert list(adapted) == list(params)
        assert adapted["body.weight"] is params["body.weight"]
        assert adapted["body.bias"] is params["body.bias"]
    assert_same(path[-1]["head.weight"], params["head.weight"] * (1 - 2 * LR) * (1 - 4 * LR))


def test_the_initialisation_is_left_as_it_was() -> None:
    theta = START.clone()
    adapt(quadratic, meta(theta=theta), [MINIMUM] * 3, Adam(LR))
    assert_same(theta, START, atol=0, rtol=0)
