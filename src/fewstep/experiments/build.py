"""From a recipe to objects: one plain function for each kind of thing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from fewstep.core import algorithms
from fewstep.core.rng import derived_seed, drawing_from
from fewstep.core.rules import Adam, Clipped, Except, LearnedSgd, Momentum, Only, Sgd, UpdateRule
from fewstep.errors import RecipeError
from fewstep.experiments.build_reinforcement import build_reinforcement_learner, policy_shape
from fewstep.experiments.execution import build_execution
from fewstep.experiments.sections import (
    Averaging,
    ConvNetModel,
    CustomModel,
    ImageTasks,
    MetaAlgorithm,
    MlpModel,
    Pretrained,
    ReinforceLoss,
    SinusoidTasks,
    TableTasks,
)
from fewstep.learners.averaging import AveragingLearner
from fewstep.learners.nearest_neighbour import NearestNeighbour
from fewstep.learners.pretrained import PretrainedLearner, feature_network, few_shot_network
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.learners.supervised import SupervisedLearner
from fewstep.models.context import WithContext
from fewstep.models.convnet import ConvNet
from fewstep.models.mlp import mlp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fewstep.experiments.config import Recipe
    from fewstep.learners.outer_loop import OptimizerFactory
    from fewstep.learners.supervised import Loss
    from fewstep.rl.environment import Environment

    AlgorithmFactory: TypeAlias = Callable[[UpdateRule, int], algorithms.Algorithm]
    """What `fewstep.maml` and its like are: of an inner rule and a number of inner steps, an algorithm."""

BuiltLearner: TypeAlias = SupervisedLearner | AveragingLearner | PretrainedLearner | ReinforcementLearner


def shapes_of(recipe: Recipe) -> tuple[tuple[int, ...], int] | None:
    """The shape of one input and the number of outputs of a model for the recipe's tasks, where these say so."""
    tasks = recipe.tasks
    if isinstance(tasks, ImageTasks):
        classes = recipe.algorithm.classes if isinstance(recipe.algorithm, Pretrained) else tasks.ways
        return tasks.image_shape, classes
    if isinstance(tasks, SinusoidTasks):
        return (3 if tasks.reveal else 1,), 1
    return ((len(tasks.features),), len(tasks.classes or tasks.targets)) if isinstance(tasks, TableTasks) else None


def build_model(
    recipe: Recipe, custom: nn.Module | None = None, copy: int = 0, environment: Environment | None = None
) -> nn.Module:
    """The model with its initial parameters, which depend on the recipe's seed alone.

    Args:
        recipe: Says which.
        custom: The module, for `model.kind = "custom"`.
        copy: Which of several independent initialisations.
        environment: Gives the shapes of a policy's network.

    Raises:
        RecipeError: A custom module is asked for and not given, or the other way round.
    """
    model = recipe.model
    _check_passed("model", model.kind, custom, what="module")
    if custom is not None:
        return custom
    with drawing_from(derived_seed(recipe.seed, "model", copy), torch.get_default_device()):
        shapes = policy_shape(environment) if environment is not None else shapes_of(recipe)
        assert shapes is not None
        assert not isinstance(model, CustomModel)
        return _network(model, *shapes)


def _network(model: MlpModel | ConvNetModel, shape: tuple[int, ...], outputs: int) -> nn.Module:
    options = model.model_dump(exclude={"kind", "context"})
    channels, *positions = shape
    seen = (channels + model.context, *positions)
    if isinstance(model, MlpModel):
        network: nn.Module = mlp(seen, outputs, **options)
    else:
        network = ConvNet(outputs, channels=seen[0], image_size=seen[-1], **options)
    return WithContext(network, (model.context, *positions)) if model.context else network


def _check_passed(section: str, kind: str, custom: object, what: str | None = None) -> None:
    """See that what comes from Python comes where the recipe says so, and only there."""
    if kind != "custom" and custom is not None:
        raise RecipeError(
            f"`{section}=` was passed, and {section}.kind is {kind!r}. Set {section}.kind = 'custom', or leave it out."
        )
    if kind == "custom" and custom is None:
        raise RecipeError(
            f"{section}.kind is 'custom', so the {what or section} comes from Python: pass it as `{section}=`, to "
            "`fewstep.train` and again wherever the run is opened. The command line cannot."
        )


def build_rule(algorithm: MetaAlgorithm) -> UpdateRule:
    """The inner-loop rule with its wrappers."""
    lr = algorithm.inner_lr
    rule: UpdateRule = {
        "sgd": Sgd(lr),
        "momentum": Momentum(lr, algorithm.momentum),
        "adam": Adam(lr),
        "learned_sgd": LearnedSgd(lr, algorithm.per),
    }[algorithm.rule]
    if algorithm.kind == "meta_sgd":
        rule = algorithms.meta_sgd(lr).rule
    if algorithm.clip is not None:
        rule = Clipped(rule, algorithm.clip)
    if algorithm.only:
        rule = Only(tuple(algorithm.only), rule)
    if algorithm.except_:
        rule = Except(tuple(algorithm.except_), rule)
    return rule


def build_algorithm(
    algorithm: MetaAlgorithm, custom: AlgorithmFactory | None = None, within: str = ""
) -> algorithms.Algorithm:
    """The algorithm of `core.algorithms` that the recipe names, or that the user's own function makes.

    Args:
        algorithm: What the recipe says of it.
        custom: The user's own function.
        within: What the names of the model's parameters begin with, where it is part of another module.

    Raises:
        RecipeError: The recipe asks for the user's own and there is none, or there is one and it does not.
        ValueError: The function makes something else.
    """
    _check_passed("algorithm", algorithm.kind, custom)
    rule = build_rule(algorithm)
    if custom is not None:
        if not callable(custom):
            raise RecipeError(
                "`algorithm=` is a function of an inner rule and a number of inner steps, as fewstep.maml is: got "
                f"{type(custom).__name__}. Pass one, `lambda rule, steps: ...` for instance."
            )
        made = custom(rule, algorithm.steps)
        algorithms.expect_algorithm(made)
        return made
    if algorithm.kind in ("anil", "boil"):
        named = {"anil": algorithms.anil, "boil": algorithms.boil}[algorithm.kind]
        return named(rule, algorithm.steps, within + algorithm.head.removeprefix(within))
    if algorithm.kind == "joint":
        return algorithms.joint(rule)
    plain = {"maml": algorithms.maml, "fomaml": algorithms.fomaml, "reptile": algorithms.reptile}
    return plain.get(algorithm.kind, algorithms.maml)(rule, algorithm.steps)


class FromPython(NamedTuple):
    """What cannot stand in a recipe, and is passed beside it: to train a run, and again wherever it is opened.

    Attributes:
        model: The user's own module, for `model.kind = "custom"`.
        loss: Their own loss, likewise.
        algorithm: Their own algorithm, likewise: a function of the recipe's inner rule and its number of inner steps.
        metrics: What else to evaluate, by name.
    """

    model: nn.Module | None = None
    loss: Loss | None = None
    algorithm: AlgorithmFactory | None = None
    metrics: Mapping[str, Loss] | None = None


NOTHING = FromPython()
"""Beside a recipe that says all."""


def build_learner(
    recipe: Recipe,
    own: FromPython = NOTHING,
    *,
    environment: Environment | None = None,
    device: str = "cpu",
    ragged: bool = False,
) -> BuiltLearner:
    """The learner that the recipe describes, before its first meta-update.

    Args:
        recipe: The experiment.
        own: What is passed beside it.
        environment: Of the tasks, for reinforcement learning.
        device: Where it computes.
        ragged: Whether its tasks come in many sizes.

    Raises:
        RecipeError: The recipe does not fit the model, or lacks one.
    """
    model, chosen, algorithm = build_model(recipe, own.model, environment=environment), recipe.algorithm, own.algorithm
    if algorithm is not None and recipe.loss.kind == "reinforce":
        raise RecipeError(
            "A recipe of reinforcement learning takes no `algorithm=`: leave it out, or build a "
            "`fewstep.ReinforcementLearner` with yours."
        )
    loss, natural = _loss(recipe, own.loss)
    metrics = natural | dict(own.metrics or {})
    try:
        if isinstance(chosen, MetaAlgorithm):
            if isinstance(recipe.loss, ReinforceLoss):
                assert environment is not None
                made = build_algorithm(chosen, within="network.")  # of the policy
                return build_reinforcement_learner(recipe, model, made, environment, device)
            return _supervised(recipe, model, build_algorithm(chosen, algorithm), loss, metrics, device, ragged)
        if algorithm is not None:
            raise RecipeError(f"algorithm.kind = {chosen.kind!r} takes no `algorithm=`: leave it out.")
        if isinstance(chosen, Averaging):
            return AveragingLearner(
                [build_model(recipe, own.model, copy) for copy in range(recipe.meta.batch_size)],
                loss,
                Sgd(chosen.inner_lr),
                regularizer=chosen.regularizer,
                strength=chosen.strength,
                optimizer=_optimizer(recipe),
                metrics=metrics,
                device=device,
            )
        classifier = _supervised(recipe, model, algorithms.joint(), loss, metrics, device)
        return PretrainedLearner(classifier, _few_shot(recipe, chosen, model, loss, metrics, device))
    except ValueError as error:
        raise RecipeError(f"Recipe {recipe.name} does not fit its model: {error}") from None


def _supervised(
    recipe: Recipe,
    model: nn.Module,
    algorithm: algorithms.Algorithm,
    loss: Loss,
    metrics: dict[str, Loss],
    device: str,
    ragged: bool = False,
) -> SupervisedLearner:
    over_tasks, run = build_execution(recipe, device, ragged=ragged)
    return SupervisedLearner(
        model,
        loss,
        algorithm,
        optimizer=_optimizer(recipe),
        schedule=_schedule(recipe),
        normalization=recipe.normalization,
        metrics=metrics,
        loss_scale=_loss_scale(recipe),
        clip_value=recipe.meta.clip_value,
        clip_norm=recipe.meta.clip_norm,
        over_tasks=over_tasks,
        run=run,
        device=device,
    )


def _few_shot(
    recipe: Recipe, algorithm: Pretrained, model: nn.Module, loss: Loss, metrics: dict[str, Loss], device: str
) -> SupervisedLearner | NearestNeighbour:
    """What solves tasks of few classes with a pretrained classifier."""
    assert isinstance(recipe.tasks, ImageTasks)
    ways = recipe.tasks.ways
    if algorithm.method == "finetune":
        network = few_shot_network(model, ways, algorithm.head_std, recipe.seed)
        # Never trained, so first-order: the algorithm says how it adapts.
        finetuning = algorithms.fomaml(Sgd(algorithm.inner_lr), algorithm.steps)
        return _supervised(recipe, network, finetuning, loss, metrics, device)
    return NearestNeighbour(
        feature_network(model),
        loss,
        ways,
        distance=algorithm.distance,
        normalization=recipe.normalization,
        metrics=metrics,
        over_tasks=build_execution(recipe, device)[0],
        device=device,
    )


def metric_of(recipe: Recipe) -> str:
    """The metric that results are told in: accuracy for classification, returns of an environment, else the loss."""
    return {"cross_entropy": "accuracy", "reinforce": "return"}.get(recipe.loss.kind, "loss")


def _loss(recipe: Recipe, custom: Loss | None) -> tuple[Loss, dict[str, Loss]]:
    _check_passed("loss", recipe.loss.kind, custom)
    if custom is not None:
        return custom, {}
    if recipe.loss.kind == "cross_entropy":
        return functional.cross_entropy, {"accuracy": accuracy}
    columns = recipe.tasks.targets if isinstance(recipe.tasks, TableTasks) else []
    return mean_squared_error, {mse_of(name): partial(_column_mse, i) for i, name in enumerate(columns)}


def mse_of(target: str) -> str:
    """The metric of one target column of a table, beside the loss of all: its mean squared error."""
    return f"mse of {target}"


def _column_mse(column: int, outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets)[..., column].square().mean()


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of (f(x) - y)^2 over examples and targets (equation 2), for equal shapes only.

    Raises:
        ValueError: The shapes differ: broadcasting would compare every example with every other.
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            f"Targets must have the shape of the model's outputs: expected {list(outputs.shape)}, got "
            f"{list(targets.shape)}. Give [examples, targets], for one target with unsqueeze(1)."
        )
    return functional.mse_loss(outputs, targets)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of examples whose largest logit is that of their label; logits `[examples, ways]`."""
    return (logits.argmax(-1) == labels).float().mean()


def _loss_scale(recipe: Recipe) -> float:
    if recipe.loss.scale == "ways":
        assert isinstance(recipe.tasks, ImageTasks)
        return float(recipe.tasks.ways)
    return recipe.loss.scale


def _optimizer(recipe: Recipe) -> OptimizerFactory:
    meta = recipe.meta
    if meta.optimizer == "sgd":
        return lambda leaves: torch.optim.SGD(
            leaves, lr=meta.lr, momentum=meta.momentum, weight_decay=meta.weight_decay
        )
    optimizer = torch.optim.Adam if meta.optimizer == "adam" else torch.optim.AdamW
    return lambda leaves: optimizer(leaves, lr=meta.lr, weight_decay=meta.weight_decay, fused=True)


def _schedule(
    recipe: Recipe,
) -> Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler] | None:
    total = max(recipe.meta.iterations, 1)
    if recipe.meta.schedule == "linear":
        return lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total)
    if recipe.meta.schedule == "cosine":
        return lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, total)
    return None
