"""What a run has learned, as a model of other data begins with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from fewstep.core.types import MetaParams
from fewstep.errors import RecipeError
from fewstep.experiments.build import FromPython, build_model
from fewstep.experiments.recipe_files import load_recipe
from fewstep.experiments.runs import learner_from, meta_file, open_run, recipe_of, stored_data, tell_of_unfinished
from fewstep.experiments.sections import ImageTasks, MetaAlgorithm, TableTasks
from fewstep.learners.heads import head_name, ways_of
from fewstep.tasks.images import Preparation
from fewstep.training.checkpoint import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from fewstep.experiments.config import Recipe
    from fewstep.learners.supervised import Loss
    from fewstep.names import Checkpoint
    from fewstep.training.records import RunFolder

LossName: TypeAlias = Literal["cross_entropy", "mse", "custom"]

UNTRAINED = {
    "name": "untrained",
    "tasks": {"kind": "custom"},
    "model": {"kind": "custom"},
    "algorithm": {"kind": "maml", "rule": "adam", "inner_lr": 0.01},
    "evaluate": {"steps": 100},
}
"""How an initialisation is adapted from which nothing was learned: ordinary training of one network."""


class Initialisation(NamedTuple):
    """What is adapted.

    Attributes:
        recipe: What it was trained with.
        module: Of the architecture that was trained; its parameters do not count.
        meta: What was trained.
        constants: Fingerprint of the module's frozen parameters and buffers.
        source: The run's name, its checkpoint's iteration and fingerprint.
    """

    recipe: Recipe
    module: nn.Module
    meta: MetaParams
    constants: str
    source: dict[str, Any]

    @property
    def ways(self) -> int:
        """Classes of a task in training."""
        return ways_of(self.module)


def initialisation(
    run: str | Path | RunFolder,
    model: nn.Module | None = None,
    checkpoint: Checkpoint = "best",
    loss: LossName = "cross_entropy",
    custom_loss: Loss | None = None,
) -> Initialisation:
    """What a run has learned.

    Args:
        run: A run folder or the name of a ready initialisation.
        model: The module that the run was trained with, if it was passed from Python.
        checkpoint: "best" by validation, or "final".
        loss: What it must have learned to lower: "cross_entropy" for a classifier, which then has a head, if its
            classes may be others than in training.
        custom_loss: The loss that the run was trained with, if that was passed from Python.

    Raises:
        FewstepError: It has learned something else, or nothing yet.
    """
    folder = open_run(run)
    recipe, name = recipe_of(folder), folder.path.resolve().name
    if not isinstance(recipe.algorithm, MetaAlgorithm) or recipe.loss.kind != loss:
        raise RecipeError(
            f"A run to adapt must have learned an initialisation by loss.kind = {loss!r}: {name} has algorithm.kind = "
            f"{recipe.algorithm.kind!r} and loss.kind = {recipe.loss.kind!r}. Use another run."
        )
    if recipe.algorithm.kind == "custom":
        raise RecipeError(
            f"{name} was trained with an algorithm from Python, which a learner alone can be given: adapt it with "
            "`fewstep.load(run, algorithm=...).adapt(...)`."
        )
    file = meta_file(folder, checkpoint)
    tell_of_unfinished(folder, checkpoint)
    found = read_initialisation(file, recipe, model, {"run": name, "fingerprint": sha256(file)}, custom_loss)
    if loss == "cross_entropy" and classes_of(recipe) is None:
        try:
            head_name(found.module)
        except ValueError as error:
            raise RecipeError(f"{name} cannot be adapted to other classes: {error}") from None
    return found


def classes_of(recipe: Recipe) -> tuple[str, ...] | None:
    """The classes that a table's tasks have in common, in the order of the outputs."""
    classes = recipe.tasks.classes if isinstance(recipe.tasks, TableTasks) else None
    return None if classes is None else tuple(classes)


def read_initialisation(
    file: Path, recipe: Recipe, model: nn.Module | None, source: dict[str, Any], loss: Loss | None = None
) -> Initialisation:
    """The initialisation that a file of meta-parameters holds; `source` learns of its iteration, if it does not know.

    Raises:
        FewstepError: They are not those of this recipe and module.
    """
    learner = learner_from(file, recipe, FromPython(model, loss))
    source = {"iteration": learner.iteration} | source
    return Initialisation(recipe, build_model(recipe, model), learner.meta, learner.constants(), source)


def untrained(module: nn.Module, loss: LossName) -> Initialisation:
    """A module's own parameters as an initialisation; see `UNTRAINED`."""
    params = {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}
    return Initialisation(load_recipe(UNTRAINED | {"loss": {"kind": loss}}), module, MetaParams(params, {}), "", {})


def preparation_of(run: str | Path | RunFolder) -> Preparation:
    """How pictures were prepared for a run: as it stored, or else as its recipe's tasks have them.

    Raises:
        RecipeError: It was not trained on pictures.
    """
    folder = open_run(run)
    recipe = recipe_of(folder)
    if not isinstance(recipe.tasks, ImageTasks):
        raise RecipeError(
            f"Pictures need a run that was trained on pictures: {folder.path.name} was trained on "
            f"{recipe.tasks.kind} tasks. Use `fewstep.load(run).adapt(...)` for it, or another run."
        )
    stored = (stored_data(folder) or {}).get("preparation")
    if stored is not None:
        return Preparation.from_dict(stored)
    channels, size, _ = recipe.tasks.image_shape
    return Preparation(size, channels=1, invert="auto") if channels == 1 else Preparation(size)
