"""Products in bfloat16: those alone, in all derivatives, for any model and any way to run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fewstep import SupervisedLearner
from fewstep.core import algorithms
from fewstep.core.context import exactly
from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import QueryGradient, meta_gradient
from fewstep.core.over_tasks import auto, sequential, vectorized
from fewstep.core.products import bfloat16
from fewstep.core.rules import Sgd
from fewstep.core.running import compiled, plain, traced
from fewstep.core.stepwise import stepwise
from fewstep.core.trees import tree_map
from fewstep.core.types import MetaParams

from .problems import SmallNet, draw, regression_tasks, seeded, supervised
from .test_modules import CASES, tasks_for

if TYPE_CHECKING:
    from fewstep.core.running import Run
    from fewstep.core.types import OverTasks


def single(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.float(), tree)


def flat(gradient: MetaParams) -> Tensor:
    assert {value.dtype for value in gradient.model.values()} == {torch.float32}
    return torch.cat([value.flatten() for value in gradient.model.values()])


def gradient_of(module: nn.Module, tasks: Any, over_tasks: OverTasks, run: Run = plain, read: Any = None) -> Tensor:
    model = FunctionalModule(module)
    model.train(False)
    task_gradient = QueryGradient(*supervised(model, read or (lambda out: out)), Sgd(0.1), 2)
    found, _ = run(lambda meta: meta_gradient(task_gradient, meta, tasks, over_tasks))(MetaParams(model.params, {}))
    return flat(found)


def distance(left: Tensor, right: Tensor) -> float:
    return ((left - right).norm() / right.norm()).item()


@pytest.mark.parametrize("name", CASES)
def test_a_meta_gradient_with_rounded_products_is_near_the_exact_one(name: str) -> None:
    case = CASES[name]
    module, tasks = seeded(case.build).float(), single(tasks_for(case))
    exact = gradient_of(module, tasks, auto(), read=case.read)
    rounded = gradient_of(module, tasks, auto(), bfloat16(), case.read)
    assert 1e-5 < distance(rounded, exact) < 0.1  # a ReLU or maximum that rounding flips
    with exactly():
        assert torch.equal(gradient_of(module, tasks, auto(), bfloat16(), case.read), exact)


WAYS = {
    "one after the other": sequential(bfloat16()),
    "recorded": vectorized(run=bfloat16(traced)),
    "stepwise": stepwise(run=bfloat16()),
    "stepwise, kept": stepwise(run=bfloat16(), keep=True),
    "compiled": vectorized(run=bfloat16(compiled())),
}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_runs_the_same_products_are_rounded(way: str) -> None:
    module, tasks = seeded(SmallNet).float(), single(regression_tasks(3))
    exact = gradient_of(module, tasks, vectorized())
    rounded = gradient_of(module, tasks, vectorized(), bfloat16())
    other = gradient_of(module, tasks, WAYS[way])
    assert distance(other, rounded) < distance(rounded, exact) / 2


def test_what_is_added_to_a_product_keeps_its_digits() -> None:
    bias, factors = torch.tensor([1.0, 256.0]) + 2**-12, torch.zeros(3, 2)
    added = bfloat16()(lambda: torch.addmm(bias, factors, torch.zeros(2, 2)))()
    assert torch.equal(added, bias.expand(3, 2))
    halved = bfloat16()(lambda: torch.addmm(bias, torch.ones(3, 2), torch.ones(2, 2), beta=0.5, alpha=3.0))()
    assert torch.equal(halved, (bias / 2 + 6).expand(3, 2))


def test_other_types_are_left_alone() -> None:
    left, right = draw(3, 4), draw(4, 2)  # in float64
    assert torch.equal(bfloat16()(torch.mm)(left, right), left @ right)


def test_a_learner_trains_with_rounded_products() -> None:
    torch.manual_seed(0)
    tasks = single(regression_tasks(8))
    algorithm = algorithms.maml(Sgd(0.1), 1)
    losses: dict[str, float] = {}
    for name, run in {"float32": plain, "bfloat16": bfloat16()}.items():
        learner = SupervisedLearner(seeded(SmallNet).float(), nn.functional.mse_loss, algorithm, run=run)
        records = [learner.step(tasks)["query_loss"] for _ in range(30)]
        losses[name] = records[-1]
        assert records[-1] < records[0]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
