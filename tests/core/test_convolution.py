"""Convolutions as products of filters and patches, beside PyTorch's own."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import fewstep
from fewstep.core import convolution
from fewstep.core.context import recording_for_compiler, vmapped
from fewstep.core.convolution import with_own_convolutions
from fewstep.core.stepwise import stepwise
from fewstep.models.convnet import ConvNet

OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (2, 4), "padding": (2, 1), "stride": (1, 3), "bias": False},
    {"kernel_size": 3, "dilation": (1, 2)},
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "groups": 2},
]


@pytest.fixture
def on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "pays", lambda images: images.dim() == 4)


def layers(**options: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, **options).double()
    return theirs, with_own_convolutions(copy.deepcopy(theirs))


@pytest.mark.usefixtures("on_any_device")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(3, 4, 9, 11), (4, 9, 11)], ids=["examples", "one example"])
def test_written_out_convolutions_compute_what_pytorch_does(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    theirs, ours = layers(**options)
    images = torch.randn(2, *shape, dtype=torch.float64)
    with recording_for_compiler(True):
        torch.testing.assert_close(vmapped(ours)(images), torch.vmap(theirs)(images))


@pytest.mark.usefixtures("on_any_device")
def test_first_and_second_derivatives_are_pytorchs() -> None:
    theirs, ours = layers(kernel_size=3, padding=1, stride=2)
    images = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)

    def curvature(layer: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def loss(weight: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            values = torch.func.functional_call(layer, {"weight": weight}, (images,))
            return values.tanh().square().sum()

        weight = layer.get_parameter("weight").detach()
        gradient = torch.func.grad(loss, argnums=(0, 1))
        return torch.func.jvp(gradient, (weight, images), (weight, images))[1]

    with recording_for_compiler(True):
        of_ours, of_theirs = (vmapped(partial(curvature, layer))(images) for layer in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs)


def test_meta_gradients_through_products_are_those_through_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 6, 1, 12, 12, generator=generator, dtype=torch.float64)
    batch = fewstep.Batch(images, torch.arange(3).repeat(2, 2))
    tasks = fewstep.Task(batch, fewstep.Batch(images.flip(-1), batch.targets))
    asked = Mock(return_value=True)

    def gradients(over_tasks: fewstep.OverTasks) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = ConvNet(3, image_size=12, filters=4, blocks=2).double()
        loss, algorithm = nn.functional.cross_entropy, fewstep.maml(fewstep.Sgd(0.1), 2)
        learner = fewstep.SupervisedLearner(network, loss, algorithm, over_tasks=over_tasks)
        learner.step(tasks)
        return [value.grad for value in learner.meta.model.values() if value.grad is not None]

    expected = gradients(fewstep.vectorized())
    monkeypatch.setattr(convolution, "pays", asked)
    torch.testing.assert_close(gradients(stepwise(keep=True, forward_mode=True, vectorize=False)), expected)
    assert not asked.called  # one task by itself has PyTorch's
    torch.testing.assert_close(gradients(stepwise(keep=True, forward_mode=True)), expected)
    assert asked.called  # it was another way


def test_only_plain_layers_are_exchanged_and_parameters_stay() -> None:
    class Own(nn.Conv2d): ...

    module = nn.Sequential(nn.Conv2d(1, 2, 3), Own(2, 2, 3))
    before = dict(module.named_parameters())
    exchanged, own = with_own_convolutions(module).children()
    assert type(own) is Own
    assert type(exchanged) is not nn.Conv2d
    assert all(value is before[name] for name, value in module.named_parameters())
