from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import QueryGradient
from fewstep.core.over_tasks import sequential, vectorized
from fewstep.core.rules import Sgd
from fewstep.core.types import Batch, MetaParams, Task

from .problems import (
    DTYPE,
    assert_matches_finite_differences,
    assert_same,
    draw,
    one,
    random_like,
    seeded,
    snapshot,
    supervised,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fewstep.core.functional import Normalization


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ELU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten()
    )


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def pretrained(build: Callable[[], nn.Module]) -> nn.Module:
    """Every batch normalisation has its own gain, offset, and running statistics that are no batch's own."""
    module = seeded(build)
    for i, norm in enumerate(batch_norms(module)):
        with torch.no_grad():
            if norm.affine:
                norm.weight.copy_(draw(norm.num_features, seed=10 * i))
                norm.bias.copy_(draw(norm.num_features, seed=10 * i + 1))
            if norm.track_running_stats:
                norm.running_mean.copy_(draw(norm.num_features, seed=10 * i + 2))
                norm.running_var.copy_(0.5 + draw(norm.num_features, seed=10 * i + 3) ** 2)
    return module


LAYERS = {
    "conv net": (convnet, (1, 6, 6)),
    "BatchNorm1d on features": (lambda: nn.BatchNorm1d(4), (4,)),
    "BatchNorm1d on sequences": (lambda: nn.BatchNorm1d(4, eps=0.1), (4, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), (2, 3, 3)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), (2, 3, 2, 2)),
    "without gain and offset": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)),
        (4,),
    ),
}
each_layer = pytest.mark.parametrize("layer", LAYERS)
each_policy = pytest.mark.parametrize("normalization", ["transductive", "support", "running"])


def built(layer: str, normalization: Normalization, examples: int = 5) -> tuple[nn.Module, FunctionalModule, Tensor]:
    build, shape = LAYERS[layer]
    module = pretrained(build)
    return module, FunctionalModule(module, normalization), 2 * draw(examples, *shape, seed=50) + 1


@each_layer
@pytest.mark.parametrize("training", [True, False])
def test_transductive_is_batch_normalisation_in_training_mode_whatever_the_mode(layer: str, training: bool) -> None:
    module, model, inputs = built(layer, "transductive")
    model.train(training)
    assert_same(model(model.params, inputs), copy.deepcopy(module).train()(inputs).detach())


@each_layer
@pytest.mark.parametrize("training", [True, False])
def test_running_is_the_module_in_evaluation_mode_whatever_the_mode(layer: str, training: bool) -> None:
    module, model, inputs = built(layer, "running")
    model.train(training)
    assert_same(model(model.params, inputs), copy.deepcopy(module).eval()(inputs).detach())
    assert model.statistics(model.params, inputs) == {}


@each_layer
def test_support_statistics_by_hand(layer: str) -> None:
    module, model, support = built(layer, "support")
    reference, queries = copy.deepcopy(module).train(), draw(3, *support.shape[1:], seed=60)
    by_hand: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(norm: nn.Module, args: tuple[Tensor]) -> None:
        channels = args[0].detach().transpose(0, 1).flatten(1)
        by_hand[norm] = channels.mean(1), channels.var(1, correction=0)

    for norm in batch_norms(reference):
        norm.register_forward_pre_hook(note)
    reference(support)
    statistics = model.statistics(model.params, support)
    assert_same(list(statistics.values()), list(by_hand.values()))

    for norm, (mean, variance) in list(by_hand.items()):
        norm.running_mean, norm.running_var = mean, variance
    assert_same(model(model.params, queries, statistics), reference.eval()(queries).detach())


@each_layer
def test_the_support_set_under_its_own_statistics_is_normalised_as_in_training(layer: str) -> None:
    _, model, support = built(layer, "support")
    statistics = model.statistics(model.params, support)
    assert_same(model(model.params, support, statistics), model(model.params, support))


@each_layer
def test_under_support_statistics_queries_do_not_see_one_another(layer: str) -> None:
    _, model, support = built(layer, "support")
    queries = 3 * draw(4, *support.shape[1:], seed=60)
    statistics = model.statistics(model.params, support)
    together = model(model.params, queries, statistics)
    alone = torch.cat([model(model.params, queries[i : i + 1], statistics) for i in range(4)])
    assert_same(alone, together)


def test_transductive_queries_do_see_one_another() -> None:
    _, model, queries = built("conv net", "transductive")
    assert not torch.allclose(model(model.params, queries)[:2], model(model.params, queries[:2]))


@each_layer
def test_outputs_are_differentiable_in_given_statistics(layer: str) -> None:
    _, model, support = built(layer, "support")
    queries = draw(3, *support.shape[1:], seed=60)
    statistics = model.statistics(model.params, support)
    flat = [value.clone().requires_grad_() for pair in statistics.values() for value in pair]

    def outputs(*values: Tensor) -> Tensor:
        pairs = list(zip(values[::2], values[1::2], strict=True))
        return model(model.params, queries, dict(zip(statistics, pairs, strict=True)))

    assert torch.autograd.gradcheck(outputs, flat)
    assert torch.autograd.gradgradcheck(outputs, flat)


@pytest.mark.parametrize("layer", ["conv net", "without gain and offset"])
def test_statistics_are_differentiable_in_the_parameters(layer: str) -> None:
    _, model, support = built(layer, "support")

    def statistics(*values: Tensor) -> tuple[Tensor, ...]:
        found = model.statistics(dict(zip(model.params, values, strict=True)), support)
        return tuple(value for pair in found.values() for value in pair)

    leaves = [value.clone().requires_grad_() for value in model.params.values()]
    assert torch.autograd.gradcheck(statistics, leaves)


def image_tasks(tasks: int = 3, seed: int = 0) -> Task:
    support, query = (draw(tasks, n, 1, 6, 6, seed=seed + n) for n in (4, 5))
    return Task(Batch(support, draw(tasks, 4, 8, seed=seed)), Batch(query, draw(tasks, 5, 8, seed=seed + 1)))


@each_policy
def test_the_meta_gradient_equals_finite_differences(normalization: Normalization) -> None:
    model = FunctionalModule(pretrained(convnet), normalization)
    task_gradient = QueryGradient(*supervised(model), Sgd(0.1), 2)
    assert_matches_finite_differences(task_gradient, MetaParams(model.params, {}), image_tasks())


@each_policy
@pytest.mark.parametrize("over_tasks", [vectorized(), vectorized(2), sequential()], ids=["vmap", "chunks", "loop"])
def test_nothing_leaks_from_task_to_task(normalization: Normalization, over_tasks: Callable) -> None:
    module = pretrained(convnet)
    model, before = FunctionalModule(module, normalization), snapshot(module)
    of_each = over_tasks(QueryGradient(*supervised(model), Sgd(0.1), 2))
    meta, tasks = MetaParams(model.params, {}), image_tasks()
    plain = of_each(meta, tasks)

    backwards = of_each(meta, one(tasks, [2, 1, 0]))
    assert_same(one(backwards, [2, 1, 0]), plain)

    tasks.support.inputs[0].mul_(1e3).add_(7)
    tasks.query.inputs[0].mul_(-1e4)
    beside_an_outlier = of_each(meta, tasks)
    assert_same(one(beside_an_outlier, [1, 2]), one(plain, [1, 2]))
    assert_same(snapshot(module), before, atol=0, rtol=0)


@each_policy
def test_calls_leave_nothing_behind_in_the_functional_module(normalization: Normalization) -> None:
    model = FunctionalModule(pretrained(convnet), normalization)
    tasks = image_tasks()
    first = model(model.params, tasks.query.inputs[0])
    statistics = model.statistics(model.params, tasks.support.inputs[0])
    model(model.params, tasks.query.inputs[1], statistics)
    with pytest.raises(RuntimeError):
        model(model.params, torch.zeros(2, 5, dtype=DTYPE), statistics)
    with pytest.raises(RuntimeError):
        model.statistics(model.params, torch.zeros(2, 5, dtype=DTYPE))
    model.check_pure(tasks.query.inputs[2])
    assert_same(model(model.params, tasks.query.inputs[0]), first, atol=0, rtol=0)


@each_layer
@pytest.mark.parametrize("tracking", [True, False])
def test_an_exported_module_normalises_by_the_statistics_it_was_given(layer: str, tracking: bool) -> None:
    module, _, support = built(layer, "support")
    if not tracking:
        for norm in batch_norms(module):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    model, queries = FunctionalModule(module, "support"), draw(3, *support.shape[1:], seed=60)
    adapted = {name: value + 0.1 * draw(*value.shape, seed=5) for name, value in model.params.items()}
    statistics = model.statistics(adapted, support)
    exported = model.as_module(adapted, statistics)
    assert type(exported) is type(module)
    assert not any(m.training for m in exported.modules())
    assert_same(exported(queries).detach(), model(adapted, queries, statistics))


def test_an_exported_module_of_a_pretrained_one_keeps_its_running_statistics() -> None:
    module, model, inputs = built("conv net", "running")
    adapted = random_like(model.params, 3)
    exported = model.as_module(adapted)
    assert_same(exported(inputs).detach(), model(adapted, inputs))
    assert_same(dict(exported.named_buffers()), dict(module.named_buffers()), atol=0, rtol=0)


def test_running_statistics_that_do_not_exist_are_missed() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    message = r"'running' needs running statistics: layer '1' has none\. Use track_running_stats=True"
    with pytest.raises(ValueError, match=message):
        FunctionalModule(module, "running")


class Twice(nn.Module):
    """One layer in two places: under two names, or called two times."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.again = self.norm if named else None

    def forward(self, inputs: Tensor) -> Tensor:
        again = self.norm if self.again is None else self.again
        return again(5 * self.linear(self.norm(inputs)))


@pytest.mark.parametrize("named", [True, False])
def test_a_layer_in_two_places_is_normalised_in_both(named: bool) -> None:
    module, inputs = seeded(lambda: Twice(named)), draw(5, 3)
    model = FunctionalModule(module)
    assert list(model.params) == ["linear.weight", "linear.bias", "norm.weight", "norm.bias"]
    model.check_pure(inputs)
    assert_same(model(model.params, inputs), copy.deepcopy(module)(inputs).detach())


@pytest.mark.parametrize("named", [True, False])
def test_a_layer_in_two_places_has_no_one_statistics_to_keep(named: bool) -> None:
    model = FunctionalModule(seeded(lambda: Twice(named)), "support")
    with pytest.raises(
        ValueError, match=r"layers that run once.*'norm' runs again\. Give each place a layer of its own"
    ):
        model.statistics(model.params, draw(5, 3))


def test_a_layer_that_does_not_run_needs_no_statistics() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.idle = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.norm(inputs)

    model, inputs = FunctionalModule(seeded(Idle), "support"), draw(5, 3)
    statistics = model.statistics(model.params, inputs)
    assert list(statistics) == ["norm"]
    assert_same(model(model.params, inputs, statistics), model(model.params, inputs))


class WithActivation(nn.BatchNorm1d):
    """What timm's `BatchNormAct2d` does."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(super().forward(inputs))


class PlainSubclass(nn.BatchNorm1d):
    pass


def test_a_subclass_with_a_forward_of_its_own_keeps_it() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(3, 3), WithActivation(3, track_running_stats=False)))
    model = FunctionalModule(module)
    model.check_pure(draw(5, 3))
    assert_same(model(model.params, draw(5, 3)), copy.deepcopy(module)(draw(5, 3)).detach())
    with pytest.raises(ValueError, match=r"this one changed 0\.running_mean, 0\.running_var, 0\.num_batches_tracked"):
        FunctionalModule(nn.Sequential(WithActivation(3)).double()).check_pure(draw(5, 3))


def test_a_subclass_without_a_forward_of_its_own_follows_the_policy() -> None:
    model = FunctionalModule(seeded(lambda: PlainSubclass(3)), "support")
    model.check_pure(draw(5, 3))
    assert list(model.statistics(model.params, draw(5, 3))) == [""]


class Counting(nn.Module):
    """Changes a buffer in place, by reassignment, by filling an empty one, or inside a kernel."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(3, 3), how
        self.register_buffer("seen", None if how == "filled" else torch.zeros(3, dtype=DTYPE))
        self.register_buffer("spread", torch.ones(3, dtype=DTYPE))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.how == "in place":
            self.seen.add_(inputs.mean(0))
        elif self.how in {"reassigned", "filled"}:
            self.seen = inputs.mean(0)
        else:
            inputs = nn.functional.batch_norm(inputs, self.seen, self.spread, training=True)
        return self.linear(inputs)


@pytest.mark.parametrize("how", ["in place", "reassigned", "filled", "kernel"])
def test_a_module_that_changes_a_buffer_is_refused_and_restored(how: str) -> None:
    model = FunctionalModule(nn.Sequential(nn.ReLU(), Counting(how)).double())
    before = {name: buffer.clone() for name, buffer in model._module.named_buffers()}
    with pytest.raises(
        ValueError, match=r"must leave the module's buffers.*this one changed 1\.seen.*Turn tracking off"
    ):
        model.check_pure(draw(5, 3))
    assert_same(dict(model._module.named_buffers()), before, atol=0, rtol=0)


def test_instance_normalisation_that_tracks_is_refused_by_name() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True)).double()
    model = FunctionalModule(module)
    message = r"changed 1\.running_mean, 1\.running_var.*nn\.InstanceNorm2d\(\.\.\., track_running_stats=False\)"
    for _ in range(2):  # the first check leaves the module as it was, so the second finds the same
        with pytest.raises(ValueError, match=message):
            model.check_pure(draw(4, 1, 6, 6))
    assert_same(model._module[1].running_mean, torch.zeros(2, dtype=DTYPE), atol=0, rtol=0)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5)),
    ],
    ids=["instance norm", "group norm", "batch norm", "dropout"],
)
def test_pure_modules_pass_the_check_and_no_random_number_is_used_up(module: nn.Module) -> None:
    state = torch.get_rng_state()
    FunctionalModule(module.double()).check_pure(draw(4, 1, 6, 6))
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_that_hold_nan_or_truth_values_are_compared_all_the_same() -> None:
    module = nn.Linear(3, 3).double()
    module.register_buffer("unknown", torch.full((2,), float("nan")))
    module.register_buffer("mask", torch.tensor([True, False]))
    module.register_buffer("empty", torch.zeros(0, dtype=torch.long))
    FunctionalModule(module).check_pure(draw(5, 3))
