"""`fewstep evaluate`: a run on tasks that it has not seen."""

from __future__ import annotations

import hashlib
import logging
import math
from typing import TYPE_CHECKING, Any

from fewstep.errors import RecipeError
from fewstep.experiments.build import NOTHING, FromPython, metric_of
from fewstep.experiments.data import find_data
from fewstep.experiments.evaluated import check_metrics, check_split, errors, file_name, per_task, points, summary
from fewstep.experiments.illustration import illustrate, is_stored
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
from fewstep.experiments.transfer import transferred
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.tasks.table import GroupedRows
from fewstep.training.evaluation import Evaluation, measured, streams, tell_of_non_finite
from fewstep.training.records import MORE_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fewstep.experiments.build import AlgorithmFactory, BuiltLearner
    from fewstep.experiments.config import Recipe
    from fewstep.experiments.data import Data, OwnTasks
    from fewstep.experiments.sections import Evaluate, Method
    from fewstep.learners.supervised import Loss
    from fewstep.names import Checkpoint, Normalization, Split
    from fewstep.training.records import RunFolder

log = logging.getLogger(__name__)


def evaluate(
    run: str | Path | RunFolder,
    *,
    tasks_from: str | Path | Mapping[str, Any] | None = None,
    shots: int | None = None,
    queries: int | None = None,
    steps: int | None = None,
    tasks: int | None = None,
    repeats: int | None = None,
    split: Split = "test",
    normalization: Normalization | None = None,
    method: Method | None = None,
    trajectories: int | None = None,
    checkpoint: Checkpoint = "best",
    data: str | Path | None = None,
    model: nn.Module | None = None,
    task_distribution: OwnTasks | None = None,
    loss: Loss | None = None,
    algorithm: AlgorithmFactory | None = None,
    metrics: Mapping[str, Loss] | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a run on unseen tasks, and store the result in it.

    Args:
        run: A run folder, or the name of a ready initialisation, where nothing is stored.
        tasks_from: Another recipe, on whose tasks and as which the run is evaluated; nothing is tuned there. Its tasks
            have the shape of the run's.
        shots: K; like the rest, by default the recipe's `evaluate.shots`, else what it trained with.
        queries: Query examples (per class).
        steps: S, inner steps; any number.
        tasks: How many tasks.
        repeats: Of a table: how often each task's rows are divided anew into support and query.
        split: "test", or "val" while you are still choosing.
        normalization: Policy for batch normalisation.
        method: How a pretrained classifier solves tasks: "finetune" or "nearest_neighbour".
        trajectories: Of an environment: episodes for each step and each result.
        checkpoint: "best" by validation, or "final".
        data: Folder that holds the data sets; else that of FEWSTEP_DATA, else the one trained with. Or where the run's
            own folder or table lies now.
        model: As for `load`.
        task_distribution: As for `train`.
        loss: As for `load`.
        algorithm: As for `load`.
        metrics: What else to measure on the query sets, by name: functions of outputs and targets, as a loss is.
        device: Where to compute.
        progress: Called with the number of tasks done.

    Returns:
        Mean and 95 % confidence interval after 0 to S steps, with all that the numbers depend on.

    Raises:
        FewstepError: The folder is no run, or data are missing.
    """
    asked = {"shots": shots, "queries": queries, "normalization": normalization}
    asked |= {"method": method, "trajectories": trajectories}
    (result,) = evaluate_each(
        run,
        [asked],
        FromPython(model, loss, algorithm, metrics),
        tasks_from=tasks_from,
        steps=steps,
        tasks=tasks,
        repeats=repeats,
        split=split,
        checkpoint=checkpoint,
        data=data,
        task_distribution=task_distribution,
        device=device,
        progress=progress,
    )
    return result


def evaluate_each(
    run: str | Path | RunFolder,
    asked: Iterable[Mapping[str, Any]],
    own: FromPython = NOTHING,
    *,
    tasks_from: str | Path | Mapping[str, Any] | None = None,
    steps: int | None = None,
    tasks: int | None = None,
    repeats: int | None = None,
    split: Split = "test",
    checkpoint: Checkpoint = "best",
    data: str | Path | None = None,
    task_distribution: OwnTasks | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    variants: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate a run in several ways: its data are loaded once, and what is tuned is tuned once for its shots.

    Each way is `asked` for by its shots, queries, normalization, method and trajectories, where not the recipe's; with
    `variants`, those of its `evaluate.variants` follow. `own` is what comes from Python; the rest is as for `evaluate`.

    Returns:
        For each way what `evaluate` returns.
    """
    folder, metrics = open_run(run), own.metrics or {}
    recipe, others = recipe_of(folder), None
    if tasks_from is not None:
        recipe, others = transferred(recipe, tasks_from)
    check_split(split)
    counts = {"steps": steps, "tasks": tasks, "repeats": repeats}
    further = [variant.model_dump() for variant in recipe.evaluate.variants] if variants else []
    plans = [(each, evaluation_plan(recipe, {**each, **counts})) for each in [*asked, *further]]
    recipes_own = evaluation_plan(recipe, {}), "test", "best"
    check_metrics(recipe, metrics)
    tell_of_unfinished(folder, checkpoint)
    stored = stored_data(folder) if others is None else None
    loaded = find_data(recipe, stored, data, task_distribution, device)
    for _, plan in plans:
        _check_repeats(plan, loaded, split)  # before anything is tuned
    if tasks is not None and loaded.available is not None and loaded.available(split) < tasks:
        log.warning("There are %d tasks to evaluate on, each once, of %d asked for", loaded.available(split), tasks)

    def learner_of(candidate: Recipe) -> BuiltLearner:
        return load_learner(folder, candidate, checkpoint, own, environment=loaded.environment, device=device)

    best: dict[tuple[int | None, str | None], Recipe] = {}
    results: list[dict[str, Any]] = []
    with computing_as(recipe):
        for each, plan in plans:
            key = plan.shots, plan.method
            if key not in best:
                of_shots = evaluation_plan(recipe, {"shots": each.get("shots"), "method": each.get("method"), **counts})
                best[key] = tuned(recipe, loaded, of_shots, learner_of)
            chosen = best[key]
            learner = learner_of(chosen)
            evaluation = _curves(learner, loaded, plan, split, progress)
            tell_of_non_finite(evaluation, [metric_of(chosen), *metrics], split)
            result = _result(chosen, loaded, learner, plan, evaluation, split, metrics)
            result |= {"checkpoint": checkpoint} | ({} if others is None else {"tasks_from": others})
            if folder.path.parent != READY:  # what comes with fewstep stays as it came
                result["per_task"] = f"{file_name(result)}.csv"
                folder.write_evaluation(file_name(result), result, per_task(chosen, loaded, evaluation, metrics))
                # Other ways leave the example of the recipe's own, if there is one of what is best by now.
                best_now = learner.iteration if checkpoint == "best" else None
                if others is None and ((plan, split, checkpoint) == recipes_own or not is_stored(folder, best_now)):
                    illustrate(folder, loaded.distribution(split, plan.shots, plan.queries), loaded, learner, plan)
            results.append(result)
    return results


def _result(
    recipe: Recipe,
    data: Data,
    learner: BuiltLearner,
    plan: Evaluate,
    evaluation: Evaluation,
    split: Split,
    metrics: Iterable[str],
) -> dict[str, Any]:
    """What is stored of an evaluation: its numbers, and all that they depend on."""
    own = {name: points(evaluation.curves[name]) for name in metrics}
    return summary(recipe, plan, evaluation, split) | {
        **errors(recipe, data, evaluation),
        **({"metrics": own} if own else {}),
        **_classes(data, split),
        "inner_lr": None if _has_no_rate(learner, plan) else recipe.algorithm.inner_lr,
        "iteration": learner.iteration,
    }


def _classes(data: Data, split: Split) -> dict[str, int]:
    """Of how many classes the tasks of a split are made, where that is known."""
    counts = data.record.get("counts")
    return {"classes": counts[split]["classes"]} if counts else {}


def _has_no_rate(learner: BuiltLearner, plan: Evaluate) -> bool:
    """Whether there is no one inner rate to tell: each parameter has its own, or there are no steps."""
    return bool(learner.meta.rule) or plan.method == "nearest_neighbour"


def tuned(recipe: Recipe, data: Data, plan: Evaluate, learner_of: Callable[[Recipe], BuiltLearner]) -> Recipe:
    """The recipe as it does best on meta-validation tasks, among what the plan gives to choose from."""
    candidates = _candidates(recipe, plan)
    if len(candidates) == 1:
        return candidates[0]
    # Accuracies of few examples have ties, which the loss decides.
    metrics = dict.fromkeys([metric_of(recipe), "return" if recipe.loss.kind == "reinforce" else "loss"])
    plan = plan.model_copy(update={"tasks": plan.tune_tasks or plan.tasks, "repeats": 1})
    curves = [_curves(learner_of(candidate), data, plan, "val").curves for candidate in candidates]
    scores = [[_tuning_score(each[metric], metric) for metric in metrics] for each in curves]
    best = scores.index(min(scores))
    told = math.isfinite(scores[best][0]) and scores.count(scores[best]) == 1
    if told and len(plan.tune_inner_lr) > 2 and plan.method != "nearest_neighbour":
        rates = plan.tune_inner_lr
        if rates[best] in (min(rates), max(rates)):
            log.warning(
                "The best inner rate, %g, is at the edge of evaluate.tune_inner_lr: try some beyond", rates[best]
            )
    return candidates[best]


def _candidates(recipe: Recipe, plan: Evaluate) -> list[Recipe]:
    """The recipe with each inner rate, or each distance, to choose from; at least itself, with the plan's method."""
    fixed = {"method": plan.method} if plan.method else {}
    choices: list[dict[str, Any]] = (
        [{"distance": distance} for distance in plan.tune_distance]
        if plan.method == "nearest_neighbour"
        else [{"inner_lr": lr} for lr in plan.tune_inner_lr]
    )
    return [
        recipe.model_copy(update={"algorithm": recipe.algorithm.model_copy(update=fixed | choice)})
        for choice in choices or [{}]
    ]


def _tuning_score(values: Tensor, metric: str) -> float:
    """Mean over all steps but the zeroth, which no rate changes, lower being better; divergence loses."""
    score = values[:, min(1, values.shape[1] - 1) :].mean().item()
    return (-score if metric in MORE_IS_BETTER else score) if math.isfinite(score) else math.inf


def _check_repeats(plan: Evaluate, data: Data, split: Split) -> None:
    count = as_many_as_there_are(plan.tasks, data, split)
    if plan.repeats > 1 and data.available is not None and count < data.available(split):
        raise RecipeError(
            f"Repeats are of the same tasks, all that the split has: it has {data.available(split)}, and "
            f"evaluate.tasks (--tasks) asks for {count}. Raise that, or leave out the repeats."
        )


def _curves(
    learner: BuiltLearner,
    data: Data,
    plan: Evaluate,
    split: Split,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    def curves_of(drawn: Any) -> dict[str, Tensor]:
        if isinstance(learner, ReinforcementLearner):
            return learner.evaluate(drawn, plan.steps, trajectories=plan.trajectories)
        return learner.evaluate(drawn, plan.steps, normalization=plan.normalization)

    _check_repeats(plan, data, split)
    distribution = data.distribution(split, plan.shots, plan.queries)
    count = as_many_as_there_are(plan.tasks, data, split)

    def once(repeat: int) -> Evaluation:
        stream: dict[str, Any] = {
            "tasks": count,
            "seed": plan.seed,
            "split": f"{split} {repeat}" if repeat else split,
            "at_once": data.at_once,
        }
        evaluation = Evaluation(*measured(curves_of, distribution, **stream, progress=progress))
        if not isinstance(distribution, GroupedRows):
            return evaluation
        return evaluation._replace(names=[name for each in streams(**stream) for name in distribution.names(*each)])

    return _mean([once(repeat) for repeat in range(plan.repeats)])


def _mean(evaluations: list[Evaluation]) -> Evaluation:
    """Of each task, over evaluations that all are of the same tasks, in any order."""
    first, *others = evaluations
    if not others:
        return first
    sums = dict(first.curves)
    for other in others:
        places = {name: place for place, name in enumerate(other.names or ())}
        order = [places[name] for name in first.names or ()]
        sums = {metric: values + other.curves[metric][order] for metric, values in sums.items()}
    fingerprint = hashlib.sha256(" ".join(each.fingerprint for each in evaluations).encode()).hexdigest()[:16]
    return Evaluation({metric: values / len(evaluations) for metric, values in sums.items()}, fingerprint, first.names)
