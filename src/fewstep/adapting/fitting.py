"""An initialisation, adapted to one data set of the user's: a classifier with its own classes, or a regressor."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from fewstep.errors import RecipeError
from fewstep.experiments.build import build_algorithm
from fewstep.experiments.execution import checked_device
from fewstep.experiments.sections import MetaAlgorithm
from fewstep.learners.heads import HeadPolicy, balanced_cross_entropy, head_name, with_head, with_ways
from fewstep.learners.supervised import SupervisedLearner

if TYPE_CHECKING:
    from torch import nn

    from fewstep.adapting.initialisation import Initialisation
    from fewstep.core.algorithms import Algorithm
    from fewstep.core.types import Batch
    from fewstep.learners.adapted import Adapted
    from fewstep.learners.supervised import Loss
    from fewstep.names import Normalization

DEFAULT_HEAD: HeadPolicy = "prototype"
"""For another number of ways than trained: the best on meta-validation tasks (docs/results.md). It needs a bias."""


def head_policy(start: Initialisation, ways: int, asked: HeadPolicy | None = None) -> HeadPolicy:
    """Where the head begins: as asked, or else as trained if there are as many classes, or else by default.

    Raises:
        RecipeError: What is asked for is unknown, or cannot learn.
    """
    if asked is not None and asked not in get_args(HeadPolicy):
        raise RecipeError(f"--head must be one of {', '.join(get_args(HeadPolicy))}: got {asked!r}.")
    if asked == "trained" and ways != start.ways:
        raise RecipeError(
            f"The trained head is for {start.ways} classes: there are {ways}. Begin with another head "
            "(zero, mean or prototype), or leave the choice to fewstep."
        )
    head = head_name(start.module)
    weight, has_bias = f"{head}.weight", f"{head}.bias" in dict(start.module.named_parameters())
    if asked in ("zero", "mean") and not _algorithm(start).rule.selects(weight):
        raise RecipeError(
            f"--head {asked} needs a head that the inner loop adapts: {start.recipe.name} leaves {weight} as it is, "
            "and all classes would stay alike. Use --head prototype."
        )
    return asked or ("trained" if ways == start.ways else DEFAULT_HEAD if has_bias else "zero")


def fit_classifier(
    start: Initialisation,
    support: Batch,
    ways: int,
    steps: int,
    head: HeadPolicy,
    *,
    device: str = "cpu",
    loss: Loss = balanced_cross_entropy,
) -> Adapted:
    """Adapt to the classes of one support set.

    The loss keeps the scale that it was trained with, whatever the number of ways: with more of it, the same rate would
    mean longer steps. Each class weighs the same in it, however many examples it has.

    Args:
        start: From where.
        support: Inputs as the module takes them `[examples, ...]`, images in [0, 1], and labels from 0 to ways - 1; on
            the CPU.
        ways: Classes.
        steps: Gradient steps.
        head: Where the head begins.
        device: Where to compute.
        loss: To descend.

    Raises:
        FewstepError: The module cannot be adapted so, says why; or adaptation diverges.
    """
    try:
        learner = _learner(start, with_ways(start.module, ways), loss, device)
        learner.load_meta(with_head(head, start.meta, start.module, support, ways, learner.normalization))
        return learner.adapt(support, steps)
    except ValueError as error:
        raise RecipeError(f"{start.recipe.name} cannot be adapted to these examples: {error}") from None


def fit_same_outputs(start: Initialisation, support: Batch, steps: int, loss: Loss, *, device: str = "cpu") -> Adapted:
    """Adapt to one support set, whose targets mean what they did in training: numbers, or the same classes.

    Args:
        start: From where.
        support: Inputs as the module takes them `[examples, ...]` and targets `[examples, targets]`, or classes
            `[examples]`; on the CPU.
        steps: Gradient steps.
        loss: To descend.
        device: Where to compute.

    Raises:
        FewstepError: As for `fit_classifier`.
    """
    try:
        learner = _learner(start, start.module, loss, device)
        learner.load_meta(start.meta)
        return learner.adapt(support, steps)
    except ValueError as error:
        raise RecipeError(f"{start.recipe.name} cannot be adapted to these examples: {error}") from None


def _learner(start: Initialisation, module: nn.Module, loss: Loss, device: str) -> SupervisedLearner:
    """One that adapts as in training, except that queries are judged by the support set's statistics."""
    recipe = start.recipe
    normalization: Normalization = "running" if recipe.normalization == "running" else "support"
    return SupervisedLearner(
        module,
        loss,
        _algorithm(start),
        normalization=normalization,
        loss_scale=start.ways if recipe.loss.scale == "ways" else recipe.loss.scale,
        device=checked_device(device),
    )


def _algorithm(start: Initialisation) -> Algorithm:
    assert isinstance(start.recipe.algorithm, MetaAlgorithm)
    return build_algorithm(start.recipe.algorithm)
