"""From a recipe to objects: one plain function for each kind of thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler

from fewstep.core import algorithms
from fewstep.core.over_tasks import auto, sequential, vectorized
from fewstep.core.rng import derived_seed
from fewstep.core.rules import Adam, Clipped, Except, LearnedSgd, Momentum, Only, Sgd, UpdateRule
from fewstep.core.running import Run, captured, compiled, plain, traced
from fewstep.core.stepwise import outer_gradients, stepwise
from fewstep.errors import DataError, RecipeError
from fewstep.experiments.config import (
    Averaging,
    MetaAlgorithm,
    OmniglotTasks,
    Recipe,
    SinusoidTasks,
    Split,
    TableTasks,
)
from fewstep.learners.averaging import AveragingLearner
from fewstep.learners.supervised import SupervisedLearner
from fewstep.models.convnet import ConvNet
from fewstep.models.mlp import mlp
from fewstep.tasks import omniglot, table
from fewstep.tasks.few_shot import FewShot
from fewstep.tasks.sinusoid import Sinusoid

if TYPE_CHECKING:
    from fewstep.core.types import OverTasks
    from fewstep.learners.supervised import Loss, OptimizerFactory
    from fewstep.tasks.task import TaskDistribution

BuiltLearner: TypeAlias = SupervisedLearner | AveragingLearner


class Data(NamedTuple):
    """What tasks are drawn from, loaded once.

    Attributes:
        distribution: The tasks of a split, given shots and queries.
        record: What a run must remember about it, as plain values; equal records, equal data.
        standardization: Between the user's units and the model's, for tables.
        at_once: Tasks to evaluate together; None: all.
        available: Number of tasks in a split, where it is finite: more are not evaluated.
    """

    distribution: Callable[[Split, int | None, int | None], TaskDistribution]
    record: dict[str, Any]
    standardization: table.Standardization | None = None
    at_once: int | None = None
    available: Callable[[Split], int] | None = None


def load_data(
    recipe: Recipe,
    folder: Path | None = None,
    custom: TaskDistribution | Mapping[str, TaskDistribution] | None = None,
    stored: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Data:
    """Load what the recipe's tasks are drawn from.

    Args:
        recipe: Says what.
        folder: Where data sets lie, for the kinds that have one.
        custom: A distribution for every split, or one for each, for `tasks.kind = "custom"`.
        stored: The record of an earlier load, as a run keeps it; its split and standardisation are used again.
        device: Where images are kept, as bytes: tasks are gathered where the learner computes.

    Raises:
        DataError: Data are missing or damaged, or not those of the record.
        RecipeError: Custom tasks are asked for and not given, or the other way round.
    """
    tasks = recipe.tasks
    if (tasks.kind == "custom") != (custom is not None):
        raise RecipeError(
            "Tasks are passed from Python if and only if tasks.kind = 'custom': "
            f"tasks.kind is {tasks.kind!r} and {'some' if custom is not None else 'none'} were passed."
        )
    if isinstance(tasks, SinusoidTasks):
        data = _sinusoid_data(tasks)
    elif isinstance(tasks, OmniglotTasks):
        data = _omniglot_data(tasks, folder, device)
    elif isinstance(tasks, TableTasks):
        data = _table_data(tasks, stored)
    else:
        data = _custom_data(custom)
    if stored is not None and stored.get("content_hash") != data.record.get("content_hash"):
        raise DataError(
            f"A run goes on with the data it was trained with: content hash {stored.get('content_hash')} is expected, "
            f"{data.record.get('content_hash')} came. Restore the data, or train a new run."
        )
    return data


def _sinusoid_data(tasks: SinusoidTasks) -> Data:
    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:
        pool = tasks.pool if split == "train" else None
        return Sinusoid(shots or tasks.shots, queries or tasks.queries, tasks.reveal, pool)

    return Data(distribution, {})


def _omniglot_data(tasks: OmniglotTasks, folder: Path | None, device: str) -> Data:
    images = omniglot.load_omniglot(folder)
    splits: dict[str, Tensor] = {}

    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:
        if split not in splits:
            splits[split] = omniglot.omniglot_split(images, split).to(device)
        try:
            return FewShot(splits[split], tasks.ways, shots or tasks.shots, queries or tasks.queries, tasks.rotate)
        except ValueError as error:
            raise RecipeError(f"Split {split!r} has too few images for such tasks. {error}") from None

    record = {"content_hash": images.content_hash, "folder": str(omniglot.data_folder(folder).resolve())}
    return Data(distribution, record, at_once=50)


def _table_data(tasks: TableTasks, stored: Mapping[str, Any] | None) -> Data:
    path = (
        table.DOSE_RESPONSE.parent / tasks.path.removeprefix("bundled:")
        if tasks.path.startswith("bundled:")
        else Path(tasks.path)
    )
    read = table.read_table(path, tasks.task, tasks.inputs, tasks.targets)
    if stored is None:
        first, second, third = tasks.fractions
        splits: dict[str, list[str]] = {**table.split_tasks(read.groups, (first, second, third))}
        scale = table.Standardization.fit([read.groups[name] for name in splits["train"]])
    else:
        splits, scale = stored["splits"], table.Standardization.from_dict(stored["standardization"])

    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:
        groups = {name: scale.standardize(read.groups[name]) for name in splits[split] if name in read.groups}
        return table.TableTasks(groups, shots or tasks.shots, queries)

    record = {"content_hash": read.content_hash, "splits": splits, "standardization": scale.to_dict()}
    return Data(distribution, record, scale, available=lambda split: len(splits[split]))


def _custom_data(custom: TaskDistribution | Mapping[str, TaskDistribution] | None) -> Data:
    def distribution(split: Split, shots: int | None, queries: int | None) -> TaskDistribution:  # noqa: ARG001
        if not isinstance(custom, Mapping):
            assert custom is not None
            return custom
        if split not in custom:
            raise DataError(
                f"Tasks of split {split!r} are needed: got {', '.join(custom) or 'none'}. Pass a distribution for "
                "every split, or one for all."
            )
        return custom[split]

    return Data(distribution, {})


def features_of(recipe: Recipe) -> tuple[int, int] | None:
    """Input and output features of a model for the recipe's tasks, where they are vectors."""
    tasks = recipe.tasks
    if isinstance(tasks, SinusoidTasks):
        return 3 if tasks.reveal else 1, 1
    return (len(tasks.inputs), len(tasks.targets)) if isinstance(tasks, TableTasks) else None


def build_model(recipe: Recipe, custom: nn.Module | None = None, copy: int = 0) -> nn.Module:
    """The model with its initial parameters, which depend on the recipe's seed alone.

    Args:
        recipe: Says which.
        custom: The module, for `model.kind = "custom"`.
        copy: Which of several independent initialisations.

    Raises:
        RecipeError: A custom module is asked for and not given, or the other way round.
    """
    model = recipe.model
    if (model.kind == "custom") != (custom is not None):
        raise RecipeError(
            "A module is passed from Python if and only if model.kind = 'custom': "
            f"model.kind is {model.kind!r} and {'one' if custom is not None else 'none'} was passed (`model=`)."
        )
    if custom is not None:
        return custom
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(recipe.seed, "model", copy))
        if model.kind == "convnet":
            assert isinstance(recipe.tasks, OmniglotTasks)
            return ConvNet(recipe.tasks.ways, **model.model_dump(exclude={"kind"}))
        features = features_of(recipe)
        assert model.kind == "mlp"
        assert features is not None
        return mlp(*features, hidden=model.hidden, init_std=model.init_std)


def build_rule(algorithm: MetaAlgorithm, inner_lr: float | None = None) -> UpdateRule:
    """The inner-loop rule with its wrappers.

    Args:
        algorithm: Says which.
        inner_lr: Instead of the recipe's.
    """
    lr = algorithm.inner_lr if inner_lr is None else inner_lr
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


def build_algorithm(algorithm: MetaAlgorithm, inner_lr: float | None = None) -> algorithms.Algorithm:
    """The algorithm of `core.algorithms` that the recipe names."""
    rule = build_rule(algorithm, inner_lr)
    if algorithm.kind in ("anil", "boil"):
        named = {"anil": algorithms.anil, "boil": algorithms.boil}[algorithm.kind]
        return named(rule, algorithm.steps, algorithm.head)
    if algorithm.kind == "joint":
        return algorithms.joint(rule)
    plain = {"maml": algorithms.maml, "fomaml": algorithms.fomaml, "reptile": algorithms.reptile}
    return plain.get(algorithm.kind, algorithms.maml)(rule, algorithm.steps)


def build_learner(
    recipe: Recipe,
    *,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    device: str = "cpu",
    inner_lr: float | None = None,
) -> BuiltLearner:
    """The learner that the recipe describes, before its first meta-update.

    Args:
        recipe: The experiment.
        module: The user's own model.
        loss: The user's own loss.
        device: Where it computes.
        inner_lr: An inner learning rate instead of the recipe's, for tuning.

    Raises:
        RecipeError: The recipe does not fit the model, or lacks one.
    """
    loss, metrics = _loss(recipe, loss)
    model = build_model(recipe, module)
    try:
        if isinstance(recipe.algorithm, Averaging):
            algorithm = recipe.algorithm
            return AveragingLearner(
                [build_model(recipe, module, copy) for copy in range(recipe.meta.batch_size)],
                loss,
                Sgd(algorithm.inner_lr if inner_lr is None else inner_lr),
                regularizer=algorithm.regularizer,
                strength=algorithm.strength,
                optimizer=_optimizer(recipe),
                metrics=metrics,
                device=device,
            )
        over_tasks, run = _execution(recipe, device)
        return SupervisedLearner(
            model,
            loss,
            build_algorithm(recipe.algorithm, inner_lr),
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
    except ValueError as error:
        raise RecipeError(f"Recipe {recipe.name} does not fit its model: {error}") from None


def metric_of(recipe: Recipe) -> str:
    """The metric that results are told in: accuracy for classification, else the loss."""
    return "accuracy" if recipe.loss.kind == "cross_entropy" else "loss"


def _loss(recipe: Recipe, custom: Loss | None) -> tuple[Loss, dict[str, Loss]]:
    if (recipe.loss.kind == "custom") != (custom is not None):
        raise RecipeError(
            "A loss is passed from Python if and only if loss.kind = 'custom': "
            f"loss.kind is {recipe.loss.kind!r} and {'one' if custom is not None else 'none'} was passed (`loss=`)."
        )
    if custom is not None:
        return custom, {}
    if recipe.loss.kind == "cross_entropy":
        return functional.cross_entropy, {"accuracy": accuracy}
    return mean_squared_error, {}


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
        assert isinstance(recipe.tasks, OmniglotTasks)
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


_LARGE_IMAGE = 64
"""Pixels from which tasks of images run one after the other: one fills the cores, all would fill the memory."""


def _execution(recipe: Recipe, device: str) -> tuple[OverTasks, Run]:
    """How tasks are mapped, and how the meta-gradient as a whole runs."""
    chosen = recipe.execution
    # A replay is safe for our own modules and losses, which depend on nothing but their arguments; and it pays only
    # where few sizes of tasks come again and again.
    ragged = isinstance(recipe.tasks, TableTasks) and recipe.tasks.queries is None
    own = recipe.model.kind != "custom" and recipe.loss.kind != "custom"
    replay = traced if own and not ragged else plain
    on_gpu = device.startswith("cuda")
    if chosen.over_tasks == "sequential":
        others = sequential()
    elif chosen.over_tasks == "vectorized":
        others = vectorized(chosen.chunk_size)
    else:
        others = auto(chosen.chunk_size, replay)
    if chosen.compile and recipe.model.kind == "mlp" and not chosen.remat and chosen.over_tasks != "sequential":
        # A small network is over in a moment: compiled whole, with nothing of Python between the steps.
        over_tasks, run = outer_gradients(vectorized(chosen.chunk_size), others), compiled()
    elif chosen.compile or chosen.remat:
        over_tasks, run = _stepwise(recipe, others, on_gpu), plain
    else:
        over_tasks, run = others, plain
    # Recomputation restores the state of random numbers, which no graph can.
    capture = on_gpu and replay is traced and not chosen.remat
    return over_tasks, captured(run) if capture else run


def _stepwise(recipe: Recipe, others: OverTasks, on_gpu: bool) -> OverTasks:
    chosen = recipe.execution
    one_by_one = chosen.over_tasks == "sequential" or (_image_size(recipe) >= _LARGE_IMAGE and not on_gpu)
    # Forward derivatives are tested for our convolutional network and cross-entropy.
    forward = recipe.model.kind == "convnet" and recipe.loss.kind == "cross_entropy"
    return stepwise(
        vectorize=not one_by_one,
        chunk_size=chosen.chunk_size,
        run=compiled() if chosen.compile else plain,  # recording every step takes longer than it saves
        keep=not chosen.remat,
        forward_mode=forward,
        others=others,
    )


def _image_size(recipe: Recipe) -> int:
    return omniglot.SIZE if isinstance(recipe.tasks, OmniglotTasks) else 0
