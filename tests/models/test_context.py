"""The context variant: parameters beside the inputs, the only ones that adapt."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fewstep import Batch, Only, Sgd, SupervisedLearner, Task, maml
from fewstep.core.rng import generator
from fewstep.core.stepwise import stepwise
from fewstep.core.trees import leaves
from fewstep.errors import RecipeError
from fewstep.experiments.build import build_model
from fewstep.experiments.recipe_files import load_recipe
from fewstep.models.context import WithContext
from fewstep.models.convnet import ConvNet


def tasks(count=3, size=8, dtype=torch.float32):
    stream = generator(0, "images")

    def batch():
        images = torch.rand(count, 6, 1, size, size, generator=stream, dtype=dtype)
        return Batch(images, torch.arange(3).repeat(count, 2))

    return Task(batch(), batch())


def learner(steps=2, dtype=torch.float32, **how):
    torch.manual_seed(0)
    network = WithContext(ConvNet(3, channels=3, image_size=8, filters=4, blocks=2), (2, 8, 8)).to(dtype)
    torch.nn.init.normal_(network.context)
    return SupervisedLearner(network, functional.cross_entropy, maml(Only("context", Sgd(3.0)), steps), **how)


def test_every_example_sees_the_same_context_beside_its_own_channels():
    seen = []
    network = WithContext(torch.nn.Identity(), (2, 4, 4))
    torch.nn.init.normal_(network.context)
    images = torch.rand(5, 1, 4, 4)
    seen = network(images)
    assert torch.equal(seen[:, :1], images)
    assert all(torch.equal(image, network.context) for image in seen[:, 1:])


def test_adapting_changes_the_context_and_nothing_else():
    one = learner()
    support = Batch(*(values[0] for values in tasks().support))
    adapted = one.adapt(support, 3)
    moved = {name for name, value in adapted.params.items() if not torch.equal(value, one.meta.model[name])}
    assert moved == {"context"}
    assert not torch.equal(adapted(support.inputs), one.adapt(support, 0)(support.inputs))


def test_the_outer_gradient_reaches_everything_and_equals_finite_differences():
    one = learner(dtype=torch.float64)
    meta, data = one.meta, [tasks(dtype=torch.float64)]
    gradients, _, _ = one._mean_gradient(meta, data)
    assert all(
        gradient.abs().max() > 0
        for gradient, name in zip(gradients, meta.model, strict=True)
        if "conv.bias" not in name
    )
    directions = [
        torch.randn(leaf.shape, generator=generator(0, "d", i), dtype=leaf.dtype) for i, leaf in enumerate(leaves(meta))
    ]

    def loss(distance):
        moved = {n: v + distance * d for (n, v), d in zip(meta.model.items(), directions, strict=True)}
        return one._mean_gradient(meta._replace(model=moved), data)[2]

    expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
    along = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    torch.testing.assert_close(along, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("forward_mode", [False, True])
def test_one_step_at_a_time_it_has_the_same_gradient(forward_mode):
    plain, steps = (
        learner(dtype=torch.float64, **how)
        for how in ({}, {"over_tasks": stepwise(keep=True, forward_mode=forward_mode)})
    )
    data = [tasks(dtype=torch.float64)]
    for one, other in zip(
        plain._mean_gradient(plain.meta, data)[0], steps._mean_gradient(plain.meta, data)[0], strict=True
    ):
        torch.testing.assert_close(one, other)


def test_recipes_append_channels_to_images_and_features_to_vectors():
    images = {"tasks": {"kind": "omniglot"}, "algorithm": {"kind": "maml", "only": ["context"]}}
    network = build_model(load_recipe(images | {"model": {"kind": "convnet", "context": 2}}))
    assert network.context.shape == (2, 28, 28)
    assert network(torch.rand(3, 1, 28, 28)).shape == (3, 5)
    vectors = {"tasks": {"kind": "sinusoid"}, "algorithm": {"kind": "maml", "only": ["context"]}}
    network = build_model(load_recipe(vectors | {"model": {"kind": "mlp", "context": 4}}))
    assert network.context.shape == (4,)
    assert network(torch.rand(3, 1)).shape == (3, 1)


def test_a_context_that_normalisation_would_take_away_is_refused():
    with pytest.raises(RecipeError, match=r"model\.context has no effect with model\.norm = 'batch'"):
        load_recipe("omniglot-5way-1shot-nonconv", ["model.context=3"])
