"""A run on the tasks of another recipe: what was learned on one data set, tested on another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.errors import RecipeError
from fewstep.experiments.recipe_files import load_recipe
from fewstep.experiments.sections import ImageTasks, LocomotionTasks, SinusoidTasks, TableTasks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fewstep.experiments.config import Recipe


def transferred(recipe: Recipe, tasks_from: str | Path | Mapping[str, Any]) -> tuple[Recipe, str]:
    """The run's recipe with the tasks and the evaluation of another, and the other's name.

    Nothing is chosen on the other tasks, not even on their meta-validation split: rates and distances are the run's.

    Args:
        recipe: The run's.
        tasks_from: A bundled name, the path of a TOML file, or its values.

    Raises:
        RecipeError: The other's tasks have another shape than the model, or are passed from Python.
    """
    other = load_recipe(tasks_from)
    own, theirs = task_shape(recipe), task_shape(other)
    if own != theirs:
        differing = [name for name in own | theirs if own.get(name) != theirs.get(name)]
        raise RecipeError(
            f"--tasks-from must name tasks of the same shape: {recipe.name} was trained with "
            f"{_listed(own, differing)}, {other.name} has {_listed(theirs, differing)}. Use another recipe, or set "
            "these in a copy of it."
        )
    kept = {"tune_inner_lr": [], "tune_distance": [], "method": recipe.evaluate.method}
    variants = [variant for variant in other.evaluate.variants if variant.method is None]
    evaluate = other.evaluate.model_copy(update=kept | {"variants": variants})
    tasks = other.tasks
    if isinstance(tasks, SinusoidTasks) and isinstance(recipe.tasks, SinusoidTasks):  # what training drew from
        tasks = tasks.model_copy(update={"pool": recipe.tasks.pool})
    return recipe.model_copy(update={"tasks": tasks, "evaluate": evaluate}), other.name


def task_shape(recipe: Recipe) -> dict[str, Any]:
    """What a task's examples must agree in with those that a model was trained on."""
    tasks = recipe.tasks
    if tasks.kind == "custom":
        raise RecipeError(
            f"Only tasks that a recipe describes can be exchanged: those of {recipe.name} are passed from Python "
            "(tasks.kind = 'custom'). Leave out --tasks-from, and pass `task_distribution`."
        )
    if isinstance(tasks, ImageTasks):
        channels, size, _ = tasks.image_shape
        return {"channels": channels, "image_size": size, "ways": tasks.ways}
    if tasks.kind == "sinusoid":
        return {"inputs": 3 if tasks.reveal else 1, "targets": 1}
    if isinstance(tasks, TableTasks):
        classes = {"classes": tasks.classes} if tasks.classes else {}
        categories = {"categories": [tasks.categories.get(name) for name in tasks.inputs]} if tasks.categories else {}
        return {"inputs": len(tasks.features), "targets": len(tasks.targets)} | classes | categories
    physics = {"physics": tasks.physics} if isinstance(tasks, LocomotionTasks) else {}
    return {"environment": tasks.kind, "reveal": tasks.reveal} | physics


def _listed(shape: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {shape[name]}" if name in shape else f"no {name}" for name in names)
