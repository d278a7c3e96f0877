"""Defaults of a recipe that follow from its other values, and are written into it: so a run says all of itself."""

from __future__ import annotations

import math
from typing import Any

from fewstep.experiments.config import PAYS_TO_COMPILE, PAYS_TO_COMPILE_TIME_STEPS
from fewstep.experiments.sections import (
    ENVIRONMENTS,
    ConvNetModel,
    EnvironmentTasks,
    LocomotionTasks,
    Meta,
    NavigationTasks,
)

_HORIZONS = {"navigation": NavigationTasks.model_fields["horizon"].default}
_HORIZON = LocomotionTasks.model_fields["horizon"].default


def fill_in(values: dict[str, Any]) -> None:
    """The loss follows from the kind of tasks, the optimizer from the loss, compiling from the length.

    Args:
        values: Of a recipe, perhaps no possible one; written into.
    """
    tasks, loss = values.get("tasks"), values.setdefault("loss", {})
    if isinstance(tasks, dict) and isinstance(loss, dict) and "kind" not in loss:
        images = ("omniglot", "glyphs", "miniimagenet", "folder")
        natural: dict[str, str] = {"sinusoid": "mse"} | dict.fromkeys(images, "cross_entropy")
        natural["table"] = "cross_entropy" if tasks.get("classes") else "mse"
        natural |= dict.fromkeys(ENVIRONMENTS, "reinforce")
        if str(tasks.get("kind")) in natural:
            loss["kind"] = natural[str(tasks.get("kind"))]
    meta = values.setdefault("meta", {})
    if isinstance(meta, dict) and isinstance(loss, dict) and loss.get("kind") == "reinforce":
        meta.setdefault("optimizer", "trpo")
    _compile(values)


def _compile(values: dict[str, Any]) -> None:
    """Whether to compile follows from the recipe alone, so that a run executes alike wherever it goes on."""

    def value(section: str, key: str, default: Any = None) -> Any:
        found = values.get(section, {})
        return found.get(key, default) if isinstance(found, dict) else None

    execution = values.setdefault("execution", {})
    if not isinstance(execution, dict) or "compile" in execution:
        return
    kind, iterations = value("model", "kind"), value("meta", "iterations", Meta().iterations)
    if value("loss", "kind") == "reinforce":
        sizes = (
            iterations,
            value("meta", "batch_size", Meta().batch_size),
            value("tasks", "trajectories", EnvironmentTasks().trajectories),
            value("tasks", "horizon", _HORIZONS.get(str(value("tasks", "kind")), _HORIZON)),
        )
        least, known = PAYS_TO_COMPILE_TIME_STEPS, kind == "mlp" and value("tasks", "kind") != "custom"
    else:
        filters = value("model", "filters", ConvNetModel.model_fields["filters"].default)
        sizes = (iterations, filters if kind == "convnet" else 1)
        least = PAYS_TO_COMPILE.get(str(kind), math.inf)
        meta_learns = value("algorithm", "kind") not in ("averaging", "custom")
        one_size = value("tasks", "kind") != "table" or value("tasks", "queries") is not None
        known = meta_learns and one_size and value("loss", "kind") != "custom"
    by_default = known and execution.get("over_tasks", "auto") == "auto"
    execution["compile"] = by_default and all(isinstance(size, int) for size in sizes) and math.prod(sizes) >= least
