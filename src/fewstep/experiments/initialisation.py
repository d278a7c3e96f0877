"""What a run on pictures has learned, as a classifier of other pictures begins with it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from fewstep.errors import RecipeError
from fewstep.experiments.build import build_model
from fewstep.experiments.config import ImageTasks, MetaAlgorithm
from fewstep.experiments.runs import learner_from, meta_file, open_run, recipe_of, stored_data
from fewstep.learners.heads import head_name, ways_of
from fewstep.tasks.images import Preparation

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from fewstep.core.types import MetaParams
    from fewstep.experiments.config import Recipe
    from fewstep.training.records import RunFolder


class Initialisation(NamedTuple):
    """What a classifier is adapted from.

    Attributes:
        recipe: What it was trained with.
        module: Of the architecture that was trained; its parameters do not count.
        meta: What was trained.
        preparation: How a picture becomes what the module sees.
        constants: Fingerprint of the module's frozen parameters and buffers.
        source: The run's name, its checkpoint's iteration and fingerprint.
    """

    recipe: Recipe
    module: nn.Module
    meta: MetaParams
    preparation: Preparation
    constants: str
    source: dict[str, Any]

    @property
    def ways(self) -> int:
        """Classes of a task in training."""
        return ways_of(self.module)


def initialisation(
    run: str | Path | RunFolder, model: nn.Module | None = None, checkpoint: str = "best"
) -> Initialisation:
    """What a run on pictures has learned.

    Raises:
        FewstepError: It has learned something else, or nothing yet.
    """
    folder = open_run(run)
    recipe = recipe_of(folder)
    if not isinstance(recipe.tasks, ImageTasks):
        raise RecipeError(
            f"Pictures need a run that was trained on pictures: {folder.path.name} was trained on "
            f"{recipe.tasks.kind} tasks. Use `fewstep.load(run).adapt(...)` for it, or another run."
        )
    if not isinstance(recipe.algorithm, MetaAlgorithm) or recipe.loss.kind != "cross_entropy":
        raise RecipeError(
            f"A run to adapt must have learned an initialisation by cross-entropy: {folder.path.name} has "
            f"algorithm.kind = {recipe.algorithm.kind!r} and loss.kind = {recipe.loss.kind!r}. Use another run."
        )
    file = meta_file(folder, checkpoint)
    learner = learner_from(file, recipe, model=model)
    module = build_model(recipe, model)
    try:
        head_name(module)
    except ValueError as error:
        raise RecipeError(f"{folder.path.name} cannot be adapted to other classes: {error}") from None
    source = {
        "run": folder.path.resolve().name,
        "iteration": learner.iteration,
        "fingerprint": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    return Initialisation(recipe, module, learner.meta, preparation_of(folder, recipe), learner.constants(), source)


def preparation_of(run: RunFolder, recipe: Recipe) -> Preparation:
    """How pictures were prepared for a run: as it stored, or else as its recipe's tasks have them."""
    stored = (stored_data(run) or {}).get("preparation")
    if stored is not None:
        return Preparation.from_dict(stored)
    assert isinstance(recipe.tasks, ImageTasks)
    if recipe.tasks.channels == 1:
        return Preparation(recipe.tasks.image_size, channels=1, invert="auto")
    return Preparation(recipe.tasks.image_size)
