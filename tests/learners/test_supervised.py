"""The supervised learner: Algorithm 2 as a user of the library meets it."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional

from fewstep import (
    Adam,
    Batch,
    Except,
    LearnedSgd,
    MetaParams,
    Only,
    Sgd,
    SupervisedLearner,
    Task,
    fomaml,
    joint,
    maml,
    meta_sgd,
    reptile,
    sequential,
)
from fewstep.core.rng import generator
from fewstep.core.trees import index
from fewstep.errors import NonFiniteError
from fewstep.learners.averaging import AveragingLearner
from fewstep.models.convnet import ConvNet
from fewstep.models.mlp import mlp
from fewstep.tasks.few_shot import FewShot
from fewstep.tasks.sinusoid import Sinusoid

if TYPE_CHECKING:
    from fewstep.core.rules import UpdateRule


def sinusoid_learner(algorithm=None, **how):
    torch.manual_seed(0)
    return SupervisedLearner(mlp(1, 1, [16]), functional.mse_loss, algorithm or maml(Sgd(0.02)), **how)


def images(classes=16, examples=6):
    """Classes that differ in the direction and width of their stripes; examples in where the stripes begin."""
    stream = generator(0, "images")
    down, right = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    angle = torch.arange(classes).view(-1, 1, 1, 1) * torch.pi / classes
    width = 0.6 + 0.5 * (torch.arange(classes) % 3).view(-1, 1, 1, 1)
    begin = 6 * torch.rand(classes, examples, 1, 1, generator=stream)
    waves = torch.sin(width * (angle.cos() * down + angle.sin() * right) + begin)
    return (127 * (waves + 1)).to(torch.uint8).unsqueeze(2)


def convnet_learner(**how):
    torch.manual_seed(0)
    net = ConvNet(3, image_size=16, filters=8, blocks=2)
    accuracy = lambda logits, labels: (logits.argmax(-1) == labels).float().mean()  # noqa: E731
    algorithm = maml(Except("*.norm.bias", Sgd(0.4)))
    return SupervisedLearner(net, functional.cross_entropy, algorithm, metrics={"accuracy": accuracy}, **how)


def test_meta_parameters_that_do_not_fit_overwrite_nothing():
    own, other = sinusoid_learner(), sinusoid_learner(meta_sgd(0.02))
    before = {name: value.clone() for name, value in own.meta.model.items()}
    other.load_meta(MetaParams({name: value + 1 for name, value in other.meta.model.items()}, other.meta.rule))
    with pytest.raises(ValueError, match="rule"):
        own.load_meta(other.meta)
    assert all(value.equal(before[name]) for name, value in own.meta.model.items())


def test_models_adapted_by_one_learner_do_not_disturb_each_other_in_threads():
    learner = sinusoid_learner()
    inputs = torch.linspace(-1, 1, 10).unsqueeze(1)
    adapted = [learner.adapt(Batch(inputs, slope * inputs), 5) for slope in (3.0, -3.0)]
    expected = [model(inputs) for model in adapted]

    def agrees(turn):
        return adapted[turn % 2](inputs).equal(expected[turn % 2])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(agrees, range(400)))
    copy.deepcopy(learner.module)(learner.meta.model, inputs)


@pytest.mark.parametrize(
    "algorithm",
    [maml(Sgd(0.02)), fomaml(Sgd(0.02)), meta_sgd(0.02), reptile(Sgd(0.02)), maml(Adam(0.01)), joint()],
    ids=["maml", "fomaml", "meta_sgd", "reptile", "maml-adam", "joint"],
)
def test_training_lowers_the_loss_that_it_descends(algorithm):
    learner = sinusoid_learner(algorithm, optimizer=lambda leaves: torch.optim.Adam(leaves, lr=0.01))
    tasks = Sinusoid(pool=8).sample(8, generator(0, "fixed"))
    losses = [learner.step(tasks)["query_loss"] for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]
    assert learner.iteration == 60


def test_one_step_is_the_mean_gradient_through_the_optimizer():
    learner = sinusoid_learner(optimizer=lambda leaves: torch.optim.SGD(leaves, lr=0.1))
    before = {name: value.clone() for name, value in learner.meta.model.items()}
    tasks = Sinusoid().sample(5, generator(0, "t"))

    def adapted_loss(params):
        def one(task):
            inner = torch.func.grad(learner._support_loss)(params, task.support)
            moved = {n: v - 0.02 * inner[n] for n, v in params.items()}
            return learner._query_loss(moved, task)

        return torch.stack([one(Task(*(Batch(*(x[i] for x in b)) for b in tasks))) for i in range(5)]).mean()

    expected = torch.func.grad(adapted_loss)(before)
    learner.step(tasks)
    for name, value in learner.meta.model.items():
        torch.testing.assert_close(value, before[name] - 0.1 * expected[name])


def test_adapting_fits_the_support_set_and_leaves_the_initialisation_alone():
    learner = sinusoid_learner()
    before = {name: value.clone() for name, value in learner.meta.model.items()}
    task = Sinusoid().curve(generator(0, "c")).task
    errors = [
        functional.mse_loss(learner.adapt(task.support, steps)(task.support.inputs), task.support.targets)
        for steps in (0, 1, 10, 100)
    ]
    assert errors == sorted(errors, reverse=True)
    assert all(torch.equal(before[name], value) for name, value in learner.meta.model.items())


def test_evaluation_equals_adapting_to_each_task_by_hand():
    learner = sinusoid_learner()
    tasks = Sinusoid(shots=4, queries=6).sample(3, generator(0, "e"))
    curves = learner.evaluate(tasks, steps=2)["loss"]
    assert curves.shape == (3, 3)
    for i in range(3):
        task = Task(*(Batch(*(x[i] for x in batch)) for batch in tasks))
        for steps in range(3):
            by_hand = functional.mse_loss(learner.adapt(task.support, steps)(task.query.inputs), task.query.targets)
            torch.testing.assert_close(curves[i, steps], by_hand)


def test_judging_after_the_last_step_alone_gives_the_end_of_the_curve():
    learner = sinusoid_learner()
    tasks = Sinusoid(shots=4, queries=6).sample(3, generator(0, "e"))
    for steps in (0, 2):
        curves, last = learner.evaluate(tasks, steps), learner.evaluate(tasks, steps, last_only=True)
        assert all(torch.equal(last[name], curves[name][:, -1:]) for name in curves)


def test_evaluation_builds_no_graph():
    curves = sinusoid_learner().evaluate(Sinusoid().sample(2, generator(0, "e")), steps=2)
    assert not any(values.requires_grad for values in curves.values())


def test_the_three_policies_differ_and_support_is_independent_of_other_queries():
    learner = convnet_learner(normalization="support")
    task = FewShot(images(), ways=3, shots=1, queries=3).sample(1, generator(0, "n"))
    support, query = (Batch(*(x[0] for x in batch)) for batch in task)
    adapted = learner.adapt(support)
    together = adapted(query.inputs)
    alone = torch.cat([adapted(query.inputs[i : i + 1]) for i in range(len(query.inputs))])
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(adapted.as_module()(query.inputs), together)
    transductive = convnet_learner().adapt(support)(query.inputs)
    assert not torch.allclose(transductive, together)


def test_evaluate_takes_another_policy_than_training():
    learner = convnet_learner()
    tasks = FewShot(images(), ways=3, shots=1, queries=3).sample(4, generator(0, "n"))
    transductive, support = learner.evaluate(tasks, 1), learner.evaluate(tasks, 1, normalization="support")
    assert not torch.equal(transductive["loss"], support["loss"])


def test_a_convnet_learns_to_tell_new_classes_apart():
    learner = convnet_learner(optimizer=lambda leaves: torch.optim.Adam(leaves, lr=0.01))
    train, test = images()[::2], images()[1::2]
    for i in range(60):
        learner.step(FewShot(train, ways=3, shots=1, queries=2).sample(8, generator(0, "train", i)))
    curve = learner.evaluate(FewShot(test, 3, 1, 2).sample(50, generator(0, "test")), 3)["accuracy"].mean(0)
    assert curve[0] < 0.5
    assert curve[-1] > 0.85


def test_the_loss_scale_acts_inside_and_outside_but_not_on_reports():
    tasks = FewShot(images(), ways=3, shots=1, queries=1).sample(2, generator(0, "s"))
    plain, scaled = convnet_learner(), convnet_learner(loss_scale=3.0)
    torch.testing.assert_close(plain.evaluate(tasks, 0)["loss"], scaled.evaluate(tasks, 0)["loss"])
    steeper = convnet_learner()
    steeper.algorithm = maml(Except("*.norm.bias", Sgd(1.2)))
    torch.testing.assert_close(steeper.evaluate(tasks, 1)["loss"], scaled.evaluate(tasks, 1)["loss"])


def test_clipping_bounds_the_meta_gradient():
    tasks = Sinusoid().sample(4, generator(0, "t"))
    for how, bound in (({"clip_value": 1e-3}, 1e-3), ({"clip_norm": 1e-2}, 1e-2)):
        learner = sinusoid_learner(optimizer=lambda leaves: torch.optim.SGD(leaves, lr=1.0), **how)
        before = torch.cat([v.flatten().clone() for v in learner.meta.model.values()])
        learner.step(tasks)
        moved = torch.cat([v.flatten() for v in learner.meta.model.values()]) - before
        size = moved.abs().max() if "clip_value" in how else moved.norm()
        assert size <= bound * 1.001
        assert size > bound * 0.5


def test_meta_sgd_learns_its_rates():
    learner = sinusoid_learner(meta_sgd(0.02))
    before = {name: value.clone() for name, value in learner.meta.rule.items()}
    learner.step(Sinusoid().sample(4, generator(0, "t")))
    assert any(not torch.equal(before[name], value) for name, value in learner.meta.rule.items())


def test_a_non_finite_loss_names_the_tasks_and_updates_nothing():
    learner = sinusoid_learner()
    before = {name: value.clone() for name, value in learner.meta.model.items()}
    tasks = Sinusoid().sample(6, generator(0, "t"))
    tasks.query.targets[4, 0] = 1e30  # whose square is none
    with pytest.raises(NonFiniteError, match=r"iteration 1 .* task 4 \(query loss inf\)"):
        learner.step(tasks)
    assert all(torch.equal(before[name], value) for name, value in learner.meta.model.items())
    assert learner.iteration == 0


def test_a_non_finite_gradient_of_a_finite_loss_is_caught():
    torch.manual_seed(0)
    learner = SupervisedLearner(
        nn.Linear(1, 1), lambda out, target: (out * target).abs().sqrt().mean(), joint(), optimizer=None
    )
    batch = Batch(torch.ones(2, 3, 1), torch.ones(2, 3, 1))
    batch.targets[1] = 0.0
    with pytest.raises(NonFiniteError, match=r"task 1 \(meta-gradient\)"):
        learner.step(Task(batch, batch))


def test_a_module_that_tracks_state_is_refused_with_the_remedy():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.LazyLinear(3)
    )
    net(torch.zeros(1, 1, 16, 16))
    learner = SupervisedLearner(net, functional.cross_entropy, maml(Sgd(0.1)))
    with pytest.raises(ValueError, match=r"1\.running_mean.*track_running_stats=False"):
        learner.step(FewShot(images(), ways=3).sample(2, generator(0, "t")))


def test_meta_parameters_of_another_model_are_refused_by_name():
    learner = sinusoid_learner()
    with pytest.raises(ValueError, match=r"head\.weight \(expected \(1, 16\), got \(1, 8\)\)"):
        learner.load_meta(SupervisedLearner(mlp(1, 1, [8]), functional.mse_loss, maml(Sgd(0.1))).meta)
    with pytest.raises(ValueError, match="rule"):
        sinusoid_learner(meta_sgd(0.1)).load_meta(MetaParams(learner.meta.model, {}))


def test_an_empty_meta_batch_is_refused():
    with pytest.raises(ValueError, match="at least one task"):
        sinusoid_learner().step(Sinusoid().sample(0, generator(0, "t")))


def test_tasks_of_different_sizes_are_one_meta_batch():
    groups = [Sinusoid(queries=q).sample(2, generator(0, "t", q)) for q in (3, 7)]
    learner = sinusoid_learner()
    assert learner.step(groups)["query_loss"] > 0
    assert learner.evaluate(groups, 2)["loss"].shape == (4, 3)


class TestAveraging:
    def learner(self, **how):
        torch.manual_seed(0)
        nets = [mlp(1, 1, [16]) for _ in range(6)]
        return AveragingLearner(
            nets,
            functional.mse_loss,
            Sgd(0.01),
            optimizer=lambda leaves: torch.optim.Adam(leaves, lr=0.01),
            **how,
        )

    def test_every_network_fits_its_own_task_and_the_mean_is_what_is_learned(self):
        learner, tasks = self.learner(), Sinusoid(pool=6)
        first = learner.step(tasks.sample(6, generator(0, "a")))["query_loss"]
        for i in range(150):
            last = learner.step(tasks.sample(6, generator(0, "train", i)))["query_loss"]
        assert last < 0.5 * first
        mean = learner.state_dict()["networks"]["head.weight"].mean(0)
        assert torch.equal(learner.meta.model["head.weight"], mean)

    def test_a_state_of_another_optimizer_is_refused(self):
        other = AveragingLearner([mlp(1, 1, [16])] * 6, functional.mse_loss, Sgd(0.01), optimizer=torch.optim.Adamax)
        with pytest.raises(ValueError, match="another optimizer or schedule: expected Adamax with no schedule"):
            other.load_state_dict(self.learner().state_dict())

    def test_regularisers_shrink_or_gather_the_networks(self):
        tasks, spread, size = Sinusoid(pool=6), {}, {}
        for kind in ("none", "l2", "to_mean"):
            learner = self.learner(regularizer=kind, strength=10.0)
            for i in range(60):
                learner.step(tasks.sample(6, generator(0, "train", i)))
            networks = torch.cat([n.flatten(1) for n in learner.state_dict()["networks"].values()], dim=1)
            spread[kind], size[kind] = networks.std(0).mean(), networks.norm()
        assert spread["to_mean"] < 0.3 * spread["none"]
        assert size["l2"] < 0.5 * size["none"]

    def test_it_resumes_bit_for_bit(self):
        tasks = [Sinusoid(pool=6).sample(6, generator(0, "train", i)) for i in range(6)]
        whole, parts = self.learner(), self.learner()
        for task in tasks:
            whole.step(task)
        for task in tasks[:3]:
            parts.step(task)
        state = parts.state_dict()
        parts.step(tasks[3])
        for _ in range(2):  # neither steps of the one nor of the other change the state
            resumed = self.learner()
            resumed.load_state_dict(state)
            for task in tasks[3:]:
                resumed.step(task)
            assert torch.equal(whole.meta.model["head.weight"], resumed.meta.model["head.weight"])

    def test_a_number_of_tasks_other_than_its_networks_is_refused(self):
        with pytest.raises(ValueError, match="expected 6 tasks, got 5"):
            self.learner().step(Sinusoid().sample(5, generator(0, "t")))


def test_an_adapted_model_stays_as_it_is_while_training_goes_on():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    learner = SupervisedLearner(net, functional.mse_loss, maml(Only("2.*", Sgd(0.1))))
    tasks = Sinusoid().sample(3, generator(0, "t"))
    adapted = learner.adapt(Batch(tasks.support.inputs[0], tasks.support.targets[0]))
    before = adapted(tasks.query.inputs[0])
    learner.step(tasks)
    assert torch.equal(adapted(tasks.query.inputs[0]), before)


def test_an_adapted_model_predicts_in_the_midst_of_training_and_leaves_it_as_it_is():
    def trained(predict):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

        def loss(outputs, targets):  # as another thread would, at a time of its own
            seen.append(predict and torch.equal(adapted(inputs), before))
            return functional.mse_loss(outputs, targets)

        learner = SupervisedLearner(net, loss, maml(Sgd(0.1)), over_tasks=sequential())
        tasks = Sinusoid().sample(2, generator(0, "t"))
        inputs, seen, adapted, before = tasks.query.inputs[0], [], lambda x: x, tasks.query.inputs[0]
        adapted = learner.adapt(Batch(tasks.support.inputs[0], tasks.support.targets[0]))
        before = adapted(inputs)
        seen.clear()
        torch.manual_seed(1)
        learner.step(tasks)
        return learner.meta.model, seen

    alone, _ = trained(predict=False)
    beside, seen = trained(predict=True)
    assert seen
    assert all(seen)
    for name, value in alone.items():
        assert torch.equal(value, beside[name])


def test_policies_that_a_learner_cannot_follow_are_refused():
    tasks = FewShot(images(), ways=3).sample(2, generator(0, "t"))
    for asked in ("running", "none"):
        with pytest.raises(ValueError, match="cannot be evaluated with"):
            convnet_learner().evaluate(tasks, 1, normalization=asked)
    with pytest.raises(ValueError, match="cannot be evaluated with 'support'"):
        convnet_learner(normalization="running").evaluate(tasks, 1, normalization="support")


def test_negative_steps_are_refused():
    learner, tasks = sinusoid_learner(), Sinusoid().sample(2, generator(0, "t"))
    with pytest.raises(ValueError, match="at least 0: got -1"):
        learner.evaluate(tasks, -1)
    with pytest.raises(ValueError, match="at least 0: got -1"):
        learner.adapt(Batch(tasks.support.inputs[0], tasks.support.targets[0]), -1)


def test_adapting_a_jointly_trained_model_takes_a_step_by_default():
    learner = sinusoid_learner(joint(Sgd(0.02)))
    support = Sinusoid().curve(generator(0, "c")).task.support
    assert not torch.equal(learner.adapt(support)(support.inputs), learner.adapt(support, 0)(support.inputs))


def test_state_tracking_is_refused_even_where_the_module_comes_in_evaluation_mode():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(588, 3)
    )
    learner = SupervisedLearner(net.eval(), functional.cross_entropy, maml(Sgd(0.1)))
    task = FewShot(images(), ways=3).sample(1, generator(0, "t"))
    with pytest.raises(ValueError, match="running_mean"):
        learner.adapt(Batch(task.support.inputs[0], task.support.targets[0]))


def test_a_meta_batch_that_is_no_task_is_told_how_to_make_one():
    support, query = Sinusoid(shots=4, queries=6).sample(3, generator(0, "e"))
    with pytest.raises(ValueError, match=r"got tuple of Batch\. Make it with `fewstep\.Task"):
        sinusoid_learner().step((support, query))


def test_a_loss_that_does_not_reach_the_parameters_is_told_of(caplog):
    learner = SupervisedLearner(
        nn.Linear(1, 1), lambda out, y: (out.detach() - y).square().mean() + 0 * out.sum(), maml(Sgd(0.1))
    )
    learner.step(Sinusoid(shots=4, queries=6).sample(3, generator(0, "e")))
    assert "meta-gradient is zero" in caplog.text


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: SupervisedLearner(nn.Linear, functional.mse_loss, maml(Sgd(0.1))), "A model is an nn.Module"),
        (lambda: sinusoid_learner(maml), "An algorithm is what a function such as fewstep.maml makes"),
        (lambda: sinusoid_learner(Sgd(0.1)), "An algorithm is what a function such as fewstep.maml makes"),
        (lambda: maml(0.1), "An inner rule is a value"),
        (lambda: fomaml(Sgd), "An inner rule is a value"),
        (lambda: Only("head.*", 0.1), "An inner rule is a value"),
        (lambda: maml(Sgd(0.1), steps=1.5), "`steps` must be a whole number"),
        (lambda: sinusoid_learner(normalization="batch"), "`normalization` is one of transductive, support, running"),
    ],
    ids=["class", "function", "rule", "number", "rule-class", "wrapped", "steps", "policy"],
)
def test_arguments_of_another_kind_are_told_what_is_expected(build, expected):
    with pytest.raises(ValueError, match=expected):
        build()


@pytest.mark.parametrize(
    ("how", "bounds"),
    [
        ({"clip_norm": -1.0}, ", at least 0"),
        ({"clip_value": float("nan")}, ", at least 0"),
        ({"loss_scale": "ways"}, " above 0"),
        ({"loss_scale": 0}, " above 0"),
    ],
)
def test_numbers_out_of_bounds_are_refused(how, bounds):
    with pytest.raises(ValueError, match=f"`{next(iter(how))}` must be a number{bounds}"):
        sinusoid_learner(**how)


@pytest.mark.parametrize("how", [{"optimizer": torch.optim.Adam([torch.zeros(1)])}, {"over_tasks": "sequential"}])
def test_what_is_no_function_is_told_an_example(how):
    with pytest.raises(ValueError, match=f"`{next(iter(how))}` must be a function, such as"):
        sinusoid_learner(**how)


def test_metrics_are_single_numbers_with_names_of_their_own():
    each = lambda outputs, targets: (outputs - targets).abs()  # noqa: E731
    learner = sinusoid_learner(metrics={"error": each})
    with pytest.raises(ValueError, match=r"The metric 'error' must return one number .* got a tensor \(10, 1\)"):
        learner.evaluate(Sinusoid().sample(2, generator(0, "tasks")), 1)
    with pytest.raises(ValueError, match="give this one another name"):
        sinusoid_learner(metrics={"loss": each})


@pytest.mark.parametrize(
    ("loss", "inputs", "targets", "said"),
    [
        (functional.mse_loss, torch.zeros(5, 3), torch.zeros(5), r"\[5, 2\], with its targets, float32 \[5\]: Using a"),
        (functional.mse_loss, torch.zeros(5, 3), torch.zeros(3, 2), r"targets, float32 \[3, 2\]: (The size|Using a)"),
        (functional.cross_entropy, torch.zeros(5, 3), torch.zeros(5), r"float32 \[5\]: .* indices of classes, int64"),
        (functional.cross_entropy, torch.zeros(5, 3), torch.full((5,), 2), "Target 2 is out of bounds. Targets"),
        (functional.mse_loss, torch.zeros(5, 4), torch.zeros(5, 2), r"the inputs of one task, float32 \[5, 4\]: mat1"),
        (functional.mse_loss, torch.zeros(5, 3).int(), torch.zeros(5, 2), r"the inputs of one task, int32 \[5, 3\]"),
    ],
    ids=["column-missing", "fewer-targets", "float-labels", "label-too-large", "features", "whole-numbers"],
)
def test_examples_that_do_not_fit_are_told_with_their_shapes(loss, inputs, targets, said):
    learner = SupervisedLearner(nn.Linear(3, 2), loss, maml(Sgd(0.1)))
    with pytest.raises(ValueError, match=said):
        learner.adapt(Batch(inputs, targets))


def test_a_module_that_names_the_precision_itself_is_told_of_as_others_are():
    learner = SupervisedLearner(nn.GRU(3, 2), lambda outputs, targets: outputs[0].sum(), maml(Sgd(0.1)))
    with pytest.raises(ValueError, match="precision of the parameters, float32: got float64"):
        learner.adapt(Batch(torch.zeros(5, 4, 3).double(), torch.zeros(5)))


def test_an_empty_query_set_is_told_of():
    examples = Batch(torch.zeros(2, 5, 3), torch.zeros(2, 5, 2))
    learner = SupervisedLearner(nn.Linear(3, 2), functional.mse_loss, maml(Sgd(0.1)))
    with pytest.raises(ValueError, match="A query set has at least one example: got none"):
        learner.step(Task(examples, Batch(*(leaf[:, :0] for leaf in examples))))


def test_a_task_without_the_axis_of_tasks_is_refused():
    labelled = Batch(torch.randn(5, 3), torch.arange(5))
    learner = SupervisedLearner(nn.Linear(3, 5), functional.cross_entropy, maml(Sgd(0.1)))
    with pytest.raises(ValueError, match="lead with a `tasks` axis"):
        learner.step(Task(labelled, labelled))


def test_tasks_that_require_gradients_leave_no_graph_behind():
    learner, tasks = sinusoid_learner(), Sinusoid().sample(2, generator(0, "tasks"))
    inputs = tasks.support.inputs.requires_grad_()
    learner.step(Task(Batch(inputs, tasks.support.targets), tasks.query))
    assert not any(value.requires_grad or value.grad.requires_grad for value in learner.meta.model.values())


@pytest.mark.parametrize(
    ("loss", "came"),
    [(lambda outputs, targets: (outputs - targets) ** 2, r"a tensor \(10, 1\)"), (lambda *_: 0.0, "float")],
    ids=["each-example", "number"],
)
def test_a_loss_that_is_not_one_number_is_told_so(loss, came):
    learner = SupervisedLearner(mlp(1, 1, [16]), loss, maml(Sgd(0.02)))
    with pytest.raises(ValueError, match=f"The loss must return one number as a tensor without axes: got {came}"):
        learner.step(Sinusoid().sample(2, generator(0, "tasks")))


def test_examples_that_are_no_tensors_are_told_how_to_become_them():
    points = torch.zeros(5, 1)
    for examples in (points.numpy(), points.tolist()):
        with pytest.raises(ValueError, match=r"Examples are tensors: .*torch\.as_tensor"):
            sinusoid_learner().adapt(Batch(examples, examples))
    with pytest.raises(ValueError, match=r"A support set is a Batch .* got tuple"):
        sinusoid_learner().adapt((points, points))


def test_a_support_set_needs_tensors_and_an_example():
    learner, one = sinusoid_learner(), torch.ones(1, 1)
    learner.step(Sinusoid().sample(2, generator(0)))
    for support, words in [
        ((one, one), "Batch of inputs and targets"),
        (Batch(one.numpy(), one), "torch.as_tensor"),
        (Batch(one[:0], one[:0]), "at least one example"),
    ]:
        with pytest.raises(ValueError, match=words):
            learner.adapt(support)


def test_a_meta_batch_in_the_place_of_one_support_set_is_told_of(caplog):
    learner, tasks = sinusoid_learner(), Sinusoid().sample(4, generator(0))
    learner.step(tasks)
    learner.adapt(index(tasks, 0).support)
    assert not caplog.text
    learner.adapt(tasks.support)
    assert "inputs with 3 axes, where others had 2: is one of them the axis of tasks" in caplog.text


def test_inputs_of_another_precision_are_told_so():
    with pytest.raises(ValueError, match=r"precision of the parameters, float32: got float64"):
        sinusoid_learner().adapt(Batch(torch.ones(3, 1).double(), torch.ones(3, 1)))


def test_an_adaptation_that_diverges_is_told_apart_from_bad_examples():
    torch.manual_seed(0)
    learner = SupervisedLearner(nn.Linear(1, 1), functional.mse_loss, maml(Sgd(1e20)))
    with pytest.raises(NonFiniteError, match="after 5 steps it is not"):
        learner.adapt(Batch(torch.ones(3, 1), torch.ones(3, 1)), 5)
    with pytest.raises(NonFiniteError, match="among those to adapt to"):
        learner.adapt(Batch(torch.ones(3, 1), torch.full((3, 1), torch.nan)))


def test_bad_values_of_a_task_are_named_before_what_comes_of_them():
    tasks = Sinusoid().sample(3, generator(0))
    tasks.query.targets[1, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"in task 1 \(its query targets\)\. Look for bad"):
        sinusoid_learner().step(tasks)


def test_the_first_step_draws_no_random_numbers_for_its_checks():
    noisy = lambda outputs, targets: functional.mse_loss(outputs, targets + 0.1 * torch.randn(10, 1))  # noqa: E731
    tasks = Sinusoid().sample(1, generator(0, "tasks"))
    losses = []
    for _ in range(2):
        learner = SupervisedLearner(mlp(1, 1, [16]), noisy, joint())
        learner.load_meta(sinusoid_learner(joint()).meta)
        if losses:
            learner.evaluate(tasks, 0)  # has checked
        torch.manual_seed(1)
        losses.append(learner.step(tasks)["query_loss"])
    assert losses[0] == losses[1]


def test_adapting_with_the_support_sets_statistics_gives_a_module_to_deploy():
    learner = convnet_learner()
    tasks = FewShot(images(), ways=3, shots=1, queries=2).sample(1, generator(0, "tasks"))
    support = index(tasks.support, 0)
    with pytest.raises(ValueError, match="Adapt with normalization='support'"):
        learner.adapt(support).as_module()
    adapted = learner.adapt(support, normalization="support")
    queries = tasks.query.inputs[0]
    torch.testing.assert_close(adapted.as_module()(queries), adapted(queries), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapted(queries[:1]), adapted(queries)[:1], rtol=1e-4, atol=1e-5)


def test_a_rule_to_evaluate_with_fits_the_parameters():
    tasks = Sinusoid().sample(2, generator(0, "tasks"))
    with pytest.raises(ValueError, match=r"Only expects patterns .*'haed\.\*' chooses none"):
        sinusoid_learner().evaluate(tasks, 1, rule=Only("haed.*", Sgd(0.1)))
    with pytest.raises(ValueError, match=r"wants lr\.body.* and learned were no hyper-parameters"):
        sinusoid_learner().evaluate(tasks, 1, rule=LearnedSgd(0.1, per="tensor"))


@dataclass(frozen=True)
class Halved:
    """A wrapper of one's own."""

    rule: UpdateRule
    second_order = True

    def selects(self, name):
        return self.rule.selects(name)

    def hyperparameters(self, params):
        return self.rule.hyperparameters(params)

    def init(self, params):
        return self.rule.init(params)

    def __call__(self, params, grads, state, learned, step):
        return self.rule(params, {name: grad / 2 for name, grad in grads.items()}, state, learned, step)


def test_a_typing_error_within_a_wrapper_of_ones_own_is_found():
    with pytest.raises(ValueError, match="'haed' chooses none"):
        SupervisedLearner(mlp(1, 1, [4]), functional.mse_loss, maml(Halved(Except("haed", Sgd(0.1)))))


def test_a_state_of_another_optimizer_or_schedule_is_refused_whole():
    learner, tasks = sinusoid_learner(), Sinusoid().sample(2, generator(0, "tasks"))
    learner.step(tasks)
    sgd = sinusoid_learner(optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))
    decaying = sinusoid_learner(schedule=lambda adam: torch.optim.lr_scheduler.ExponentialLR(adam, 0.9))
    likewise = sinusoid_learner(optimizer=torch.optim.Adamax)  # whose groups look like Adam's
    for other in (sgd, decaying, likewise):
        before = {name: value.clone() for name, value in other.meta.model.items()}
        with pytest.raises(ValueError, match="another optimizer or schedule: expected"):
            other.load_state_dict(learner.state_dict())
        assert all(value.equal(before[name]) for name, value in other.meta.model.items())


def test_extra_state_of_a_module_is_part_of_its_constants():
    class Counting(nn.Linear):
        count = 3

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    def constants(count):
        module = Counting(1, 1)
        module.count = count
        return SupervisedLearner(module, functional.mse_loss, maml(Sgd(0.1))).constants()

    assert constants(3) == constants(3) != constants(4)
    assert constants(object()) == constants(object())  # whose words tell an address


def test_a_learner_is_printed_in_a_line():
    learner = sinusoid_learner()
    learner.step(Sinusoid().sample(2, generator(0, "tasks")))
    assert repr(learner).startswith("SupervisedLearner of ")
    assert "after 1 iterations" in repr(learner)
    assert len(repr(learner)) < 300


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("columns", [1, 4])
def test_a_loss_that_broadcasts_on_purpose_is_left_alone(columns):
    def loss(outputs, targets):
        return functional.mse_loss(outputs[None].expand(3, -1, -1), targets)

    learner = SupervisedLearner(nn.Linear(3, 1), loss, maml(Sgd(0.1)))
    assert learner.adapt(Batch(torch.zeros(5, 3), torch.zeros(5, columns)))(torch.zeros(2, 3)).shape == (2, 1)


def test_a_memory_that_does_not_suffice_is_not_taken_for_wrong_examples():
    class Large(nn.Linear):
        def forward(self, inputs):
            raise torch.OutOfMemoryError("CUDA out of memory")

    learner = SupervisedLearner(Large(3, 1), functional.mse_loss, maml(Sgd(0.1)))
    with pytest.raises(torch.OutOfMemoryError):
        learner.adapt(Batch(torch.zeros(5, 3), torch.zeros(5, 1)))
