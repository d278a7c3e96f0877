from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor, nn

from fewstep.core import algorithms
from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import QueryGradient, meta_gradient
from fewstep.core.over_tasks import sequential, vectorized
from fewstep.core.rules import Clipped, Except, LearnedSgd, Momentum, Sgd
from fewstep.core.stepwise import Recomputed, _blocks, _chain, outer_gradients, stepwise
from fewstep.core.trees import leaves
from fewstep.core.types import Batch, MetaParams, Task
from fewstep.models.convnet import ConvNet

from .problems import DTYPE, SmallNet, assert_same, draw, meta_params, regression_tasks, seeded, supervised

if TYPE_CHECKING:
    from fewstep.core.algorithms import Algorithm
    from fewstep.core.types import LossFn, Params


def classification(model: FunctionalModule) -> tuple[LossFn, LossFn]:
    def support_loss(params: Params, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(params, batch.inputs), batch.targets)

    def query_loss(params: Params, task: Task) -> Tensor:
        statistics = model.statistics(params, task.support.inputs) if model.normalization == "support" else None
        return nn.functional.cross_entropy(model(params, task.query.inputs, statistics), task.query.targets)

    return support_loss, query_loss


def images(tasks: int, size: int) -> Task:
    def batch(seed: int) -> Batch:
        labels = torch.arange(3).repeat_interleave(2).repeat(tasks, 1)
        return Batch(draw(tasks, 6, 1, size, size, seed=seed), labels)

    return Task(batch(1), batch(2))


MAML = algorithms.maml(Except("*.norm.bias", Sgd(0.4)), 2)
OTHERS = {
    "fomaml": algorithms.fomaml(Sgd(0.4), 2),
    "meta-sgd": algorithms.meta_sgd(0.3, 2),
    "anil": algorithms.anil(Clipped(Momentum(0.2), 0.1), 3),
    "reptile": algorithms.reptile(Sgd(0.2), 2),
}
WAYS = list(
    product(
        [("stride", "mean"), ("max_pool", "flatten")],
        ["transductive", "support"],
        [(True, True), (False, True), (True, False)],
    )
)


@pytest.mark.parametrize(
    ("algorithm", "blocks", "normalization", "how"),
    [
        *(pytest.param(MAML, *way, id=f"maml {way}") for way in WAYS),
        *(pytest.param(each, *way, id=f"{name} {way}") for name, each in OTHERS.items() for way in (WAYS[0], WAYS[-1])),
    ],
)
def test_forward_mode_gives_the_meta_gradient_of_our_convolutional_networks(
    algorithm: Algorithm, blocks: tuple[Any, Any], normalization: Any, how: tuple[bool, bool]
) -> None:
    (downsample, pool), (vectorize, keep) = blocks, how

    def network() -> nn.Module:
        return ConvNet(3, image_size=9, filters=4, blocks=2, downsample=downsample, pool=pool, norm_gain=True)

    model = FunctionalModule(seeded(network), normalization)
    task_gradient = algorithm.gradient(*classification(model), algorithm.rule, algorithm.steps)
    meta, tasks = meta_params(model.params, algorithm.rule), images(3, 9)
    over_tasks = stepwise(vectorize=vectorize, keep=keep, forward_mode=True)
    expected = meta_gradient(task_gradient, meta, tasks, sequential())
    assert_same(meta_gradient(task_gradient, meta, tasks, over_tasks), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_dropout_draws_the_same_numbers_in_a_step_and_in_its_derivative(vectorize: bool, keep: bool) -> None:
    """The loss is linear in each parameter's own mask, so a mask that changed would show as a wrong factor."""
    model = FunctionalModule(seeded(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1, bias=False))))
    model.train()

    def support_loss(params: Params, batch: Batch) -> Tensor:
        return model(params, batch.inputs).square().sum()

    def query_loss(params: Params, task: Task) -> Tensor:
        return (params["1.weight"] * task.query.inputs).sum()

    ones = Batch(torch.ones(1, 1, 8, dtype=DTYPE), torch.ones(1, 1, dtype=DTYPE))
    task_gradient = QueryGradient(support_loss, query_loss, Sgd(0.1), 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        meta = MetaParams(model.params, {})
        gradient, losses = meta_gradient(
            task_gradient, meta, Task(ones, ones), stepwise(vectorize=vectorize, keep=keep)
        )
        after = torch.rand(())
        torch.manual_seed(0)
        masks = nn.functional.dropout(torch.ones(1, 8, dtype=DTYPE), 0.5).squeeze()
        assert after == torch.rand(())  # recomputation left the stream where the step did
    weight = model.params["1.weight"].squeeze()
    # L = (m w)^2, theta' = w - 0.2 (m w) m, query = sum theta': gradient 1 - 0.2 m (m . 1)
    assert_same(losses[0], (weight - 0.2 * (masks @ weight) * masks).sum(), atol=1e-12, rtol=0)
    assert_same(gradient.model["1.weight"].squeeze(), 1 - 0.2 * masks * masks.sum(), atol=1e-12, rtol=0)


PEAK = """
import sys, torch
from torch import nn
from fewstep import Batch, MetaParams, Sgd, SupervisedLearner, Task, maml, sequential
from fewstep.core.stepwise import stepwise

def peak():  # of this process, in MiB: ru_maxrss would count its parent's too
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
steps, over_tasks = int(sys.argv[1]), {"stepwise": lambda: stepwise(vectorize=False), "sequential": sequential}
module = nn.Sequential(nn.Linear(1, 250), nn.Tanh(), nn.Linear(250, 1))
batch = Batch(torch.randn(1, 8000, 1), torch.randn(1, 8000, 1))  # 8 MB for each tensor of activations
loss, algorithm = nn.functional.mse_loss, maml(Sgd(0.01), steps)
learner = SupervisedLearner(module, loss, algorithm, over_tasks=over_tasks[sys.argv[2]]())
before = peak()
learner.step(Task(batch, batch))
print(peak() - before)
"""


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12])
def test_dropout_draws_the_same_numbers_when_blocks_of_steps_are_computed_again(steps: int) -> None:
    module = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 2))
    model = FunctionalModule(seeded(lambda: module))
    model.train()
    support_loss, query_loss = supervised(model)

    def query_without_dropout(params: Params, task: Task) -> Tensor:
        return sum((value.square().sum() for value in params.values()), torch.zeros(())) + 0 * query_loss(params, task)

    tasks = regression_tasks(1)
    task_gradient = QueryGradient(support_loss, query_without_dropout, Sgd(0.1), steps)
    meta = MetaParams(model.params, {})
    gradients: list[MetaParams] = []
    for over_tasks in (sequential(), stepwise(vectorize=False)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            gradients.append(meta_gradient(task_gradient, meta, tasks, over_tasks)[0])
    assert_same(gradients[0].model, gradients[1].model, atol=1e-12, rtol=1e-9)


class Place:
    """A point of the way that counts how many there are."""

    alive = most = 0

    def __init__(self, number: int) -> None:
        self.number = number
        Place.alive += 1
        Place.most = max(Place.most, Place.alive)

    def __del__(self) -> None:
        Place.alive -= 1


@pytest.mark.parametrize(
    ("steps", "most", "again"), [(1, 1, 0), (2, 2, 0), (4, 3, 2), (10, 4, 6), (49, 10, 39), (55, 10, 45)]
)
def test_recomputation_keeps_few_points_and_goes_each_way_once_more_at_most(steps: int, most: int, again: int) -> None:
    went = 0

    def ahead(point: Any, support: Any) -> Any:
        nonlocal went
        went += 1
        return Place(point.number + 1)

    def pullback(point: Any, support: Any, cotangent: Any) -> Any:
        return [*cotangent, point.number]

    Place.most = Place.alive = 0
    point, back = _chain(_blocks([Recomputed(ahead, pullback)] * steps), cast("Any", Place(0)), torch.zeros(1))
    assert cast("Any", point).number == steps
    assert back(cast("Any", [])) == list(reversed(range(steps)))
    assert Place.most <= most + 1  # besides, the end of the way
    assert went <= steps + again


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    def peak(steps: int, over_tasks: str) -> float:
        command = [sys.executable, "-c", PEAK, str(steps), over_tasks]
        exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"}  # give freed tensors back to the system at once
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=exact).stdout)

    many = peak(20, "stepwise")
    assert many < 1.2 * peak(2, "stepwise") + 10
    assert peak(20, "sequential") > many + 18 * 8


def test_other_functions_than_outer_gradients_are_mapped_as_told() -> None:
    seen: list[Any] = []

    def noting(function: Any) -> Any:
        seen.append(function)
        return vectorized()(function)

    model = FunctionalModule(seeded(SmallNet))
    tasks, meta = regression_tasks(2), MetaParams(model.params, {})
    task_gradient = QueryGradient(*supervised(model), Sgd(0.1), 1)
    over_tasks = outer_gradients(stepwise(), noting)
    assert_same(over_tasks(task_gradient)(meta, tasks), vectorized()(task_gradient)(meta, tasks))
    assert not seen

    def total(shared: MetaParams, task: Task) -> Tensor:
        return task.query.inputs.sum()

    assert over_tasks(total)(meta, tasks).shape == (2,)
    assert seen == [total]


def test_learned_rates_get_their_gradient_from_every_step() -> None:
    model = FunctionalModule(seeded(SmallNet))
    algorithm = algorithms.maml(LearnedSgd(0.1, per="scalar"), 3)
    task_gradient = algorithm.gradient(*supervised(model), algorithm.rule, algorithm.steps)
    meta, tasks = meta_params(model.params, algorithm.rule), regression_tasks(2)
    expected, _ = meta_gradient(task_gradient, meta, tasks, sequential())
    gradient, _ = meta_gradient(task_gradient, meta, tasks, stepwise())
    assert leaves(expected.rule)
    assert_same(gradient.rule, expected.rule, atol=1e-12, rtol=0)
