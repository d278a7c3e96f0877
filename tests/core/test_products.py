"""Products in bfloat16: those alone, in all derivatives, for any model and any way to run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fewstep import SupervisedLearner
from fewstep.core import algorithms, running
from fewstep.core.context import exactly
from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import QueryGradient, meta_gradient
from fewstep.core.over_tasks import auto, sequential, vectorized
from fewstep.core.products import bfloat16
from fewstep.core.rng import generator
from fewstep.core.rules import Sgd
from fewstep.core.running import compiled, plain, traced
from fewstep.core.stepwise import stepwise
from fewstep.core.trees import tree_map
from fewstep.core.types import MetaParams
from fewstep.experiments.build import build_learner
from fewstep.experiments.data import load_data
from fewstep.experiments.recipe_files import load_recipe

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


def test_a_term_that_counts_for_nothing_may_be_anything() -> None:
    nothing, ones = torch.full((1, 2, 2), torch.nan), torch.ones(1, 2, 2)
    assert torch.equal(bfloat16()(lambda: torch.baddbmm(nothing, ones, ones, beta=0))(), 2 * ones)


def test_the_bias_of_a_convolution_and_its_gradient_keep_their_digits() -> None:
    bias = torch.tensor([256.0 + 2**-12], requires_grad=True)
    along = torch.tensor([[[[1.0, 2**-12]]]])

    def gradient() -> tuple[Tensor, Tensor]:
        outputs = nn.functional.conv2d(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1, requires_grad=True), bias)
        return outputs.detach(), torch.autograd.grad(outputs, bias, along)[0]

    outputs, of_bias = bfloat16()(gradient)()
    assert outputs.flatten().tolist() == [256.0 + 2**-12] * 2
    assert of_bias.item() == 1 + 2**-12


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_types_are_left_alone(kind: torch.dtype) -> None:
    left, right = draw(3, 4).to(kind), draw(4, 2).to(kind)
    product = bfloat16()(torch.mm)(left, right)
    assert torch.equal(product, left @ right)
    assert product.dtype == kind


@pytest.mark.parametrize("wrong", [lambda leaf: 0 * leaf, lambda leaf: 3 * leaf])
def test_a_compiled_function_that_is_wrong_beyond_rounding_is_not_used(
    monkeypatch: Any, caplog: Any, wrong: Any
) -> None:
    monkeypatch.setattr(running, "_compile", lambda function, **_: lambda *args: tree_map(wrong, function(*args)))
    left, right = draw(8, 40).float(), draw(40, 8).float()
    product = bfloat16(compiled())(torch.mm)(left, right)
    assert distance(product, left @ right) < 0.01
    assert "off by" in caplog.text


def test_what_draws_random_numbers_is_not_compiled_and_draws_as_it_would(monkeypatch: Any, caplog: Any) -> None:
    def dropped(x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)

    monkeypatch.setattr(running, "_compile", lambda function, **_: lambda *args: 3 * function(*args))
    torch.manual_seed(0)
    drawn = compiled()(dropped)(torch.ones(1000))
    assert "draws random numbers" in caplog.text
    torch.manual_seed(0)
    assert drawn.equal(dropped(torch.ones(1000)))


RECIPES = {
    "eager": ("sinusoid-10shot", ["execution.compile=false"]),
    "eager, sequential": ("sinusoid-10shot", ["execution.compile=false", "execution.over_tasks=sequential"]),
    "recomputed": ("sinusoid-10shot", ["execution.compile=false", "execution.remat=true", "algorithm.steps=2"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_way_of_a_recipe_follows_its_precision(name: str) -> None:
    recipe, settings = RECIPES[name]
    records: list[dict[str, float]] = []
    for precision in ("float32", "bf16"):
        loaded = load_recipe(recipe, [*settings, "model.hidden=[8]", f"execution.precision={precision}"])
        learner = build_learner(loaded)
        records.append(learner.step(load_data(loaded).distribution("train", 5, 5).sample(4, generator(0, "x"))))
    exact, rounded = (record["gradient_norm"] for record in records)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


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
