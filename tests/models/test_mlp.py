"""The fully connected network, on vectors and on images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep import Except, Sgd, SupervisedLearner, maml
from fewstep.core.functional import FunctionalModule
from fewstep.core.rng import generator
from fewstep.core.running import compiled
from fewstep.core.types import Batch, Task
from fewstep.models.mlp import mlp


def omniglot_network(init_std=0.01):
    torch.manual_seed(0)
    return mlp((1, 28, 28), 5, (256, 128, 64, 64), init_std, norm="batch")


def tasks(count, ways=5):
    stream = generator(0, "images")

    def batch():
        return Batch(torch.rand(count, ways, 1, 28, 28, generator=stream), torch.arange(ways).repeat(count, 1))

    return Task(batch(), batch())


def test_the_network_without_convolutions_has_the_shapes_of_the_paper():
    network = omniglot_network()
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert [tuple(module.weight.shape) for module in linear] == [
        (256, 784),
        (128, 256),
        (64, 128),
        (64, 64),
        (5, 64),
    ]
    assert network(torch.rand(7, 1, 28, 28)).shape == (7, 5)
    assert all(module.weight.abs().max() <= 0.02 and not module.bias.any() for module in linear)


def test_only_the_offset_of_its_normalisation_is_learned():
    params = FunctionalModule(omniglot_network()).params
    assert [name for name in params if "norm" in name] == [f"body.{i}.norm.bias" for i in range(4)]
    assert all(module.eps == 1e-3 for module in omniglot_network().modules() if isinstance(module, nn.BatchNorm1d))


def test_a_layer_is_linear_then_normalised_over_examples_then_rectified():
    torch.manual_seed(0)
    network = mlp(3, 2, [4], norm="batch").double()
    nn.init.normal_(network.body[0].norm.bias)
    inputs = torch.rand(6, 3, dtype=torch.float64)
    before = inputs @ network.body[0].linear.weight.T + network.body[0].linear.bias
    spread = (before.var(0, correction=0) + 1e-3).sqrt()
    hidden = ((before - before.mean(0)) / spread + network.body[0].norm.bias).relu()
    expected = hidden @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(FunctionalModule(network)(FunctionalModule(network).params, inputs), expected)


def test_vectors_are_not_flattened_and_an_empty_body_is_linear():
    assert [name for name, _ in mlp(3, 2).named_children()] == ["body", "head"]
    assert mlp(3, 2, [])(torch.rand(4, 3)).shape == (4, 2)


@pytest.mark.slow
def test_compiled_its_meta_gradient_is_the_one_in_float64():
    def learner(**how):
        algorithm = maml(Except("*.norm.bias", Sgd(0.4)))
        network = mlp((1, 28, 28), 5, (16, 8), norm="batch")
        return SupervisedLearner(network, nn.functional.cross_entropy, algorithm, loss_scale=5.0, **how)

    torch.manual_seed(0)
    fast = learner(run=compiled())
    exact = learner()
    meta = fast.meta._replace(model={name: value.double() for name, value in fast.meta.model.items()})
    single = tasks(32)
    double = Task(*(Batch(one.inputs.double(), one.targets) for one in single))
    gradients, norm, loss = fast._meta_gradient(fast.meta, [single])
    expected, expected_norm, expected_loss = exact._mean_gradient(meta, [double])
    torch.testing.assert_close(norm.double(), expected_norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-4, atol=0)
    difference = sum((a.double() - b).square().sum() for a, b in zip(gradients, expected, strict=True))
    assert difference.sqrt() < 1e-3 * expected_norm


def test_xavier_draws_glorots_uniform_weights_and_zero_biases():
    torch.manual_seed(0)
    network = mlp(30, 20, (100,), init="xavier")
    bound = (6 / 130) ** 0.5
    weight = network.get_submodule("body.0.linear").weight
    assert 0.95 * bound < weight.abs().max() <= bound
    assert not network.get_submodule("head").bias.any()
