"""The paper's classification baselines: pretrained on all classes, then fine-tuned or searched for neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fewstep import FewShot, Sgd, SupervisedLearner, fomaml, joint
from fewstep.core.functional import FunctionalModule
from fewstep.core.rng import generator
from fewstep.core.trees import index
from fewstep.core.types import Batch, Task
from fewstep.learners.nearest_neighbour import NearestNeighbour, nearest_neighbour_scores
from fewstep.learners.pretrained import PretrainedLearner, feature_network, few_shot_network
from fewstep.models.convnet import ConvNet
from fewstep.models.mlp import mlp
from fewstep.tasks.all_classes import AllClasses

CLASSES, WAYS = 12, 3


def images(classes=24, examples=8):
    """Classes that differ in the direction of their stripes, examples in where the stripes begin."""
    down, right = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    angle = torch.arange(classes).view(-1, 1, 1, 1) * torch.pi / classes
    begin = 6 * torch.rand(classes, examples, 1, 1, generator=generator(0, "images"))
    waves = torch.sin(angle.cos() * down + angle.sin() * right + begin)
    return (127 * (waves + 1)).to(torch.uint8).unsqueeze(2)


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).float().mean()


def learner(method="finetune", lr=0.1, distance="euclidean", head_std=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    net = ConvNet(CLASSES, image_size=8, filters=8, blocks=2).to(dtype)
    optimizer = lambda leaves: torch.optim.Adam(leaves, lr=0.01)  # noqa: E731
    classifier = SupervisedLearner(net, functional.cross_entropy, joint(), optimizer=optimizer)
    metrics = {"accuracy": accuracy}
    if method == "finetune":
        network = few_shot_network(net, WAYS, head_std).to(dtype)
        few = SupervisedLearner(network, functional.cross_entropy, fomaml(Sgd(lr), 4), metrics=metrics)
    else:
        few = NearestNeighbour(feature_network(net), functional.cross_entropy, WAYS, distance=distance, metrics=metrics)
    return PretrainedLearner(classifier, few)


def all_classes():
    few = images()[::2]
    return AllClasses(few.flatten(0, 1), (few.shape[1],) * CLASSES)


def new_tasks(count=6, dtype=torch.float32, shots=2):
    task = FewShot(images()[1::2], WAYS, shots, 3).sample(count, generator(0, "new"))
    return Task(*(Batch(batch.inputs.to(dtype), batch.targets) for batch in task))


def parameters_of(one):
    return {name: value.clone() for name, value in one.meta.model.items()}


def test_pretraining_learns_to_tell_all_classes_apart_and_both_methods_use_it():
    for method in ("finetune", "nearest_neighbour"):
        one = learner(method)
        tasks = new_tasks(60)
        before = one.evaluate(tasks, 4)["accuracy"][:, -1].mean()
        losses = [one.step(all_classes().sample(48, generator(0, "train", i)))["query_loss"] for i in range(60)]
        assert np.mean(losses[-5:]) < 0.6 * losses[0]
        assert one.iteration == 60
        assert one.evaluate(tasks, 4)["accuracy"][:, -1].mean() > before + 0.05


def test_a_step_is_an_ordinary_update_of_an_ordinary_classifier():
    one = learner()
    torch.manual_seed(0)
    net = ConvNet(CLASSES, image_size=8, filters=8, blocks=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    batch = all_classes().sample(48, generator(0, "train"))
    functional.cross_entropy(net(batch.query.inputs[0]), batch.query.targets[0]).backward()
    optimizer.step()
    one.step(batch)
    own = dict(net.named_parameters())
    for name, value in one.meta.model.items():
        if "conv.bias" not in name:  # whose gradient is rounding: normalisation takes the bias away
            torch.testing.assert_close(value, own[name].detach())


def test_fine_tuning_is_gradient_descent_from_the_pretrained_body_and_a_new_head():
    one = learner(dtype=torch.float64)
    one.step(Task(*(Batch(b.inputs.double(), b.targets) for b in all_classes().sample(48, generator(0, "t")))))
    tasks = new_tasks(2, torch.float64)
    curves = one.evaluate(tasks, 3)["loss"]
    net = few_shot_network(ConvNet(CLASSES, image_size=8, filters=8, blocks=2), WAYS).double()
    for i in range(2):
        task = index(tasks, i)
        for name, value in net.named_parameters():
            pretrained = one.meta.model.get(name)
            value.data = (
                torch.zeros_like(value)
                if name.startswith("head")
                else value
                if pretrained is None
                else pretrained.clone()
            )
        for step in range(4):
            expected = functional.cross_entropy(net(task.query.inputs), task.query.targets)
            torch.testing.assert_close(curves[i, step], expected.detach())
            loss = functional.cross_entropy(net(task.support.inputs), task.support.targets)
            learned = [value for value in net.parameters() if value.requires_grad]
            for value, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                value.data -= 0.1 * gradient


def test_fine_tuning_leaves_nothing_behind():
    one = learner()
    before = parameters_of(one)
    tasks = new_tasks()
    first = one.evaluate(tasks, 4)
    one.adapt(Batch(tasks.support.inputs[0], tasks.support.targets[0]))
    assert all(torch.equal(before[name], value) for name, value in one.meta.model.items())
    again = one.evaluate(tasks, 4)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_new_head_is_the_same_for_every_task_and_run_and_zero_means_equal_chances():
    torch.testing.assert_close(learner().evaluate(new_tasks(), 0)["loss"], torch.full((6, 1), WAYS).log())
    heads = [few_shot_network(ConvNet(CLASSES), WAYS, 0.5, seed).head.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0.3 < heads[0].std() < 0.7


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalization", ["transductive", "support"])
def test_the_nearest_neighbour_is_that_of_a_plain_computation(distance, normalization):
    one = learner("nearest_neighbour", distance=distance, dtype=torch.float64)
    tasks = new_tasks(5, torch.float64)
    curves = one.evaluate(tasks, 7, normalization=normalization)
    assert curves["accuracy"].shape == (5, 1)
    network = FunctionalModule(feature_network(ConvNet(CLASSES, image_size=8, filters=8, blocks=2)).double())
    params = {name: one.meta.model[name] for name in network.params}
    for i in range(5):
        task = index(tasks, i)
        statistics = network.statistics(params, task.support.inputs) if normalization == "support" else None
        examples, queries = network(params, task.support.inputs), network(params, task.query.inputs, statistics)
        examples, queries = examples.numpy(), queries.numpy()
        if distance == "cosine":
            similar = queries @ examples.T / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(examples, axis=1))
            nearest = similar.argmax(1)
        else:
            nearest = ((queries[:, None] - examples[None]) ** 2).sum(-1).argmin(1)
        right = task.support.targets.numpy()[nearest] == task.query.targets.numpy()
        assert curves["accuracy"][i, 0] == pytest.approx(right.mean())


def test_scores_are_minus_the_least_distance_to_each_class():
    examples, labels = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    scores = nearest_neighbour_scores(torch.tensor([[0.0, 0.0], [6.0, 8.0]]), examples, labels, 3)
    assert scores.tolist() == [[0.0, -1.0, -torch.inf], [-10.0, -5.0, -torch.inf]]
    angles = nearest_neighbour_scores(torch.tensor([[6.0, 8.0]]), examples[1:], torch.tensor([0, 1]), 2, "cosine")
    assert angles[0, 0] == pytest.approx(0.0, abs=1e-6)
    assert angles[0, 1] == pytest.approx(-np.sqrt(2 - 2 * 0.8))


def test_nearest_neighbour_adapts_nothing_and_says_so():
    with pytest.raises(ValueError, match="must be 'finetune': got 'nearest_neighbour'"):
        learner("nearest_neighbour").adapt(new_tasks().support)


def test_what_is_adapted_with_the_statistics_of_its_support_set_becomes_a_module():
    task = new_tasks()
    support = Batch(task.support.inputs[0], task.support.targets[0])
    with pytest.raises(ValueError, match="Adapt with normalization='support'"):
        learner().adapt(support).as_module()
    adapted = learner().adapt(support, normalization="support")
    assert torch.allclose(adapted.as_module()(task.query.inputs[0]), adapted(task.query.inputs[0]), atol=1e-5)


def test_a_classifier_without_a_linear_head_is_refused():
    with pytest.raises(ValueError, match=r"linear layer named `head`.*got NoneType"):
        few_shot_network(nn.Sequential(nn.Linear(3, 3)), WAYS)
    assert feature_network(mlp(3, 4, [5]))(torch.rand(2, 3)).shape == (2, 5)


def test_it_resumes_bit_for_bit():
    batches = [all_classes().sample(16, generator(0, "train", i)) for i in range(6)]
    whole, parts = learner(), learner()
    for batch in batches:
        whole.step(batch)
    for batch in batches[:3]:
        parts.step(batch)
    state = parts.state_dict()
    parts.step(batches[3])
    for _ in range(2):  # neither steps of the one nor of the other change the state
        resumed = learner()
        resumed.load_state_dict(state)
        resumed.evaluate(new_tasks(), 2)
        for batch in batches[3:]:
            resumed.step(batch)
        assert all(torch.equal(value, resumed.meta.model[name]) for name, value in whole.meta.model.items())
