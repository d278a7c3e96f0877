"""The two views of section 2.2, against numbers worked out by hand."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional

from fewstep import Batch, Except, Only, Sgd, SupervisedLearner, Task, anil, maml, meta_sgd, sequential
from fewstep.core.layers import by_layer
from fewstep.core.rng import generator
from fewstep.learners.inspection import feature_learning, sensitivity


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(body=nn.Linear(2, 4), act=nn.Tanh(), head=nn.Linear(4, 2))).double()


def regression_tasks(tasks):
    x, y, u, v = torch.randn(4, tasks, 5, 2, generator=generator(0, "tasks"), dtype=torch.float64)
    return Task(Batch(x, y), Batch(u, v))


def product_learner(algorithm=None):
    """f(x) = b a x with a = b = 1: grad of (f - 3)^2 at x = 1 is -4 in a and in b."""
    net = nn.Sequential(OrderedDict(body=nn.Linear(1, 1, bias=False), head=nn.Linear(1, 1, bias=False))).double()
    with torch.no_grad():
        for value in net.parameters():
            value.fill_(1.0)
    return SupervisedLearner(net, functional.mse_loss, algorithm or maml(Sgd(0.1)))


def one_point():
    batch = Batch(torch.ones(1, 1, 1, dtype=torch.float64), torch.full((1, 1, 1), 3.0, dtype=torch.float64))
    return Task(batch, batch)


@pytest.mark.parametrize("how", [{}, {"over_tasks": sequential()}], ids=["vectorized", "sequential"])
def test_a_layer_moves_in_one_step_by_alpha_times_its_gradient(how):
    learner = SupervisedLearner(small_net(), functional.mse_loss, maml(Sgd(0.05)), **how)
    tasks = regression_tasks(3)
    moved = learner.movement(tasks, 1)
    for i in range(3):
        support = Batch(tasks.support.inputs[i], tasks.support.targets[i])
        gradient = torch.func.grad(learner._support_loss)(learner.meta.model, support)
        for layer, names in by_layer(learner.meta.model).items():
            distance = 0.05 * torch.cat([gradient[name].flatten() for name in names]).norm()
            start = torch.cat([learner.meta.model[name].flatten() for name in names])
            torch.testing.assert_close(moved[layer]["rms"][i, 1], distance / start.numel() ** 0.5)
            torch.testing.assert_close(moved[layer]["relative"][i, 1], distance / start.norm())


def test_a_layer_that_the_rule_leaves_out_does_not_move_and_has_no_sensitivity():
    learner = product_learner(maml(Except("body.*", Sgd(0.1))))
    assert learner.movement(one_point(), 3)["body"]["relative"].tolist() == [[0.0] * 4]
    assert set(sensitivity(learner, one_point(), 3)) == {"head"}


def test_sensitivity_is_what_one_layer_alone_gains():
    gains = sensitivity(product_learner(), one_point(), 1)
    for layer in ("body", "head"):  # 1 + 0.1 * 4 = 1.4: the loss falls from 4 to 1.6^2
        torch.testing.assert_close(gains[layer], torch.tensor([[0.0, 4 - 1.6**2]], dtype=torch.float64))


def test_sensitivity_is_in_the_unit_of_the_loss_whatever_its_scale():
    net = small_net()
    scaled = SupervisedLearner(net, functional.mse_loss, maml(Sgd(0.01)), loss_scale=5.0)
    plain = SupervisedLearner(net, functional.mse_loss, maml(Sgd(0.05)))
    tasks = regression_tasks(2)
    torch.testing.assert_close(sensitivity(scaled, tasks, 2), sensitivity(plain, tasks, 2))


def test_what_adapts_by_hand():
    parts = feature_learning(product_learner(), one_point(), 1, ["head.weight"])
    losses = {part: curves["loss"].tolist()[0] for part, curves in parts.items()}
    assert losses["everything"] == pytest.approx([4, (1.4**2 - 3) ** 2])
    assert losses["head"] == losses["rest"] == pytest.approx([4, 1.6**2])


def test_where_the_head_alone_is_adapted_it_gives_the_whole_gain():
    learner = product_learner(anil(Sgd(0.1)))
    parts = feature_learning(learner, one_point(), 2, ["head.weight"])
    assert torch.equal(parts["head"]["loss"], parts["everything"]["loss"])
    assert parts["rest"]["loss"].tolist() == [[4.0] * 3]


def test_learned_rates_and_wrapped_rules_can_be_inspected():
    tasks = regression_tasks(2)
    for algorithm in (meta_sgd(0.05), maml(Only(("*.bias", "head.*"), Sgd(0.05)))):
        learner = SupervisedLearner(small_net(), functional.mse_loss, algorithm)
        assert set(sensitivity(learner, tasks, 2)) == {"body", "head"}
        everything = feature_learning(learner, tasks, 2, ["head.weight", "head.bias"])["everything"]["loss"]
        assert torch.equal(everything, learner.evaluate(tasks, 2)["loss"])
