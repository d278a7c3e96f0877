"""`fewstep.load`: whatever a folder holds that was learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.adapting.classifier import is_adapted, load_adapted
from fewstep.errors import FewstepError
from fewstep.experiments.build import FromPython
from fewstep.experiments.build_reinforcement import build_environment, remembered
from fewstep.experiments.runs import load_learner, open_run, recipe_of, stored_data, tell_of_unfinished
from fewstep.training.records import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from fewstep.experiments.build import AlgorithmFactory
    from fewstep.experiments.config import Recipe
    from fewstep.learners.supervised import Loss
    from fewstep.names import Checkpoint
    from fewstep.rl.environment import Environment


def load(
    run: str | Path | RunFolder,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    algorithm: AlgorithmFactory | None = None,
    task_distribution: Environment | None = None,
    checkpoint: Checkpoint = "best",
    device: str = "cpu",
) -> Any:
    """A learner with the meta-parameters of a run: adapt it, evaluate it, or look at `learner.meta`.

    Of a folder made by `adapt` it is the `AdaptedClassifier`. The type is `Any`: only the folder says which it is.

    Args:
        run: A run folder, the name of a ready initialisation (see `ready`), or the folder of an adapted model.
        model: The module that the run was trained with, if it was passed from Python.
        loss: The loss, likewise.
        algorithm: The algorithm, likewise.
        task_distribution: The environment, likewise. Without it a policy adapts to recorded episodes alone; other
            learners need none.
        checkpoint: "best" by validation, or "final".
        device: Where to compute.

    Returns:
        The learner; `learner.adapt(support, steps)` gives a model adapted to one task.

    Raises:
        FewstepError: The folder is no run, or the model is not the one it was trained with.
    """
    if not isinstance(run, RunFolder) and is_adapted(run):
        strange = [given for given in (loss, algorithm, task_distribution) if given is not None]
        if strange or (checkpoint, device) != ("best", "cpu"):
            raise FewstepError(
                f"An adapted model has no loss, algorithm, tasks or checkpoints, and computes on the CPU: {run} is "
                "one, and one of these was asked for. Leave them out; its `.module` may be moved."
            )
        return load_adapted(run, model)
    folder = open_run(run)
    tell_of_unfinished(folder, checkpoint)
    recipe = recipe_of(folder)
    environment = _environment(folder, recipe, task_distribution) if recipe.loss.kind == "reinforce" else None
    passed = FromPython(model, loss, algorithm)
    return load_learner(folder, recipe, checkpoint, passed, environment=environment, device=device)


def _environment(run: RunFolder, recipe: Recipe, custom: Environment | None) -> Environment:
    spaces = (stored_data(run) or {}).get("environment")
    return build_environment(recipe, custom) if custom is not None or spaces is None else remembered(spaces)
