"""Heads for another number of ways, against numpy by hand."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.core.algorithms import maml
from fewstep.core.rng import generator
from fewstep.core.rules import Sgd
from fewstep.core.types import Batch, MetaParams
from fewstep.learners.heads import balanced_cross_entropy, class_means, features, head_name, with_head, with_ways
from fewstep.learners.supervised import SupervisedLearner

FEATURES, TRAINED, WAYS = 4, 3, 5


def network(bias=True):
    body = nn.Sequential(nn.Linear(2, FEATURES), nn.BatchNorm1d(FEATURES), nn.Tanh())
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(FEATURES, TRAINED, bias)))


def problem(bias=True):
    torch.manual_seed(0)
    module = network(bias)
    params = {name: value.detach().clone() for name, value in module.named_parameters()}
    labels = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4])
    return module, MetaParams(params, {}), Batch(torch.randn(8, 2, generator=generator(0, "heads")), labels)


def seen_by_hand(meta, inputs):
    """The features, in numpy: a linear layer, normalisation by these inputs' own statistics, tanh."""
    p = {name: value.double().numpy() for name, value in meta.model.items()}
    hidden = inputs.double().numpy() @ p["body.0.weight"].T + p["body.0.bias"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    return np.tanh(hidden * p["body.1.weight"] + p["body.1.bias"])


def test_features_are_what_the_head_sees():
    module, meta, support = problem()
    found = features(module, meta.model, support.inputs)
    np.testing.assert_allclose(found, seen_by_hand(meta, support.inputs), atol=1e-5)


def test_a_zero_head_is_zero():
    module, meta, support = problem()
    made = with_head("zero", meta, module, support, WAYS).model
    assert torch.equal(made["head.weight"], torch.zeros(WAYS, FEATURES))
    assert torch.equal(made["head.bias"], torch.zeros(WAYS))
    assert torch.equal(made["body.0.weight"], meta.model["body.0.weight"])


def test_each_row_of_a_mean_head_is_the_mean_of_the_trained_rows():
    module, meta, support = problem()
    made = with_head("mean", meta, module, support, WAYS).model
    weight, bias = meta.model["head.weight"].numpy(), meta.model["head.bias"].numpy()
    np.testing.assert_allclose(made["head.weight"], np.tile(weight.mean(0), (WAYS, 1)), rtol=1e-6)
    np.testing.assert_allclose(made["head.bias"], np.full(WAYS, bias.mean()), rtol=1e-6)


def test_a_prototype_head_tells_classes_by_the_distance_to_their_means():
    module, meta, support = problem()
    made = with_head("prototype", meta, module, support, WAYS).model
    seen, labels = seen_by_hand(meta, support.inputs), support.targets.numpy()
    means = np.stack([seen[labels == label].mean(0) for label in range(WAYS)])
    np.testing.assert_allclose(made["head.weight"], 2 * means, atol=1e-5)
    np.testing.assert_allclose(made["head.bias"], -(means**2).sum(1), atol=1e-5)
    logits = seen @ made["head.weight"].numpy().T + made["head.bias"].numpy()
    distances = ((seen[:, None] - means) ** 2).sum(2)
    np.testing.assert_allclose(np.diff(logits, axis=1), -np.diff(distances, axis=1), atol=1e-4)


def test_a_head_without_bias_cannot_hold_prototypes():
    module, meta, support = problem(bias=False)
    with pytest.raises(ValueError, match=r"A prototype head holds .* in its bias: head has none"):
        with_head("prototype", meta, module, support, WAYS)


def test_a_head_without_bias_stays_without():
    module, meta, support = problem(bias=False)
    assert "head.bias" not in with_head("mean", meta, module, support, WAYS).model
    assert with_ways(module, WAYS).head.bias is None


def test_the_trained_head_is_left_as_it_is():
    module, meta, support = problem()
    assert with_head("trained", meta, module, support, TRAINED) is meta


def test_learned_rates_of_a_new_heads_rows_are_the_mean_of_the_trained_ones():
    module, meta, support = problem()
    rates = {"lr.head.weight": torch.rand(TRAINED, FEATURES), "lr.head.bias": torch.tensor(0.5)}
    made = with_head("zero", meta._replace(rule=rates), module, support, WAYS).rule
    torch.testing.assert_close(made["lr.head.weight"], rates["lr.head.weight"].mean(0).expand(WAYS, FEATURES))
    assert made["lr.head.bias"] == 0.5  # one rate for the tensor fits any number of rows


@pytest.mark.parametrize("steps", [1, 3])
def test_after_adaptation_a_mean_head_predicts_what_a_zero_head_does(steps):
    module, meta, support = problem()
    outputs = []
    for policy in ("zero", "mean"):
        learner = SupervisedLearner(
            with_ways(module, WAYS), nn.functional.cross_entropy, maml(Sgd(0.5)), normalization="support"
        )
        learner.load_meta(with_head(policy, meta, module, support, WAYS))
        outputs.append(learner.adapt(support, steps)(support.inputs).softmax(1))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)


def test_the_head_is_found_at_any_depth():
    assert head_name(nn.Sequential(OrderedDict(network=network()))) == "network.head"


@pytest.mark.parametrize(
    "module", [nn.Linear(2, 3), nn.Sequential(OrderedDict(head=nn.Flatten(), last=nn.Linear(2, 3)))]
)
def test_a_module_without_a_head_is_told_how_to_have_one(module):
    with pytest.raises(ValueError, match=r"one nn\.Linear called 'head' as its last layer"):
        with_ways(module, 3)


def test_a_frozen_head_is_refused():
    module, meta, support = problem()
    model = {name: value for name, value in meta.model.items() if not name.startswith("head.")}
    with pytest.raises(ValueError, match=r"head\.weight is frozen"):
        with_head("zero", MetaParams(model, {}), module, support, WAYS)


def test_a_frozen_bias_is_refused_and_a_frozen_head_stays_for_as_many_classes():
    module, meta, support = problem()
    module.head.bias.requires_grad_(False)
    without = MetaParams({name: value for name, value in meta.model.items() if name != "head.bias"}, {})
    with pytest.raises(ValueError, match=r"head\.bias is frozen"):
        with_head("zero", without, module, support, WAYS)
    again = with_ways(module, TRAINED)
    assert again is not module
    assert torch.equal(again.head.bias, module.head.bias)


def test_a_new_head_draws_no_random_numbers():
    module, _, _ = problem()
    before = torch.get_rng_state()
    with_ways(module, WAYS)
    assert torch.equal(torch.get_rng_state(), before)


def test_class_means_and_the_balanced_loss_weigh_classes_alike():
    values, labels = torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([0, 0, 1])
    assert class_means(values, labels, 2).tolist() == [[2.0], [8.0]]
    logits = torch.tensor([[1.0, 0.0], [0.5, 0.2], [-1.0, 2.0]])
    each = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(balanced_cross_entropy(logits, labels), ((each[0] + each[1]) / 2 + each[2]) / 2)
