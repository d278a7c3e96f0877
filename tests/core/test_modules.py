"""Any module can be meta-learned: it differentiates twice, maps over tasks and is left as it was."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fewstep
from fewstep.core.adapt import adapt
from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import QueryGradient, meta_gradient
from fewstep.core.over_tasks import auto, sequential, vectorized
from fewstep.core.rules import Adam, Detached, Sgd
from fewstep.core.trees import index, tree_map
from fewstep.core.types import Batch, MetaParams, Task

from .problems import (
    SmallNet,
    assert_matches_finite_differences,
    assert_same,
    draw,
    one,
    regression_tasks,
    seeded,
    snapshot,
    supervised,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewstep.core.types import Params

SEQUENCE, IMAGE = (5, 4), (1, 8, 8)  # [time, features], [channels, height, width]


class OwnGru(nn.GRU):
    """A subclass may do anything: it is not replaced by a layer that has a vmap rule."""


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = cell(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs)[0][:, -1])


class Attention(nn.Module):
    """Scaled dot-product attention of two heads, as `[examples, heads, time, features]`."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        split = self.qkv(inputs).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*split.unbind(0), is_causal=True)
        return self.head(attended.transpose(1, 2).flatten(2).mean(1))


class MultiheadAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs, inputs, inputs, need_weights=False)[0].mean(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).mean(1))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


class Tied(nn.Module):
    """Attributes, not names, share the tensor: `decoder.weight` is `encoder.weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(2, 2)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(inputs)))


class PartlyFrozen(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.body.weight.requires_grad_(False)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(inputs) + self.shift))


class PartlyUsed(SmallNet):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.extra = nn.Parameter(torch.ones(2))


class Keywords(SmallNet):
    def forward(self, *, features: Tensor, gate: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(features)) * gate
        return {"mean": self.head(hidden), "hidden": hidden}


class Positions(SmallNet):
    def forward(self, features: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.body(features)) * gate
        return self.head(hidden), hidden


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"first": nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)])})
        self.heads = nn.ParameterDict({"weight": nn.Parameter(torch.randn(2, 3))})
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = sum(torch.tanh(part(inputs)) for part in self.parts["first"])
        return self.scale * hidden @ self.heads["weight"].T


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    inputs: Any = (2,)  # shape of one example, or a tuple or dict of shapes
    read: Callable[[Any], Tensor] = lambda outputs: outputs
    vectorizes: bool = True


CASES = {
    "lstm": Case(lambda: Recurrent(nn.LSTM), SEQUENCE),
    "gru": Case(lambda: Recurrent(nn.GRU), SEQUENCE),
    "rnn": Case(lambda: Recurrent(nn.RNN), SEQUENCE),
    "a recurrent layer of one's own": Case(lambda: Recurrent(OwnGru), SEQUENCE, vectorizes=False),
    "attention": Case(Attention, SEQUENCE),
    "nn.MultiheadAttention": Case(MultiheadAttention, SEQUENCE),
    "nn.TransformerEncoderLayer": Case(Transformer, SEQUENCE),
    "conv, batch norm and max-pool": Case(convnet, IMAGE),
    "dropout": Case(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))),
    "tied weights": Case(Tied),
    "frozen parameters": Case(PartlyFrozen),
    "unused parameters": Case(PartlyUsed),
    "keyword inputs, dict outputs": Case(Keywords, {"gate": (4,), "features": (2,)}, lambda out: out["mean"]),
    "tuple inputs, tuple outputs": Case(Positions, ((2,), (4,)), lambda out: out[0]),
    "nested modules": Case(Nested),
}
each_case = pytest.mark.parametrize("name", CASES)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
each_order = pytest.mark.parametrize("second_order", [True, False], ids=["second-order", "first-order"])


def draw_inputs(shapes: Any, *lead: int, seed: int) -> Any:
    if isinstance(shapes, dict):
        return {key: draw_inputs(shape, *lead, seed=seed + i) for i, (key, shape) in enumerate(shapes.items())}
    if isinstance(shapes[0], tuple):
        return tuple(draw_inputs(shape, *lead, seed=seed + i) for i, shape in enumerate(shapes))
    return draw(*lead, *shapes, seed=seed)


def tasks_for(case: Case) -> Task:
    support, query = (draw_inputs(case.inputs, 3, n, seed=n) for n in (4, 5))
    return Task(Batch(support, draw(3, 4, 2, seed=8)), Batch(query, draw(3, 5, 2, seed=9)))


def built(case: Case, training: bool = True, second_order: bool = True) -> tuple[nn.Module, FunctionalModule]:
    module = seeded(case.build)
    model = FunctionalModule(module, second_order=second_order)
    model.train(training)
    return module, model


@each_case
@each_mode
def test_the_meta_gradient_equals_finite_differences_and_the_module_stays_as_it_was(name: str, training: bool) -> None:
    case = CASES[name]
    module, model = built(case, training)
    before, tasks = snapshot(module), tasks_for(case)
    mode, tracked = module.training, [p.requires_grad for p in module.parameters()]
    model.check_pure(one(tasks, 0).support.inputs)
    task_gradient = QueryGradient(*supervised(model, case.read), Sgd(0.1), 2)
    over_tasks = vectorized() if case.vectorizes else sequential()
    assert_matches_finite_differences(task_gradient, MetaParams(model.params, {}), tasks, over_tasks, directions=2)
    assert_same(snapshot(module), before, atol=0, rtol=0)
    assert module.training is mode
    assert [p.requires_grad for p in module.parameters()] == tracked
    assert all(p.grad is None for p in module.parameters())


# Fused attention has no vmap rule: PyTorch runs it task by task, and warns.
@pytest.mark.filterwarnings("ignore:There is a performance drop.*scaled_dot_product:UserWarning")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.vectorizes])
@each_order
@each_mode
def test_one_task_after_the_other_agrees_with_all_at_once(name: str, second_order: bool, training: bool) -> None:
    case = CASES[name]
    training = training and name != "dropout"  # whose random numbers come in another order
    _, model = built(case, training, second_order)
    rule = Sgd(0.1) if second_order else Detached(Sgd(0.1))
    task_gradient = QueryGradient(*supervised(model, case.read), rule, 2)
    meta, tasks = MetaParams(model.params, {}), tasks_for(case)
    together = meta_gradient(task_gradient, meta, tasks, vectorized())
    assert_same(meta_gradient(task_gradient, meta, tasks, sequential()), together)
    assert_same(meta_gradient(task_gradient, meta, tasks, vectorized(2)), together)


@each_case
def test_a_call_with_the_modules_own_parameters_is_the_modules_forward(name: str) -> None:
    case = CASES[name]
    for training in (True, False):
        module, model = built(case, training)
        inputs = one(tasks_for(case), 0).query.inputs
        reference = copy.deepcopy(module).train(training)
        for norm in (m for m in reference.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ours = model(model.params, inputs)
            torch.manual_seed(0)
            if isinstance(inputs, dict):
                theirs = reference(**inputs)
            else:
                theirs = reference(*inputs) if isinstance(inputs, tuple) else reference(inputs)
        assert_same(ours, tree_map(torch.detach, theirs))


@each_case
def test_an_exported_module_is_of_the_same_kind_with_the_adapted_parameters(name: str) -> None:
    case = CASES[name]
    module, model = built(case)
    before = snapshot(module)
    adapted = {key: value + 0.1 for key, value in model.params.items()}
    statistics = model.statistics(model.params, index(tasks_for(case), 0).support.inputs) or None
    exported = model.as_module(adapted, statistics)
    assert type(exported) is type(module)
    assert not exported.training
    assert_same({k: v.detach() for k, v in exported.named_parameters() if v.requires_grad}, adapted)
    assert exported.state_dict().keys() == before.keys()
    assert_same(snapshot(module), before, atol=0, rtol=0)


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), *layers, nn.Flatten(), nn.LazyLinear(2))


def features(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), *layers, nn.Linear(4, 2))


weight_norm = nn.utils.parametrizations.weight_norm
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "average pooling": lambda: images(nn.AdaptiveAvgPool2d(2)),
    "overlapping max-pooling": lambda: images(nn.MaxPool2d(3, stride=2, padding=1)),
    "up-sampling": lambda: images(nn.Upsample(scale_factor=2, mode="bilinear")),
    "transposed convolution": lambda: images(nn.ConvTranspose2d(4, 2, 3)),
    "depthwise convolution": lambda: images(nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect")),
    "group normalisation": lambda: images(nn.GroupNorm(2, 4)),
    "instance normalisation": lambda: images(nn.InstanceNorm2d(4, affine=True)),
    "convolution with weight normalisation": lambda: images(weight_norm(nn.Conv2d(4, 2, 3), dim=1)),
    "layer normalisation": lambda: features(nn.LayerNorm(4)),
    "root-mean-square normalisation": lambda: features(nn.RMSNorm(4)),
    "weight normalisation by output": lambda: features(weight_norm(nn.Linear(4, 4))),
    "weight normalisation as a whole": lambda: features(weight_norm(nn.Linear(4, 4), dim=None)),
    "orthogonal weights": lambda: features(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))),
    **{kind.__name__: lambda kind=kind: features(kind()) for kind in (nn.ELU, nn.GELU, nn.SiLU, nn.Mish)},
    **{kind.__name__: lambda kind=kind: features(kind()) for kind in (nn.PReLU, nn.Softplus, nn.Hardswish)},
}


@pytest.mark.parametrize("name", LAYERS)
def test_common_layers_are_differentiated_twice_exactly(name: str) -> None:
    shape = IMAGE if isinstance(LAYERS[name]()[0], nn.Conv2d) else (2,)
    module = seeded(LAYERS[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module(draw(1, *shape))  # lazy parameters come to be
    model, tasks = FunctionalModule(module), tasks_for(Case(LAYERS[name], shape))
    assert_same(model(model.params, one(tasks, 0).query.inputs), module(one(tasks, 0).query.inputs).detach())
    task_gradient = QueryGradient(*supervised(model), Sgd(0.1), 2)
    assert_matches_finite_differences(task_gradient, MetaParams(model.params, {}), tasks, directions=2)


def test_a_layer_without_a_second_derivative_says_so() -> None:
    model = FunctionalModule(seeded(lambda: features(nn.Hardsigmoid())))
    task_gradient = QueryGradient(*supervised(model), Sgd(0.1), 1)
    with pytest.raises(RuntimeError, match="derivative for aten::hardsigmoid_backward is not implemented"):
        meta_gradient(task_gradient, MetaParams(model.params, {}), regression_tasks(), auto())
    first_order = QueryGradient(*supervised(model), Detached(Sgd(0.1)), 1)
    meta_gradient(first_order, MetaParams(model.params, {}), regression_tasks(), auto())


@each_order
def test_what_has_no_vmap_rule_runs_one_task_after_the_other_and_says_so_once(
    second_order: bool, caplog: pytest.LogCaptureFixture
) -> None:
    name = "a recurrent layer of one's own"
    caplog.set_level(logging.INFO)
    _, model = built(CASES[name], second_order=second_order)
    rule = Sgd(0.1) if second_order else Detached(Sgd(0.1))
    task_gradient = QueryGradient(*supervised(model), rule, 2)
    meta, tasks, over_tasks = MetaParams(model.params, {}), tasks_for(CASES[name]), auto()
    results = [meta_gradient(task_gradient, meta, tasks, over_tasks) for _ in range(3)]
    assert_same(results[0], meta_gradient(task_gradient, meta, tasks, sequential()), atol=0, rtol=0)
    assert_same(results[2], results[0], atol=0, rtol=0)
    assert [record.name for record in caplog.records] == ["fewstep.core.over_tasks"]
    with pytest.raises(RuntimeError, match="broadcast shape"):
        meta_gradient(task_gradient, meta, tasks, vectorized())


@each_mode
@pytest.mark.parametrize("name", ["attention", "nn.MultiheadAttention", "nn.TransformerEncoderLayer"])
def test_attention_gives_one_first_order_gradient_whatever_the_kernel(name: str, training: bool) -> None:
    case, gradients = CASES[name], []
    for second_order in (True, False):
        _, model = built(case, training, second_order)
        task_gradient = QueryGradient(*supervised(model), Detached(Sgd(0.1)), 2)
        meta = MetaParams(model.params, {})
        gradients.append(meta_gradient(task_gradient, meta, tasks_for(case), sequential()))
    assert_same(gradients[0], gradients[1])


def test_kernels_without_a_second_derivative_are_never_silently_first_order() -> None:
    _, model = built(CASES["attention"], second_order=False)
    task_gradient = QueryGradient(*supervised(model), Sgd(0.1), 1)
    with pytest.raises(RuntimeError, match=r"derivative for .*scaled_dot_product.*backward is not implemented"):
        meta_gradient(task_gradient, MetaParams(model.params, {}), tasks_for(CASES["attention"]), sequential())


@pytest.mark.parametrize("name", ["nn.MultiheadAttention", "nn.TransformerEncoderLayer"])
def test_attention_is_mapped_over_tasks_when_no_gradient_is_taken_too(name: str) -> None:
    # In evaluation mode and without gradients PyTorch would choose a kernel that has no vmap rule.
    _, model = built(CASES[name], training=False)
    tasks = tasks_for(CASES[name])
    with torch.no_grad():
        together = vectorized()(lambda params, task: model(params, task.query.inputs))(model.params, tasks)
        alone = torch.stack([model(model.params, one(tasks, i).query.inputs) for i in range(3)])
    assert_same(together, alone)


def test_the_choice_of_kernels_ends_with_the_call() -> None:
    backends = torch.backends
    assert backends.mha.get_fastpath_enabled()
    before = (backends.mha.get_fastpath_enabled(), backends.cuda.flash_sdp_enabled(), backends.cudnn.enabled)
    for name in ("nn.TransformerEncoderLayer", "lstm"):
        _, model = built(CASES[name], training=False)
        model(model.params, one(tasks_for(CASES[name]), 0).support.inputs)
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            model(model.params, torch.zeros(1))
    after = (backends.mha.get_fastpath_enabled(), backends.cuda.flash_sdp_enabled(), backends.cudnn.enabled)
    assert after == before


@pytest.mark.parametrize("over_tasks", [vectorized(), sequential()], ids=["vmap", "loop"])
def test_dropout_differs_from_task_to_task_in_training_and_is_off_in_evaluation(over_tasks: Callable) -> None:
    case = CASES["dropout"]
    same = index(tasks_for(case), [0, 0, 0])
    for training, distinct in [(True, 3), (False, 1)]:
        _, model = built(case, training)
        task_gradient = QueryGradient(*supervised(model), Sgd(0.1), 1)
        _, losses = meta_gradient(task_gradient, MetaParams(model.params, {}), same, over_tasks)
        assert len({round(loss, 12) for loss in losses.tolist()}) == distinct


def test_tied_parameters_are_one_parameter_with_the_gradient_of_both_uses() -> None:
    module, model = built(CASES["tied weights"])
    assert list(model.params) == ["encoder.weight", "encoder.bias", "decoder.bias"]
    task = one(tasks_for(CASES["tied weights"]), 0)
    support_loss, _ = supervised(model)
    gradient = torch.func.grad(support_loss)(model.params, task.support)
    nn.functional.mse_loss(module(task.support.inputs), task.support.targets).backward()
    assert_same(gradient, {name: value.grad for name, value in module.named_parameters()})
    adapted = adapt(support_loss, MetaParams(model.params, {}), [task.support] * 3, Sgd(0.1))
    exported = model.as_module(adapted)
    assert exported.decoder.weight is exported.encoder.weight
    assert_same(exported(task.query.inputs).detach(), model(adapted, task.query.inputs))


def test_frozen_parameters_are_constants() -> None:
    module, model = built(CASES["frozen parameters"])
    assert list(model.params) == ["body.bias", "head.weight", "head.bias"]
    task = one(tasks_for(CASES["frozen parameters"]), 0)
    support_loss, _ = supervised(model)
    adapted = adapt(support_loss, MetaParams(model.params, {}), [task.support] * 3, Adam(0.1))
    assert list(adapted) == list(model.params)
    exported = model.as_module(adapted)
    assert_same(exported.body.weight, module.body.weight, atol=0, rtol=0)
    assert not exported.body.weight.requires_grad
    assert_same(exported(task.query.inputs).detach(), model(adapted, task.query.inputs))


@pytest.mark.parametrize("rule", [Sgd(0.1), Adam(0.1)], ids=str)
def test_unused_parameters_have_a_gradient_of_zero(rule: Any) -> None:
    _, model = built(CASES["unused parameters"])
    task_gradient = QueryGradient(*supervised(model), rule, 2)
    tasks = tasks_for(CASES["unused parameters"])
    gradient, _ = meta_gradient(task_gradient, MetaParams(model.params, {}), tasks, vectorized())
    unused = {name for name, value in gradient.model.items() if not value.any()}
    assert unused == {"unused.weight", "unused.bias", "extra"}
    assert all(value.isfinite().all() for value in gradient.model.values())


@pytest.mark.parametrize("over_tasks", [vectorized(), sequential()], ids=["vmap", "loop"])
@pytest.mark.parametrize("name", ["mlp", "conv", "conv, batch norm and max-pool"])
@pytest.mark.parametrize("normalization", ["transductive", "support"])
def test_half_precision_stays_half_precision_and_finite(name: str, normalization: Any, over_tasks: Callable) -> None:
    builds = {
        "mlp": Case(SmallNet),
        "conv": Case(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)), IMAGE),
    }
    case = (builds | CASES)[name]
    module = seeded(case.build).to(torch.bfloat16)
    model = FunctionalModule(module, normalization)
    tasks = tree_map(lambda leaf: leaf.bfloat16(), tasks_for(case))
    task_gradient = QueryGradient(*supervised(model), Sgd(0.1), 2)
    gradient, losses = meta_gradient(task_gradient, MetaParams(model.params, {}), tasks, over_tasks)
    assert {value.dtype for value in (*gradient.model.values(), losses)} == {torch.bfloat16}
    assert all(value.isfinite().all() for value in (*gradient.model.values(), losses))


def test_parameters_are_the_modules_own_at_first_and_copies_of_them() -> None:
    module = seeded(SmallNet)
    model = FunctionalModule(module)
    assert_same(model.params, {name: value.detach() for name, value in module.named_parameters()}, atol=0, rtol=0)
    assert not any(value.requires_grad for value in model.params.values())
    inputs = regression_tasks().support.inputs[0]
    before = model(model.params, inputs), model.as_module({})(inputs)
    with torch.no_grad():
        for value in module.parameters():
            value.zero_()
    assert_same((model(model.params, inputs), model.as_module({})(inputs)), before, atol=0, rtol=0)


def test_the_mode_is_set_for_every_layer_however_often_it_is_asked_for() -> None:
    ones: Params = {"0.weight": torch.eye(2), "0.bias": torch.zeros(2)}
    for whole in (True, False):
        model = FunctionalModule(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train(whole))
        for _ in range(2):
            model.train()
            assert (model(ones, torch.ones(200, 2)) == 0).any()
            model.train(False)
            assert (model(ones, torch.ones(200, 2)) == 1).all()


def test_a_part_that_comes_in_evaluation_mode_stays_in_it() -> None:
    backbone = nn.Sequential(nn.Dropout(0.5)).eval()
    model = FunctionalModule(nn.Sequential(nn.Linear(2, 2), backbone))
    model.train()
    assert (model({"0.weight": torch.eye(2), "0.bias": torch.zeros(2)}, torch.ones(200, 2)) == 1).all()


def test_lazy_parameters_are_refused_until_they_exist() -> None:
    module = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"must exist before meta-learning: got lazy ones\. Run one forward pass first"
    ):
        FunctionalModule(module)
    module(torch.zeros(1, 4))
    assert FunctionalModule(module).params["0.weight"].shape == (3, 4)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)], ids=["none", "all frozen"])
def test_a_module_without_learnable_parameters_is_refused(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"at least one learnable parameter: got none\. Set requires_grad=True"):
        FunctionalModule(module)


def test_a_module_that_keeps_an_activation_can_be_adapted() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.last: torch.Tensor | None = None

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.last = self.layer(inputs)
            return self.last

    learner = fewstep.SupervisedLearner(Keeping(), nn.functional.mse_loss, fewstep.maml(fewstep.Sgd(0.05), 2))
    support = fewstep.Batch(torch.randn(4, 3), torch.randn(4, 1))
    assert learner.adapt(support, 2)(support.inputs).shape == (4, 1)
