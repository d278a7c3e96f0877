"""Small problems, and the checks that the tests of the core share."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewstep.core.meta import meta_gradient
from fewstep.core.over_tasks import vectorized
from fewstep.core.rules import selected
from fewstep.core.trees import index, leaves, tree_map
from fewstep.core.types import Batch, MetaParams, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewstep.core.functional import FunctionalModule
    from fewstep.core.rules import UpdateRule
    from fewstep.core.types import LossFn, OverTasks, Params, TaskGradient

DTYPE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same on every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A float64 module whose initial parameters are the same on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().to(DTYPE)


class SmallNet(nn.Module):
    """Smooth, so that finite differences are exact to rounding; `body` and `head` for ANIL and BOIL."""

    def __init__(self, inputs: int = 2, hidden: int = 4, outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(inputs)))


def meta_params(params: Params, rule: UpdateRule) -> MetaParams:
    """The initialisation and the rule's initial hyper-parameters."""
    return MetaParams(params, rule.hyperparameters(selected(params, rule)))


def regression_tasks(tasks: int = 3, support: int = 5, query: int = 6, seed: int = 0) -> Task:
    """Tasks for `SmallNet`: inputs and targets `[tasks, examples, 2]`."""
    x, y, u, v = (
        draw(tasks, examples, 2, seed=4 * seed + i) for i, examples in enumerate((support, support, query, query))
    )
    return Task(Batch(x, y), Batch(u, v))


def supervised(model: FunctionalModule, read: Callable[[Any], Tensor] = lambda out: out) -> tuple[LossFn, LossFn]:
    """Support and query loss (mean squared error) of a model under its normalisation policy."""

    def support_loss(params: Params, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(read(model(params, batch.inputs)), batch.targets)

    def query_loss(params: Params, task: Task) -> Tensor:
        by_support = model.normalization == "support"
        statistics = model.statistics(params, task.support.inputs) if by_support else None
        return nn.functional.mse_loss(read(model(params, task.query.inputs, statistics)), task.query.targets)

    return support_loss, query_loss


def random_like(tree: Any, seed: int) -> Any:
    """A direction: normal numbers in the shape of the tree."""
    generator = torch.Generator().manual_seed(seed)
    return tree_map(lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype), tree)


def dot(left: Any, right: Any) -> Tensor:
    """Inner product of two trees."""
    return torch.stack([(a * b).sum() for a, b in zip(leaves(left), leaves(right), strict=True)]).sum()


def assert_same(actual: Any, expected: Any, atol: float = 1e-12, rtol: float = 1e-10) -> None:
    """Equal trees, to rounding; bit for bit with `atol=rtol=0`."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def assert_matches_finite_differences(
    task_gradient: TaskGradient,
    meta: MetaParams,
    tasks: Task,
    over_tasks: OverTasks | None = None,
    directions: int = 3,
    eps: float = 1e-6,
    rtol: float = 1e-6,
) -> None:
    """The meta-gradient, along random directions, equals central differences of the mean query loss.

    Modules that draw random numbers (dropout) draw the same ones in every evaluation.
    """

    def evaluate(at: MetaParams) -> tuple[MetaParams, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return meta_gradient(task_gradient, at, tasks, over_tasks or vectorized())

    gradient, _ = evaluate(meta)
    for seed in range(directions):
        direction = random_like(meta, seed)
        above, below = (
            evaluate(tree_map(lambda m, d, s=sign: m + s * eps * d, meta, direction))[1].mean() for sign in (1, -1)
        )
        torch.testing.assert_close(dot(gradient, direction), (above - below) / (2 * eps), rtol=rtol, atol=1e-8)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters and buffers, copied."""
    return copy.deepcopy(module.state_dict())


def one(tasks: Task, i: int) -> Task:
    """Task `i` of a meta-batch."""
    return index(tasks, i)
