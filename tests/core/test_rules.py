from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from fewstep.core.adapt import adapt, adaptation_path, inner_step
from fewstep.core.meta import QueryGradient
from fewstep.core.over_tasks import vectorized
from fewstep.core.rules import (
    Adam,
    Clipped,
    Detached,
    Except,
    LearnedSgd,
    Momentum,
    Only,
    Sgd,
    UpdateRule,
    _Wrapper,
    check_rule,
    expect_rule,
    selected,
)
from fewstep.core.types import MetaParams

from .problems import DTYPE, SmallNet, assert_same, draw, meta_params, regression_tasks, seeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fewstep.core.types import Params

    MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

PARAMS = {"body.weight": draw(2, 3), "body.bias": draw(3, seed=1), "head.weight": draw(3, 2, seed=2)}


def wavy(params: Params, shift: float) -> Tensor:
    """Neither quadratic nor separable, and different at every step."""
    hidden = torch.sin(params["body.weight"] + params["body.bias"] + shift)
    return (hidden @ params["head.weight"]).square().sum() + 0.1 * params["body.bias"].pow(4).sum()


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (Sgd(0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
        (Momentum(0.05), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        (
            Momentum(0.05, 0.5, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5, nesterov=True),
        ),
        (Adam(0.05), lambda p: torch.optim.Adam(p, lr=0.05)),
        (Adam(0.05, 0.7, 0.8, eps=0.1), lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.7, 0.8), eps=0.1)),
        (LearnedSgd(0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
        (LearnedSgd(0.05, per="tensor"), lambda p: torch.optim.SGD(p, lr=0.05)),
        (LearnedSgd(0.05, per="scalar"), lambda p: torch.optim.SGD(p, lr=0.05)),
    ],
    ids=lambda value: str(value) if dataclasses.is_dataclass(value) else "",
)
@pytest.mark.parametrize("detached", [False, True], ids=["second-order", "first-order"])
def test_rules_take_the_steps_of_the_optimizer_of_that_name(
    rule: UpdateRule, optimizer: MakeOptimizer, detached: bool
) -> None:
    leaves = {name: nn.Parameter(value.clone()) for name, value in PARAMS.items()}
    reference = optimizer(list(leaves.values()))
    data = [0.3 * k for k in range(6)]
    meta = meta_params(PARAMS, rule)
    path = adaptation_path(wavy, meta, data, Detached(rule) if detached else rule)
    assert_same(next(path), PARAMS)
    for shift, params in zip(data, path, strict=True):
        reference.zero_grad()
        wavy(leaves, shift).backward()
        reference.step()
        assert_same(params, {name: leaf.detach() for name, leaf in leaves.items()})


def test_adams_second_derivative_is_finite_at_zero_gradient() -> None:
    def moved(gradient: Tensor) -> Tensor:
        rule, params = Adam(0.1), {"w": torch.ones(1, dtype=DTYPE)}
        return rule(params, {"w": gradient}, rule.init(params), {}, 0)[0]["w"]

    derivative = torch.func.jacrev(moved)(torch.zeros(1, dtype=DTYPE))
    # d/dg of -lr g / (|g| + eps) at g = 0 is -lr / eps.
    assert_same(derivative, torch.tensor([[-0.1 / 1e-8]], dtype=DTYPE))


@pytest.mark.parametrize("steps", [1, 3])
def test_adams_meta_gradient_is_finite_with_a_parameter_that_the_support_loss_does_not_use(
    steps: int,
) -> None:
    def support_loss(params: Params, target: Tensor) -> Tensor:
        return (params["used"] - target).square().sum()

    def query_loss(params: Params, task: tuple[Tensor, Tensor]) -> Tensor:
        return (params["used"] * params["unused"] - task[1]).square().sum()

    class Pair(tuple):
        support = property(lambda self: self[0])

    params = {"used": draw(2), "unused": draw(2, seed=1)}
    rule = Adam(0.1)
    task = Pair((draw(2, seed=2), draw(2, seed=3)))
    gradient, _ = QueryGradient(support_loss, query_loss, rule, steps)(MetaParams(params, {}), task)
    adapted = adapt(support_loss, MetaParams(params, {}), [task.support] * steps, rule)
    assert_same(adapted["unused"], params["unused"], atol=0, rtol=0)
    expected = 2 * (adapted["used"] * adapted["unused"] - task[1]) * adapted["used"]
    assert_same(gradient.model["unused"], expected)
    assert gradient.model["used"].isfinite().all()


def test_a_learned_rate_may_be_one_number_one_per_tensor_or_one_per_element() -> None:
    (scalar,) = LearnedSgd(0.3, per="scalar").hyperparameters(PARAMS).values()
    assert_same(scalar, torch.tensor(0.3, dtype=DTYPE))
    per_tensor = LearnedSgd(0.3, per="tensor").hyperparameters(PARAMS)
    assert len(per_tensor) == len(PARAMS)
    assert_same(list(per_tensor.values()), [torch.tensor(0.3, dtype=DTYPE)] * len(PARAMS))
    per_element = LearnedSgd(0.3).hyperparameters(PARAMS)
    assert_same(list(per_element.values()), [torch.full_like(value, 0.3) for value in PARAMS.values()])


@pytest.mark.parametrize("per", ["scalar", "tensor", "parameter"])
def test_learned_rates_scale_the_gradient_of_their_own_parameters(per: str) -> None:
    rule = LearnedSgd(0.3, per=per)  # type: ignore[arg-type]
    learned = {
        name: draw(*rate.shape, seed=7 + i) for i, (name, rate) in enumerate(rule.hyperparameters(PARAMS).items())
    }
    gradients = {name: draw(*value.shape, seed=20) for name, value in PARAMS.items()}
    stepped, _ = rule(PARAMS, gradients, {}, learned, 0)
    for i, (name, value) in enumerate(PARAMS.items()):
        rate = list(learned.values())[0 if per == "scalar" else i]
        assert_same(stepped[name], value - rate * gradients[name])


def test_rates_are_learned_only_for_the_parameters_that_adapt() -> None:
    rule = Only("head.*", LearnedSgd(0.3))
    assert [rate.shape for rate in meta_params(PARAMS, rule).rule.values()] == [PARAMS["head.weight"].shape]


def test_clipping_bounds_every_element_of_the_gradient() -> None:
    gradients = {"w": torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=DTYPE)}
    params = {"w": torch.zeros(5, dtype=DTYPE)}
    stepped, _ = Clipped(Sgd(1.0), bound=1.0)(params, gradients, {}, {}, 0)
    assert_same(stepped["w"], torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0], dtype=DTYPE))


def test_clipped_adam_is_adam_on_clipped_gradients() -> None:
    rule, inner = Clipped(Adam(0.1, eps=0.1), bound=0.5), Adam(0.1, eps=0.1)
    params, state = PARAMS, inner.init(PARAMS)
    path = adaptation_path(wavy, MetaParams(PARAMS, {}), [0.0, 0.3, 0.6], rule)
    assert_same(next(path), PARAMS)
    for step, (shift, actual) in enumerate(zip([0.0, 0.3, 0.6], path, strict=True)):
        gradients = torch.func.grad(wavy)(params, shift)
        assert any((g.abs() > 0.5).any() for g in gradients.values())
        clipped = {name: g.clamp(-0.5, 0.5) for name, g in gradients.items()}
        params, state = inner(params, clipped, state, {}, step)
        assert_same(actual, params)


@pytest.mark.parametrize(
    "rule",
    [
        Detached(Only("head.*", Sgd(0.1))),
        Only("head.*", Detached(Sgd(0.1))),
        Detached(Clipped(Only("head.*", Sgd(0.1)), bound=1e9)),
    ],
    ids=str,
)
def test_first_order_anil_composes_in_any_order(rule: UpdateRule) -> None:
    assert not rule.second_order
    assert list(selected(PARAMS, rule)) == ["head.weight"]
    stepped, _ = inner_step(wavy, PARAMS, 0.0, rule, rule.init(selected(PARAMS, rule)), {}, 0)
    gradient = torch.func.grad(wavy)(PARAMS, 0.0)
    assert_same(stepped, PARAMS | {"head.weight": PARAMS["head.weight"] - 0.1 * gradient["head.weight"]})


def test_wrappers_keep_what_they_do_not_change() -> None:
    rule = Clipped(Except("*.bias", Only(("body.*", "head.*"), Adam(0.1))), bound=1.0)
    assert rule.second_order
    assert list(selected(PARAMS, rule)) == ["body.weight", "head.weight"]
    assert set(rule.init(selected(PARAMS, rule))) == {"mean", "square"}
    learned = Detached(Clipped(LearnedSgd(0.1, per="tensor"), bound=1.0))
    assert len(learned.hyperparameters(PARAMS)) == len(PARAMS)


def test_a_tuple_of_patterns_selects_what_any_of_them_matches() -> None:
    assert list(selected(PARAMS, Only(("head.*", "*.bias"), Sgd(0.1)))) == ["body.bias", "head.weight"]
    assert list(selected(PARAMS, Except(("head.*", "*.bias"), Sgd(0.1)))) == ["body.weight"]


@pytest.mark.parametrize(
    "rule",
    [Sgd(0.1), Only("head.*", Sgd(0.1)), Clipped(Except(("*.bias", "head.*"), Adam(0.1)), 1.0)],
    ids=str,
)
def test_a_rule_that_means_something_for_the_model_passes_the_check(rule: UpdateRule) -> None:
    check_rule(rule, PARAMS)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            Only("tail.*", Sgd(0.1)),
            r"Only expects patterns that.*'tail\.\*' chooses none of body\.weight",
        ),
        (
            Detached(Clipped(Except("tail.*", Sgd(0.1)), 1.0)),
            r"Except expects patterns that.*'tail\.\*'",
        ),
        (Only(("head.*", "head"), Sgd(0.1)), r"'head' chooses none .*Use shell patterns such as 'head\.\*'"),
        (Except("*", Sgd(0.1)), r"must adapt at least one parameter.*selects none of body\.weight.*Change"),
        (Only("head.*", Except("head.*", Sgd(0.1))), "must adapt at least one parameter"),
    ],
    ids=str,
)
def test_a_rule_that_means_nothing_for_the_model_is_refused(rule: UpdateRule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rule(rule, PARAMS)


ALL_RULES = [
    Sgd(0.1),
    Momentum(0.1),
    Adam(0.1),
    LearnedSgd(0.1),
    Detached(Sgd(0.1)),
    Clipped(Sgd(0.1), 1.0),
    Only("a.*", Sgd(0.1)),
    Except(("a.*", "b.*"), Sgd(0.1)),
]


@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_rules_are_values(rule: UpdateRule) -> None:
    same = dataclasses.replace(rule)  # type: ignore[type-var]
    assert same == rule
    assert len({rule, same}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(rule, dataclasses.fields(rule)[0].name, None)  # type: ignore[arg-type]


def test_different_rules_are_different_values() -> None:
    assert len(set(ALL_RULES)) == len(ALL_RULES)
    assert Only("head.*", Sgd(0.1)) == Only(("head.*",), Sgd(0.1))
    assert Only("head.*", Sgd(0.1)) != Except("head.*", Sgd(0.1))


def test_rules_keep_the_parameters_dtype() -> None:
    params = {name: value.bfloat16() for name, value in PARAMS.items()}
    for rule in (Sgd(0.1), Momentum(0.1), Adam(0.1), LearnedSgd(0.1, per="tensor"), Clipped(Sgd(0.1), 1.0)):
        adapted = adapt(wavy, meta_params(params, rule), [0.0, 0.1], rule)
        assert {value.dtype for value in adapted.values()} == {torch.bfloat16}


def test_the_inner_loop_of_a_module_follows_its_optimizer() -> None:
    module = seeded(SmallNet)
    task = regression_tasks(1)
    inputs, targets = task.support.inputs[0], task.support.targets[0]
    params = {name: value.detach().clone() for name, value in module.named_parameters()}

    def loss(at: Params, data: None) -> Tensor:
        return nn.functional.mse_loss(torch.func.functional_call(module, at, inputs), targets)

    adapted = adapt(loss, MetaParams(params, {}), [None] * 5, Adam(0.01))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(inputs), targets).backward()
        optimizer.step()
    assert_same(adapted, {name: value.detach() for name, value in module.named_parameters()})


@pytest.mark.parametrize("rule", [Sgd, Momentum, Adam, LearnedSgd])
@pytest.mark.parametrize("rate", [-1.0, float("nan"), "0.1"])
def test_a_rate_that_is_none_is_refused(rule: Any, rate: Any) -> None:
    with pytest.raises(ValueError, match=f"`lr` must be a number, at least 0: got {rate!r}"):
        rule(rate)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Momentum(0.1, 5.0), "`momentum` must be a number, from 0 to 1: got 5"),
        (lambda: Adam(0.1, beta1=1.0), "`beta1` must be a number, at least 0 and below 1: got 1"),
        (lambda: Clipped(Sgd(0.1), -1.0), "`bound` must be a number, at least 0: got -1"),
        (lambda: LearnedSgd(0.1, per="layer"), "`per` must be one of scalar, tensor, parameter: got 'layer'"),  # pyright: ignore[reportArgumentType]
        (lambda: vectorized(0), "`chunk_size` must be a whole number, at least 1: got 0"),
    ],
    ids=["momentum", "adam", "clipped", "per", "chunks"],
)
def test_numbers_out_of_bounds_are_refused(build: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        build()


def test_a_rule_that_may_change_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Named(_Wrapper):
        names: list[str]

    with pytest.raises(ValueError, match=r"no hash .* of lists in it tuples"):
        expect_rule(Named(Sgd(0.1), ["w"]))


def test_a_rule_of_ones_own_that_returns_no_state_is_named() -> None:
    @dataclasses.dataclass(frozen=True)
    class Forgetful(_Wrapper):
        def __call__(self, *args: Any) -> Any:
            return super().__call__(*args)[0]

    params, rule = {"w": draw(3)}, Forgetful(Sgd(0.1))
    with pytest.raises(ValueError, match=r"\(params, state\): Forgetful returned a dict"):
        adapt(lambda theta, target: ((theta["w"] - target) ** 2).sum(), meta_params(params, rule), [draw(3)], rule)
