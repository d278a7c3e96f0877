from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from fewstep.core import algorithms
from fewstep.core.adapt import adapt, adaptation_path
from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import Displacement, QueryGradient, meta_gradient, same_size_groups
from fewstep.core.over_tasks import sequential, vectorized
from fewstep.core.rules import Adam, Clipped, Detached, Except, LearnedSgd, Momentum, Only, Sgd
from fewstep.core.trees import index, leaves
from fewstep.core.types import MetaParams, Task
from fewstep.models.convnet import ConvNet

from .problems import (
    SmallNet,
    assert_matches_finite_differences,
    assert_same,
    draw,
    meta_params,
    one,
    regression_tasks,
    seeded,
    supervised,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.algorithms import Algorithm
    from fewstep.core.rules import UpdateRule
    from fewstep.core.types import Params

LR = 0.3
MODEL = FunctionalModule(seeded(SmallNet))
SUPPORT_LOSS, QUERY_LOSS = supervised(MODEL)
TASKS = regression_tasks()


def outer(algorithm: Algorithm, meta: MetaParams | None = None, tasks: Task = TASKS) -> tuple[MetaParams, Tensor]:
    task_gradient = algorithm.gradient(SUPPORT_LOSS, QUERY_LOSS, algorithm.rule, algorithm.steps)
    return meta_gradient(task_gradient, meta or meta_params(MODEL.params, algorithm.rule), tasks, vectorized())


def adapted_to(task: Task, rule: UpdateRule, steps: int) -> Params:
    return adapt(SUPPORT_LOSS, meta_params(MODEL.params, rule), [task.support] * steps, rule)


def gradient_at(params: Params, task: Task) -> Params:
    """grad L_query(params), by plain autograd."""
    tracked = {name: value.detach().requires_grad_() for name, value in params.items()}
    gradients = torch.autograd.grad(QUERY_LOSS(tracked, task), list(tracked.values()))
    return dict(zip(params, gradients, strict=True))


def flat(params: Params) -> Tensor:
    return torch.cat([value.flatten() for value in params.values()])


def unflat(vector: Tensor) -> Params:
    pieces = vector.split([value.numel() for value in MODEL.params.values()])
    return {name: piece.view_as(v) for piece, (name, v) in zip(pieces, MODEL.params.items(), strict=True)}


def mean_of(trees: list[Params]) -> Params:
    return {name: torch.stack([tree[name] for tree in trees]).mean(0) for name in trees[0]}


@pytest.mark.parametrize("steps", [1, 3])
def test_mamls_gradient_is_the_query_gradient_times_one_minus_lr_hessian_for_each_step(steps: int) -> None:
    # (I - lr H(theta^(0))) ... (I - lr H(theta^(S-1))) grad L_query(theta^(S))
    expected = []
    for i in range(3):
        task = one(TASKS, i)
        hessian = torch.func.jacrev(torch.func.grad(lambda v, task=task: SUPPORT_LOSS(unflat(v), task.support)))
        path = [
            flat(p)
            for p in adaptation_path(SUPPORT_LOSS, MetaParams(MODEL.params, {}), [task.support] * steps, Sgd(LR))
        ]
        vector = flat(gradient_at(unflat(path[-1]), task))
        for theta in reversed(path[:-1]):
            vector = vector - LR * hessian(theta) @ vector
        expected.append(unflat(vector))
    gradient, _ = outer(algorithms.maml(Sgd(LR), steps))
    assert_same(gradient.model, mean_of(expected))


SECOND_ORDER = {
    "maml": lambda steps: algorithms.maml(Sgd(LR), steps),
    "maml, momentum": lambda steps: algorithms.maml(Momentum(LR), steps),
    "maml, nesterov": lambda steps: algorithms.maml(Momentum(LR, 0.5, nesterov=True), steps),
    "maml, adam": lambda steps: algorithms.maml(Adam(0.1), steps),
    "maml, adam with a large eps": lambda steps: algorithms.maml(Adam(0.1, eps=0.1), steps),
    "maml, clipped": lambda steps: algorithms.maml(Clipped(Sgd(LR), 0.2), steps),
    "maml, clipped adam": lambda steps: algorithms.maml(Clipped(Adam(0.1, eps=0.1), 0.2), steps),
    "anil": lambda steps: algorithms.anil(Sgd(LR), steps),
    "anil, learned rates": lambda steps: algorithms.anil(LearnedSgd(LR), steps),
    "boil": lambda steps: algorithms.boil(Sgd(LR), steps),
    "meta-sgd": lambda steps: algorithms.meta_sgd(LR, steps),
    "one learned rate": lambda steps: algorithms.maml(LearnedSgd(LR, per="scalar"), steps),
    "a learned rate per tensor": lambda steps: algorithms.maml(LearnedSgd(LR, per="tensor"), steps),
    "joint": lambda steps: algorithms.joint(Sgd(LR)),
}


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_equals_finite_differences(name: str, steps: int) -> None:
    algorithm = SECOND_ORDER[name](steps)
    task_gradient = algorithm.gradient(SUPPORT_LOSS, QUERY_LOSS, algorithm.rule, algorithm.steps)
    assert_matches_finite_differences(task_gradient, meta_params(MODEL.params, algorithm.rule), TASKS)


def test_every_second_order_algorithm_is_among_those_compared_with_finite_differences() -> None:
    functions = {name: value for name, value in vars(algorithms).items() if hasattr(value, "__annotations__")}
    makers = {name: f for name, f in functions.items() if f.__annotations__.get("return") == "Algorithm"}
    made = {name: make(LR if name == "meta_sgd" else Sgd(LR)) for name, make in makers.items()}
    second_order = {n for n, each in made.items() if each.rule.second_order and each.gradient is QueryGradient}
    assert second_order == {name.partition(",")[0].replace("-", "_") for name in SECOND_ORDER if "rate" not in name}


def test_finite_differences_tell_a_first_order_gradient_apart() -> None:
    task_gradient = QueryGradient(SUPPORT_LOSS, QUERY_LOSS, Detached(Sgd(LR)), 1)
    with pytest.raises(AssertionError, match="not close"):
        assert_matches_finite_differences(task_gradient, MetaParams(MODEL.params, {}), TASKS)


def test_meta_sgds_gradient_in_the_rates_after_one_step_is_minus_the_product_of_the_gradients() -> None:
    # dL(theta - a g)/da = -g * grad L(theta'), the same with or without second derivatives.
    expected = []
    for i in range(3):
        task = one(TASKS, i)
        support = torch.func.grad(SUPPORT_LOSS)(MODEL.params, task.support)
        query = gradient_at(adapted_to(task, Sgd(LR), 1), task)
        expected.append({name: -support[name] * query[name] for name in query})
    for rule in (LearnedSgd(LR), Detached(LearnedSgd(LR))):
        gradient, _ = outer(algorithms.maml(rule))
        assert_same(list(gradient.rule.values()), list(mean_of(expected).values()))


@pytest.mark.parametrize("rule", [Sgd(LR), Momentum(LR), Adam(0.1), Only("head.*", Sgd(LR))], ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_maml_descends_the_query_gradient_at_the_adapted_parameters(rule: UpdateRule, steps: int) -> None:
    gradient, losses = outer(algorithms.fomaml(rule, steps))
    adapted = [adapted_to(one(TASKS, i), rule, steps) for i in range(3)]
    assert_same(gradient.model, mean_of([gradient_at(p, one(TASKS, i)) for i, p in enumerate(adapted)]))
    assert_same(losses, torch.stack([QUERY_LOSS(p, one(TASKS, i)) for i, p in enumerate(adapted)]))


def test_first_order_maml_differs_from_maml_in_the_gradient_alone() -> None:
    first, first_losses = outer(algorithms.fomaml(Sgd(LR)))
    second, second_losses = outer(algorithms.maml(Sgd(LR)))
    assert_same(first_losses, second_losses)
    assert (flat(first.model) - flat(second.model)).norm() > 0.01 * flat(second.model).norm()


def test_reptile_descends_the_displacement() -> None:
    gradient, losses = outer(algorithms.reptile(Sgd(LR), steps=5))
    adapted = [adapted_to(one(TASKS, i), Sgd(LR), 5) for i in range(3)]
    assert_same(gradient.model, {name: MODEL.params[name] - value for name, value in mean_of(adapted).items()})
    assert_same(losses, torch.stack([QUERY_LOSS(p, one(TASKS, i)) for i, p in enumerate(adapted)]))


def test_reptile_leaves_what_is_not_adapted_and_the_rates_where_they_are() -> None:
    gradient, _ = outer(algorithms.reptile(Only("head.*", LearnedSgd(LR)), steps=2))
    assert not gradient.model["body.weight"].any()
    assert gradient.model["head.weight"].all()
    assert not any(rate.any() for rate in gradient.rule.values())


def test_joint_training_descends_the_query_loss_at_the_initialisation() -> None:
    gradient, losses = outer(algorithms.joint())
    assert_same(gradient.model, mean_of([gradient_at(MODEL.params, one(TASKS, i)) for i in range(3)]))
    assert_same(losses, torch.stack([QUERY_LOSS(MODEL.params, one(TASKS, i)) for i in range(3)]))


@pytest.mark.parametrize(("algorithm", "moves"), [(algorithms.anil, "head."), (algorithms.boil, "body.")])
def test_anil_adapts_the_head_alone_and_boil_all_but_the_head(algorithm: object, moves: str) -> None:
    adapted = adapted_to(one(TASKS, 0), algorithm(Sgd(LR)).rule, 3)  # type: ignore[operator]
    for name, value in adapted.items():
        if name.startswith(moves):
            assert not torch.equal(value, MODEL.params[name])
        else:
            assert value is MODEL.params[name]


def test_anil_still_meta_learns_the_body() -> None:
    gradient, _ = outer(algorithms.anil(Sgd(LR)))
    assert gradient.model["body.weight"].abs().min() > 0


def test_a_normalisation_offset_can_be_meta_learned_without_being_adapted() -> None:
    # The paper's normalisation: no gain (frozen at 1), an offset that the inner loop leaves alone.
    model = FunctionalModule(seeded(lambda: ConvNet(3, image_size=8, filters=2, blocks=2)))
    assert not any(name.endswith("norm.weight") for name in model.params)
    support_loss, query_loss = supervised(model)
    tasks = Task(
        TASKS.support._replace(inputs=draw(2, 3, 1, 8, 8), targets=draw(2, 3, 3, seed=1)),
        TASKS.query._replace(inputs=draw(2, 3, 1, 8, 8, seed=2), targets=draw(2, 3, 3, seed=3)),
    )
    rule, meta = Except("*.norm.bias", Sgd(0.5)), MetaParams(model.params, {})
    adapted = adapt(support_loss, meta, [one(tasks, 0).support] * 2, rule)
    still = {name for name, value in adapted.items() if torch.equal(value, model.params[name])}
    # A convolution's own bias is cancelled by the normalisation after it, so it has no gradient.
    assert {name for name in still if not name.endswith("conv.bias")} == {
        "body.0.norm.bias",
        "body.1.norm.bias",
    }
    task_gradient = QueryGradient(support_loss, query_loss, rule, 2)
    gradient, _ = meta_gradient(task_gradient, meta, tasks, vectorized())
    assert gradient.model["body.1.norm.bias"].abs().min() > 1e-6
    assert_matches_finite_differences(task_gradient, meta, tasks)


def test_the_meta_gradient_is_the_mean_over_tasks() -> None:
    task_gradient = QueryGradient(SUPPORT_LOSS, QUERY_LOSS, Sgd(LR), 2)
    gradient, losses = outer(algorithms.maml(Sgd(LR), 2))
    by_task = [task_gradient(MetaParams(MODEL.params, {}), one(TASKS, i)) for i in range(3)]
    assert_same(gradient.model, mean_of([g.model for g, _ in by_task]))
    assert_same(losses, torch.stack([loss for _, loss in by_task]))


@pytest.mark.parametrize("over_tasks", [vectorized(), vectorized(1), sequential()], ids=["vmap", "chunks", "loop"])
@pytest.mark.parametrize("gradient_of", [QueryGradient, Displacement])
def test_tasks_of_different_sizes_come_in_groups_and_weigh_the_same(gradient_of: object, over_tasks: object) -> None:
    groups = [
        regression_tasks(2, 5, 6, seed=1),
        regression_tasks(1, 3, 4, seed=2),
        regression_tasks(3, 2, 9, seed=3),
    ]
    task_gradient = gradient_of(SUPPORT_LOSS, QUERY_LOSS, Sgd(LR), 2)  # type: ignore[operator]
    meta = MetaParams(MODEL.params, {})
    gradient, losses = meta_gradient(task_gradient, meta, groups, over_tasks)  # type: ignore[arg-type]
    tasks = [index(group, i) for group, size in zip(groups, (2, 1, 3), strict=True) for i in range(size)]
    by_task = [task_gradient(meta, task) for task in tasks]
    assert_same(gradient.model, mean_of([g.model for g, _ in by_task]))
    assert_same(losses, torch.stack([loss for _, loss in by_task]))


@pytest.mark.parametrize("tasks", [[], index(TASKS, slice(0, 0)), [TASKS, index(TASKS, slice(0, 0))]])
def test_a_meta_batch_without_tasks_is_refused(tasks: Task | list[Task]) -> None:
    with pytest.raises(ValueError, match=r"must hold at least one task: got none\. Raise"):
        same_size_groups(tasks)
    with pytest.raises(ValueError, match="at least one task"):
        meta_gradient(
            QueryGradient(SUPPORT_LOSS, QUERY_LOSS, Sgd(LR), 1),
            MetaParams(MODEL.params, {}),
            tasks,
            vectorized(),
        )


@pytest.mark.parametrize("over_tasks", [vectorized(), sequential()], ids=["vmap", "loop"])
@pytest.mark.parametrize("taken", [[0], [0, 1, 2, 0]])
def test_a_meta_batch_whose_tensors_disagree_on_the_number_of_tasks_is_refused(
    over_tasks: object, taken: list[int]
) -> None:
    lopsided = TASKS._replace(query=index(TASKS.query, taken))
    task_gradient = QueryGradient(SUPPORT_LOSS, QUERY_LOSS, Sgd(LR), 1)
    with pytest.raises(ValueError, match=r"must lead with one number of tasks: got \d, \d\. Stack"):
        meta_gradient(task_gradient, MetaParams(MODEL.params, {}), lopsided, over_tasks)  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient_of", [QueryGradient, Displacement])
def test_the_meta_gradient_of_leaves_that_require_grad_holds_no_graph(gradient_of: object) -> None:
    # torch.optim optimizers step leaves; a meta-gradient with a history would keep every inner step alive.
    leaves_ = {name: nn.Parameter(value.clone()) for name, value in MODEL.params.items()}
    task_gradient = gradient_of(SUPPORT_LOSS, QUERY_LOSS, Sgd(LR), 2)  # type: ignore[operator]
    for over_tasks in (vectorized(), sequential()):
        result = meta_gradient(task_gradient, MetaParams(leaves_, {}), TASKS, over_tasks)
        assert not any(leaf.requires_grad for leaf in leaves(result))
