"""The same meta-gradients from an independent engine, which patches modules and unrolls with autograd."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
import torchopt
from torch import nn

from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import QueryGradient, meta_gradient
from fewstep.core.over_tasks import vectorized
from fewstep.core.rules import Adam, Momentum, Sgd
from fewstep.core.types import Batch, MetaParams, Task

from .problems import assert_same, draw, one, seeded, supervised

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fewstep.core.rules import UpdateRule
    from fewstep.core.types import Params


# No dead unit, and no bias where a normalisation follows: at a gradient of 0 torchopt's Adam yields nan.


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 5), nn.ELU(), nn.Linear(5, 8))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)),
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(12, 8),
    )


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 8)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(inputs)))


def retie(module: nn.Module) -> None:
    """torchopt puts an updated tensor of its own in each place of a tied parameter, and the tie is lost."""
    if isinstance(module, TiedAutoencoder):
        module.decoder._parameters["weight"] = module.encoder._parameters["weight"]


def by_torchopt(
    module: nn.Module, optimizer: Callable[[nn.Module], torchopt.MetaOptimizer], tasks: Task, steps: int
) -> Params:
    total: dict[str, Tensor] = {}
    for i in range(len(tasks.query.targets)):
        task, patched = one(tasks, i), copy.deepcopy(module).train()
        initial, inner = dict(patched.named_parameters()), optimizer(patched)
        for _ in range(steps):
            inner.step(nn.functional.mse_loss(patched(task.support.inputs), task.support.targets))
            retie(patched)
        query_loss = nn.functional.mse_loss(patched(task.query.inputs), task.query.targets)
        for name, gradient in zip(initial, torch.autograd.grad(query_loss, list(initial.values())), strict=True):
            total[name] = total.get(name, 0.0) + gradient
    return {name: gradient / len(tasks.query.targets) for name, gradient in total.items()}


# These decay rates are exact in float32, in which torchopt computes Adam's bias corrections.
@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (Sgd(0.2), lambda module: torchopt.MetaSGD(module, lr=0.2)),
        (Momentum(0.1), lambda module: torchopt.MetaSGD(module, lr=0.1, momentum=0.9)),
        (
            Adam(0.1, 0.5, 0.75, 1e-3),
            lambda module: torchopt.MetaAdam(module, lr=0.1, betas=(0.5, 0.75), eps=1e-3),
        ),
    ],
    ids=["sgd", "momentum", "adam"],
)
@pytest.mark.parametrize("build", [mlp, convnet, TiedAutoencoder])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_equals_torchopts(
    build: Callable[[], nn.Module], rule: UpdateRule, optimizer: Callable, steps: int
) -> None:
    module = seeded(build)
    tasks = Task(
        Batch(draw(3, 5, 8, seed=1), draw(3, 5, 8, seed=2)),
        Batch(draw(3, 7, 8, seed=3), draw(3, 7, 8, seed=4)),
    )
    model = FunctionalModule(module)
    task_gradient = QueryGradient(*supervised(model), rule, steps)
    gradient, _ = meta_gradient(task_gradient, MetaParams(model.params, {}), tasks, vectorized())
    assert_same(gradient.model, by_torchopt(module, optimizer, tasks, steps), atol=1e-12, rtol=1e-9)
