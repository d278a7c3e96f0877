"""`fewstep inspect`: what is inside the adaptation of a run."""

from __future__ import annotations

import math
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from fewstep.core.layers import by_layer
from fewstep.core.rules import selected
from fewstep.core.types import MetaParams
from fewstep.errors import RecipeError, RunError
from fewstep.experiments.build import FromPython, build_learner, build_model, metric_of
from fewstep.experiments.data import find_data
from fewstep.experiments.evaluate_run import tuned
from fewstep.experiments.evaluated import check_split, number, points, summary
from fewstep.experiments.recipe_files import evaluation_plan
from fewstep.experiments.runs import (
    READY,
    as_many_as_there_are,
    computing_as,
    load_learner,
    open_run,
    recipe_of,
    stored_data,
    tell_of_unfinished,
)
from fewstep.experiments.sections import MetaAlgorithm
from fewstep.learners.inspection import feature_learning, sensitivity
from fewstep.learners.supervised import SupervisedLearner
from fewstep.training.evaluation import Evaluation, mean_and_ci95, measured, share_and_ci95
from fewstep.training.records import MORE_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from fewstep.experiments.build import AlgorithmFactory, BuiltLearner
    from fewstep.experiments.config import Recipe
    from fewstep.experiments.data import Data, OwnTasks
    from fewstep.experiments.sections import Evaluate
    from fewstep.learners.supervised import Loss
    from fewstep.names import Checkpoint, Split
    from fewstep.training.records import RunFolder


_MOST_TASKS = 200
"""By default: each is adapted to once for every layer, and more."""


def inspect(
    run: str | Path | RunFolder,
    *,
    steps: int | None = None,
    tasks: int | None = None,
    split: Split = "test",
    head: str | None = None,
    checkpoint: Checkpoint = "best",
    data: str | Path | None = None,
    model: nn.Module | None = None,
    task_distribution: OwnTasks | None = None,
    loss: Loss | None = None,
    algorithm: AlgorithmFactory | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Look inside the adaptation of a run on unseen tasks, and store the result in it.

    Per layer: how far it moves (`core.layers.movement`) and how sensitive the loss of new tasks is to it
    (`learners.inspection.sensitivity`), beside the same network untrained. Then how much of the gain the head alone
    gives (`learners.inspection.feature_learning`).

    Args:
        run: A run folder, or the name of a ready initialisation, where nothing is stored.
        steps: S, inner steps, at least 1; by default the recipe's for evaluation.
        tasks: How many tasks; by default the recipe's number for evaluation, at most 200.
        split: "test", or "val" while you are still choosing.
        head: Shell pattern of the head's parameters; by default those of the model's last linear layer.
        checkpoint: "best" by validation, or "final".
        data: As for `evaluate`; so are model, task_distribution, loss, algorithm, device and progress.
        model: The module, whose own parameters then count as untrained.
        task_distribution: The tasks.
        loss: The loss.
        device: Where to compute.
        progress: Called with the number of tasks done.

    Returns:
        What `evaluate` returns, and: "head"; "layers", each with its curves of movement and gain, None where it is not
        adapted; "parts", the metric by what adapts; "head_share", after each step; "untrained", the last two for the
        same network with the random parameters of the recipe's seed, wherever its training began.

    Raises:
        FewstepError: The folder is no run of an adapting learner, the head is none, or data are missing.
    """
    folder = open_run(run)
    recipe = recipe_of(folder)
    check_split(split)
    _check_learns_one_initialisation(folder, recipe)
    count = min(recipe.evaluate.tasks, _MOST_TASKS) if tasks is None else tasks
    plan = evaluation_plan(recipe, {"steps": steps, "tasks": count})
    if plan.steps < 1:
        raise RecipeError(f"An inspection needs at least 1 inner step: got steps = {plan.steps}. Raise --steps.")
    tell_of_unfinished(folder, checkpoint)
    loaded = find_data(recipe, stored_data(folder), data, task_distribution, device)

    own = FromPython(model, loss, algorithm)

    def learner_of(candidate: Recipe) -> BuiltLearner:
        return load_learner(folder, candidate, checkpoint, own, device=device)

    with computing_as(recipe):
        recipe = tuned(recipe, loaded, plan, learner_of)
        learner = learner_of(recipe)
        untrained = build_learner(recipe, own, device=device)
        assert isinstance(learner, SupervisedLearner)
        assert isinstance(untrained, SupervisedLearner)
        untrained.load_meta(MetaParams(untrained.meta.model, learner.meta.rule))  # the same rates for both
        names = _head(learner, build_model(recipe, model), head)
        values, fingerprint = _measured(learner, untrained, names, loaded, plan, split, progress)
    result = summary(recipe, plan, Evaluation(values["trained"]["parts"]["everything"], fingerprint), split)
    result |= {
        "inner_lr": None if learner.meta.rule else recipe.algorithm.inner_lr,
        "checkpoint": checkpoint,
        "iteration": learner.iteration,
        "head": {"pattern": head, "parameters": names},
        "layers": _layers(learner, values),
        **_parts(values["trained"]["parts"], metric_of(recipe)),
        "untrained": _parts(values["untrained"]["parts"], metric_of(recipe)),
    }
    if folder.path.parent != READY:  # what comes with fewstep stays as it came
        folder.write_inspection(_name(result), result)
    return result


def _check_learns_one_initialisation(run: RunFolder, recipe: Recipe) -> None:
    if not isinstance(recipe.algorithm, MetaAlgorithm) or recipe.loss.kind == "reinforce":
        raise RunError(
            "Only a run that learns one initialisation by gradient steps on examples can be inspected: "
            f"{run.path} was trained with algorithm.kind = {recipe.algorithm.kind!r} and loss.kind = "
            f"{recipe.loss.kind!r}. Inspect a run of maml, or of a relative of it, on examples."
        )


def _head(learner: SupervisedLearner, module: nn.Module, pattern: str | None) -> list[str]:
    """Names of the head's learnable parameters."""
    params = learner.meta.model
    if pattern is not None:
        matching = [name for name in params if fnmatchcase(name, pattern)]
        if not matching:
            raise RecipeError(
                f"--head must match a parameter of the model: {pattern!r} matches none of {', '.join(params)}. "
                "Use a shell pattern such as 'head.*'."
            )
        return matching
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    heads = [[name for name in params if name.rpartition(".")[0] == layer] for layer in linear]
    found = next((names for names in reversed(heads) if names), None)
    if found is None:
        raise RecipeError(
            f"The head is by default the last linear layer: this model has none among {', '.join(params)}. "
            "Name its parameters with --head PATTERN."
        )
    return found


def _measured(
    learner: SupervisedLearner,
    untrained: SupervisedLearner,
    head: list[str],
    data: Data,
    plan: Evaluate,
    split: Split,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, Any], str]:
    """Movement and both views, `[tasks, steps + 1]` each, and the fingerprint of the tasks."""
    return measured(
        lambda drawn: {
            "movement": learner.movement(drawn, plan.steps),
            "trained": _views(learner, drawn, plan, head),
            "untrained": _views(untrained, drawn, plan, head),
        },
        data.distribution(split, plan.shots, plan.queries),
        tasks=as_many_as_there_are(plan.tasks, data, split),
        seed=plan.seed,
        split=split,
        at_once=data.at_once,
        progress=progress,
    )


def _views(learner: SupervisedLearner, drawn: Any, plan: Evaluate, head: list[str]) -> dict[str, Any]:
    return {
        "gain": sensitivity(learner, drawn, plan.steps, plan.normalization),
        "parts": feature_learning(learner, drawn, plan.steps, head, plan.normalization),
    }


def _layers(learner: SupervisedLearner, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured of each layer, in the order of the model."""
    params = learner.meta.model
    adapted = selected(params, learner.algorithm.rule)
    gains = {"gain": values["trained"]["gain"], "untrained_gain": values["untrained"]["gain"]}
    return [
        {
            "layer": layer,
            "parameters": sum(params[name].numel() for name in names),
            "adapted": sum(adapted[name].numel() for name in names if name in adapted),
            "relative_movement": points(values["movement"][layer]["relative"]),
            "rms_movement": points(values["movement"][layer]["rms"]),
            **{key: points(by[layer]) if layer in by else None for key, by in gains.items()},
        }
        for layer, names in by_layer(params).items()
    ]


def _parts(parts: Mapping[str, Mapping[str, Tensor]], metric: str) -> dict[str, Any]:
    """The metric where each part adapts, and after each step the head's share of what everything has gained."""
    better = 1 if metric in MORE_IS_BETTER else -1
    gains = {part: better * (curves[metric] - curves[metric][:, :1]) for part, curves in parts.items()}
    shares: list[dict[str, Any]] = []
    for step, (gain, ci95) in enumerate(zip(*mean_and_ci95(gains["everything"]), strict=True)):
        some = gain > ci95  # of nothing there is no share
        share = share_and_ci95(gains["head"][:, step], gains["everything"][:, step]) if some else (math.nan, math.nan)
        shares.append({"step": step, "mean": number(share[0]), "ci95": number(share[1])})
    return {"parts": {part: points(curves[metric]) for part, curves in parts.items()}, "head_share": shares}


def _name(result: Mapping[str, Any]) -> str:
    """A file name that differs wherever two inspections of a run do."""
    sizes = [f"{len(result['steps']) - 1}steps", f"{result['tasks']}tasks"]
    pattern = result["head"]["pattern"]
    chosen = ["head" + re.sub(r"[^\w.]+", "_", pattern)] if pattern else []
    return "-".join([result["split"], *sizes, result["checkpoint"], *chosen])
