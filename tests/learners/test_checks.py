"""What a learner is given, and what it says where that would go wrong without a word."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional

import fewstep
from fewstep import Batch, Sgd, SupervisedLearner, Task, anil, fomaml, maml
from fewstep.core.running import compiled, traced

MAML = maml(Sgd(0.1), 2)


def batch(tasks=4, examples=5):
    return Batch(torch.randn(tasks, examples, 3), torch.randn(tasks, examples, 1))


def meta_batch(**sizes):
    return Task(batch(**sizes), batch(**sizes))


def learner(module=None, algorithm=MAML, **how):
    return SupervisedLearner(nn.Linear(3, 1) if module is None else module, functional.mse_loss, algorithm, **how)


class Cached(nn.Module):
    """A forward pass that goes through what was made of the layers beforehand."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        self.features = lambda inputs: self.first(inputs).tanh()

    def forward(self, inputs):
        return self.second(self.features(inputs))


def test_parameters_that_the_loss_does_not_depend_on_are_told(caplog):
    learner(Cached()).step(meta_batch())
    assert "the loss does not depend on first.weight, first.bias, which then learn nothing" in caplog.text
    caplog.clear()
    learner(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))).step(meta_batch())
    assert not caplog.records


class LeftOut(nn.Module):
    """A layer that is left out by chance in training, as in stochastic depth."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, inputs):
        return self.second(self.first(inputs) if torch.rand(()) < 0.9 else inputs)


def test_layers_that_are_left_out_by_chance_are_not_told(caplog):
    for seed in range(20):
        torch.manual_seed(seed)
        learner(LeftOut(), over_tasks=fewstep.sequential()).step(meta_batch())
    assert not caplog.records


@pytest.mark.parametrize(("inputs", "targets"), [((7, 5, 3), (5, 1)), ((5, 3), (1,))])
def test_examples_that_lie_otherwise_on_purpose_are_not_told(caplog, inputs, targets):
    one = SupervisedLearner(nn.Linear(3, 1), lambda outputs, targets: (outputs.mean() - targets.mean()).square(), MAML)
    one.adapt(Batch(torch.randn(inputs), torch.randn(targets)))
    assert not caplog.records


def test_a_missing_axis_of_tasks_is_told_where_support_and_query_are_of_one_size(caplog):
    learner().step([Task(Batch(torch.randn(5, 3), torch.randn(5, 1)), Batch(torch.randn(5, 3), torch.randn(5, 1)))])
    assert "inputs [3] and targets [1]" in caplog.text
    assert "is the axis of tasks missing" in caplog.text


def test_a_rule_that_treats_the_names_of_one_tensor_differently_is_told_of_it(caplog):
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    learner(tied, anil(Sgd(0.1), 2, head="1.*"))
    assert (
        "1.weight is 0.weight, tied, and goes by that name, under which the inner loop does not adapt it" in caplog.text
    )
    caplog.clear()
    learner(tied)
    assert not caplog.records


def test_later_kinds_of_examples_are_tried_too():
    one = learner()
    one.step(meta_batch())
    before = one.meta.model["weight"].clone()
    flat = meta_batch()._replace(query=Batch(torch.randn(4, 6, 3), torch.randn(4, 6)))
    with pytest.raises(ValueError, match=r"cannot compare what the module gives .* float32 \[6, 1\]"):
        one.step(flat)
    with pytest.raises(ValueError, match="precision of the parameters, float32: got float64"):
        one.adapt(Batch(torch.randn(5, 3).double(), torch.randn(5, 1).double()))
    assert torch.equal(one.meta.model["weight"], before)


def test_a_parameter_that_the_forward_pass_writes_into_is_refused():
    embedding = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Flatten(), nn.Linear(6, 1))
    one = learner(embedding)
    words = Batch(torch.randint(5, (5, 2)), torch.randn(5, 1))
    with pytest.raises(ValueError, match=r"wrote into 0\.weight.*leave out max_norm"):
        one.adapt(words)
    assert torch.equal(one.meta.model["0.weight"], embedding[0].weight)
    embedding[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"wrote into 0\.weight"):
        learner(embedding).adapt(words)


def test_parametrized_batch_normalisation_is_refused():
    norm = nn.BatchNorm1d(3)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    with pytest.raises(ValueError, match="parametrized parameters: layer '0' has"):
        learner(nn.Sequential(norm, nn.Linear(3, 1)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("made", [torch.jit.script, torch.compile])
def test_a_module_that_was_made_of_another_is_refused(made):
    with pytest.raises(ValueError, match="Give the module that it was made of"):
        learner(made(nn.Linear(3, 1)))


def test_weight_normalisation_by_hooks_is_refused_for_its_wrong_second_derivative():
    with pytest.warns(FutureWarning):
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 1)))
    with pytest.raises(ValueError, match=r"Weight normalisation of layer '0' must be that of .*parametrizations"):
        learner(module)


def test_a_module_that_cannot_be_copied_is_refused():
    module = nn.Linear(3, 1)
    module.doubled = 2 * module.weight
    with pytest.raises(ValueError, match="this one cannot be"):
        learner(module)


def test_hooks_of_batch_normalisation_run():
    norm = nn.BatchNorm1d(3)
    norm.register_forward_hook(lambda _module, _inputs, outputs: 0 * outputs)
    task = Batch(torch.randn(5, 3), torch.randn(5, 1))
    adapted = learner(nn.Sequential(norm, nn.Linear(3, 1, bias=False))).adapt(task)
    assert torch.equal(adapted(task.inputs), torch.zeros(5, 1))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"optimizer": lambda _: torch.optim.Adam(nn.Linear(3, 1).parameters())}, "over tensors that it is given"),
        ({"optimizer": torch.optim.LBFGS}, "got LBFGS"),
        ({"optimizer": lambda _: object()}, "got a object"),
        ({"schedule": torch.optim.lr_scheduler.ReduceLROnPlateau}, "got ReduceLROnPlateau"),
        ({"over_tasks": fewstep.sequential}, "what sequential returns"),
        ({"over_tasks": fewstep.auto}, "what auto returns"),
        ({"run": compiled}, "what compiled returns"),
    ],
)
def test_what_would_fail_later_or_never_learn_is_refused_when_a_learner_is_built(how, words):
    with pytest.raises(ValueError, match=words):
        learner(**how)


def test_a_run_that_is_a_function_of_its_own_is_taken():
    assert learner(run=traced).step(meta_batch())["query_loss"] > 0


def test_a_state_that_lacks_something_changes_nothing():
    one, other = learner(), learner(nn.Linear(3, 1))
    one.step(meta_batch())
    state = one.state_dict()
    before = other.meta.model["weight"].clone()
    with pytest.raises(ValueError, match=r"this one lacks meta\.rule"):
        other.load_state_dict(state | {"meta": {"model": state["meta"]["model"]}})
    for part in ("meta", "optimizer", "iteration"):
        with pytest.raises(ValueError, match=f"this one lacks {part}, and has"):
            other.load_state_dict({name: value for name, value in state.items() if name != part})
    assert torch.equal(other.meta.model["weight"], before)


def test_an_operation_without_a_second_derivative_is_answered_with_what_takes_none():
    bags = nn.Sequential(nn.EmbeddingBag(5, 3), nn.Linear(3, 1))
    words = Batch(torch.randint(5, (4, 5, 2)), torch.randn(4, 5, 1))
    with pytest.raises(NotImplementedError) as error:
        learner(bags, over_tasks=fewstep.sequential()).step(Task(words, words))
    assert "fewstep.fomaml" in error.value.__notes__[0]
    learner(bags, fomaml(Sgd(0.1), 2), over_tasks=fewstep.sequential()).step(Task(words, words))


def test_inputs_of_which_one_is_none_run_at_once(caplog):
    class Masked(nn.Linear):
        def forward(self, inputs, mask=None):
            return super().forward(inputs if mask is None else inputs * mask)

    whole = meta_batch()
    masked = Task(*(Batch((each.inputs, None), each.targets) for each in whole))
    caplog.set_level(logging.INFO)
    module = Masked(3, 1)
    assert learner(module).step(masked) == learner(module).step(whole)
    assert not caplog.records


def test_adaptation_goes_on_from_an_adapted_model():
    one, task = learner(), Batch(torch.randn(5, 3), torch.randn(5, 1))
    more = one.adapt(task, 3, start=one.adapt(task, 2))
    assert all(torch.equal(value, more.params[name]) for name, value in one.adapt(task, 5).params.items())
    with pytest.raises(ValueError, match=r"weight \(expected \(1, 2\), got \(1, 3\)\)"):
        learner(nn.Linear(2, 1)).adapt(Batch(torch.randn(5, 2), torch.randn(5, 1)), start=more)


def test_frozen_parameters_are_held_once_and_stay_the_users_own():
    backbone = nn.Linear(3, 3).requires_grad_(False)
    one = learner(nn.Sequential(backbone, nn.Linear(3, 1)))
    task = Batch(torch.randn(5, 3), torch.randn(5, 1))
    adapted = one.adapt(task)
    inside = {id(part.weight) for part in (one.module._module[0], one.module._original[0], adapted._module._module[0])}
    assert len(inside) == 1
    deployed = adapted.as_module()
    before = adapted(task.inputs)
    with torch.no_grad():
        backbone.weight.zero_()
        deployed[0].weight.zero_()
    assert torch.equal(adapted(task.inputs), before)
