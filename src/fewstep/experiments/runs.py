"""What one does with a recipe: train it, evaluate the run, load what it learned."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewstep.core.rng import generator
from fewstep.errors import FewstepError, RunError
from fewstep.experiments.build import build_learner, load_data, metric_of
from fewstep.experiments.config import (
    Evaluate,
    Recipe,
    differing_keys,
    load_recipe,
    recipe_values,
)
from fewstep.tasks.table import Standardization
from fewstep.training import loop
from fewstep.training.checkpoint import load_meta
from fewstep.training.evaluation import Evaluation, mean_and_ci95
from fewstep.training.evaluation import evaluate as evaluate_learner
from fewstep.training.records import RunFolder, contents, locked, read_json, write_json

READY = Path(__file__).parent.parent / "ready"
"""Runs that come with fewstep: config, final meta-parameters and evaluations."""

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from torch import nn

    from fewstep.experiments.build import BuiltLearner, Data
    from fewstep.experiments.config import Split
    from fewstep.learners.supervised import Loss
    from fewstep.tasks.task import TaskDistribution


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    out: str | Path,
    settings: Iterable[str] = (),
    data: str | Path | None = None,
    model: nn.Module | None = None,
    tasks: TaskDistribution | Mapping[str, TaskDistribution] | None = None,
    loss: Loss | None = None,
    device: str = "cpu",
    resume: bool = False,
    watchers: Iterable[loop.Watcher] = (),
) -> RunFolder:
    """Train a recipe into a run folder.

    Args:
        recipe: A bundled name, a TOML file, the values of a recipe, or one loaded.
        out: The run folder; new or empty, unless `resume`.
        settings: `key=value` strings over the recipe, as for `--set`.
        data: Folder that holds the data sets, for recipes that need one.
        model: Your own module, where `model.kind = "custom"`.
        tasks: Your own distribution of tasks, or one for each split, where `tasks.kind = "custom"`.
        loss: Your own loss of outputs and targets, where `loss.kind = "custom"`.
        device: Where to compute.
        resume: Go on with the run in `out`; a finished one is left as it is.
        watchers: See every iteration.

    Returns:
        The run.

    Raises:
        FewstepError: One of its kinds, each with what to do about it.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    path = Path(out)
    existing = _existing(path, loaded, resume)
    if existing is not None and existing.is_finished and not differing_keys(loaded, recipe_of(existing)):
        return existing
    stored = _stored_data(existing) if existing else None
    loaded_data = load_data(loaded, Path(data) if data else None, tasks, stored)
    learner = build_learner(loaded, module=model, loss=loss, device=_device(device))
    train_tasks = loaded_data.distribution("train", *_shots_and_queries(loaded))
    validate = _validator(loaded, loaded_data, learner)
    with locked(path):
        existing = _existing(path, loaded, resume)
        run = existing or _create(path, loaded, loaded_data, device)
        if existing is not None and differing_keys(loaded, recipe_of(existing)):
            _extend(existing, loaded)
        plan = loop.Plan(
            iterations=loaded.meta.iterations,
            batch_size=loaded.meta.batch_size,
            seed=loaded.seed,
            validate_every=loaded.validation.every,
            patience=loaded.validation.patience,
        )
        with _threads(loaded):
            loop.train(learner, train_tasks, run, plan, validate=validate, watchers=tuple(watchers))
    return run


def load(
    run: str | Path | RunFolder,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    checkpoint: str = "best",
    device: str = "cpu",
) -> BuiltLearner:
    """A learner with the meta-parameters of a run: adapt it, evaluate it, or look at `learner.meta`.

    Args:
        run: A run folder, or the name of a ready initialisation (see `ready`).
        model: The module that the run was trained with, if it was passed from Python.
        loss: The loss, likewise.
        checkpoint: "best" by validation, or "final".
        device: Where to compute.

    Returns:
        The learner; `learner.adapt(support, steps)` gives a model adapted to one task.

    Raises:
        FewstepError: The folder is no finished run, or the model is not the one it was trained with.
    """
    folder = open_run(run)
    recipe = recipe_of(folder)
    return _load(folder, recipe, checkpoint, model=model, loss=loss, device=device)


def evaluate(
    run: str | Path | RunFolder,
    *,
    shots: int | None = None,
    queries: int | None = None,
    steps: int | None = None,
    tasks: int | None = None,
    split: Split = "test",
    normalization: str | None = None,
    checkpoint: str = "best",
    data: str | Path | None = None,
    model: nn.Module | None = None,
    task_distribution: TaskDistribution | Mapping[str, TaskDistribution] | None = None,
    loss: Loss | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a run on unseen tasks, and store the result in it.

    Args:
        run: A run folder, or the name of a ready initialisation, where nothing is stored.
        shots: K; like the rest, by default the recipe's `evaluate.shots`, else what it trained with.
        queries: Query examples (per class).
        steps: S, inner steps; any number.
        tasks: How many tasks.
        split: "test", or "val" while you are still choosing.
        normalization: Policy for batch normalisation.
        checkpoint: "best" by validation, or "final".
        data: Folder that holds the data sets; by default the one trained with.
        model: As for `load`.
        task_distribution: As `tasks` of `train`.
        loss: As for `load`.
        device: Where to compute.
        progress: Called with the number of tasks done.

    Returns:
        Mean and 95 % confidence interval after 0 to S steps, with all that the numbers depend on.

    Raises:
        FewstepError: The folder is no finished run, or data are missing.
    """
    folder = open_run(run)
    recipe = recipe_of(folder)
    plan = _evaluation_plan(recipe, shots=shots, queries=queries, steps=steps, tasks=tasks, normalization=normalization)
    stored = _stored_data(folder)
    where = data or os.environ.get("FEWSTEP_DATA") or (stored or {}).get("folder")
    loaded = load_data(recipe, Path(where) if where else None, task_distribution, stored)

    def learner_with(inner_lr: float) -> BuiltLearner:
        return _load(folder, recipe, checkpoint, model=model, loss=loss, device=device, inner_lr=inner_lr)

    with _threads(recipe):
        inner_lr = _tuned_inner_lr(recipe, loaded, plan, learner_with)
        learner = learner_with(inner_lr)
        evaluation = _curves(learner, loaded, plan, split, progress)
        result = _described(recipe, plan, evaluation, split) | {
            "inner_lr": inner_lr,
            "checkpoint": checkpoint,
            "iteration": learner.iteration,
        }
        if folder.path.parent != READY:  # what comes with fewstep stays as it came
            folder.write_evaluation(_name(result, plan), result)
            _illustrate(folder, loaded, learner, plan)
    return result


def ready() -> list[str]:
    """Names of the trained initialisations that come with fewstep: `load` and `evaluate` take them for a run."""
    return sorted(path.parent.name for path in READY.glob("*/config.json"))


def open_run(run: str | Path | RunFolder) -> RunFolder:
    """A run, by its folder or by the name of a ready initialisation.

    Raises:
        RunError: There is neither.
    """
    if isinstance(run, RunFolder):
        return run
    return RunFolder(READY / str(run) if not Path(run).exists() and str(run) in ready() else run)


def standardization(run: str | Path | RunFolder) -> Standardization:
    """Between the user's units and the model's, for a run that was trained on a table.

    Raises:
        RunError: It was not.
    """
    folder = open_run(run)
    stored = _stored_data(folder) or {}
    if "standardization" not in stored:
        raise RunError(
            f"Only a run trained on a table has a standardisation: {folder.path} was trained on "
            f"{folder.config['tasks']['kind']} tasks. Use its learner's inputs and outputs as they are."
        )
    return Standardization.from_dict(stored["standardization"])


def recipe_of(run: RunFolder) -> Recipe:
    """The resolved recipe of a run."""
    return load_recipe(run.config)


def _evaluation_plan(recipe: Recipe, **given: Any) -> Evaluate:
    """The recipe's `evaluate`, with what was asked for over it and nothing left open."""
    shots, queries = _shots_and_queries(recipe)
    defaults = {"shots": shots, "queries": queries, "normalization": recipe.normalization}
    chosen = recipe.evaluate.model_dump() | {k: v for k, v in given.items() if v is not None}
    return Evaluate.model_validate(chosen | {k: v for k, v in defaults.items() if chosen[k] is None})


def _curves(
    learner: BuiltLearner,
    data: Data,
    plan: Evaluate,
    split: Split,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    return evaluate_learner(
        learner,
        data.distribution(split, plan.shots or 1, plan.queries),
        tasks=plan.tasks,
        steps=plan.steps,
        seed=plan.seed,
        split=split,
        at_once=data.at_once,
        progress=progress,
        normalization=plan.normalization,
    )


def _tuned_inner_lr(recipe: Recipe, data: Data, plan: Evaluate, learner_with: Callable[[float], BuiltLearner]) -> float:
    """The candidate with the least loss on meta-validation tasks, or the recipe's rate where there is none."""
    scores = {
        lr: _tuning_score(_curves(learner_with(lr), data, plan, "val").curves["loss"]) for lr in plan.tune_inner_lr
    }
    return min(scores, key=lambda lr: scores[lr]) if scores else recipe.algorithm.inner_lr


def _described(recipe: Recipe, plan: Evaluate, evaluation: Evaluation, split: Split) -> dict[str, Any]:
    """Means and intervals, with all that they depend on."""
    metric = metric_of(recipe)
    means, cis = mean_and_ci95(evaluation.curves[metric])
    return {
        "recipe": recipe.name,
        "algorithm": recipe.algorithm.kind,
        "regularizer": getattr(recipe.algorithm, "regularizer", None),
        "metric": "mse" if recipe.loss.kind == "mse" else metric,
        "split": split,
        "tasks": plan.tasks,
        "ways": getattr(recipe.tasks, "ways", None),
        "shots": plan.shots,
        "queries": plan.queries,
        "normalization": plan.normalization,
        "seed": recipe.seed,
        "steps": [
            {"step": step, "mean": mean, "ci95": ci if math.isfinite(ci) else None}
            for step, (mean, ci) in enumerate(zip(means, cis, strict=True))
        ],
        "evaluation_seed": plan.seed,
        "fingerprint": evaluation.fingerprint,
    }


def _name(result: Mapping[str, Any], plan: Evaluate) -> str:
    """A file name that differs wherever two evaluations of a run do."""
    shots, queries = f"{plan.shots}shots", f"{plan.queries or 'all'}queries"
    sizes = [f"{plan.steps}steps", f"{plan.tasks}tasks"]
    return "-".join([result["split"], shots, queries, *sizes, str(plan.normalization), result["checkpoint"]])


def _tuning_score(losses: torch.Tensor) -> float:
    """Mean loss over all steps but the zeroth, which no rate changes; divergence loses."""
    score = losses[:, 1:].mean().item()
    return score if math.isfinite(score) else math.inf


def _shots_and_queries(recipe: Recipe) -> tuple[int, int | None]:
    return getattr(recipe.tasks, "shots", 1), getattr(recipe.tasks, "queries", None)


def _validator(recipe: Recipe, data: Data, learner: BuiltLearner) -> Callable[[], dict[str, float]]:
    plan = recipe.validation
    shots, queries = _shots_and_queries(recipe)
    steps = recipe.algorithm.steps if plan.steps is None else plan.steps
    tasks = data.distribution("val", shots, plan.queries or queries)

    def validate() -> dict[str, float]:
        evaluation = evaluate_learner(
            learner,
            tasks,
            tasks=plan.tasks,
            steps=steps,
            seed=recipe.evaluate.seed,
            split="val",
            at_once=data.at_once,
        )
        last = {name: values[:, -1].mean().item() for name, values in evaluation.curves.items()}
        metric = metric_of(recipe)
        return {"score": -last[metric] if metric == "accuracy" else last[metric], "steps": steps, **last}

    return validate


def _existing(path: Path, recipe: Recipe, resume: bool) -> RunFolder | None:
    present = contents(path)
    if "config.json" not in present:
        if set(present) - {"versions.json"}:
            raise RunError(
                f"--out must be a new or empty folder, or a run with --resume: {path} holds {', '.join(present[:3])}"
                f"{' ...' if len(present) > 3 else ''}. Choose another."
            )
        return None
    run = RunFolder(path)
    if not resume:
        raise RunError(
            f"{path} already holds a run of {run.config.get('name')}: add --resume to go on with it, or choose "
            "another --out."
        )
    differing = [key for key in differing_keys(recipe, recipe_of(run)) if key != "meta.iterations"]
    if differing:
        raise RunError(
            f"A run goes on as it began, apart from meta.iterations: {', '.join(differing)} differ from the recipe in "
            f"{path / 'config.json'}. Leave them as they were, or choose another --out."
        )
    if recipe.meta.iterations != recipe_of(run).meta.iterations and recipe.meta.schedule != "constant":
        raise RunError(
            f"meta.iterations cannot change where meta.schedule = {recipe.meta.schedule!r} depends on it: the run in "
            f"{path} has {recipe_of(run).meta.iterations}. Leave it, or choose another --out."
        )
    return run


def _create(path: Path, recipe: Recipe, data: Data, device: str) -> RunFolder:
    if data.record:
        write_json(path / "data.json", data.record)
    return RunFolder.create(path, recipe_values(recipe), _versions(device))


def _extend(run: RunFolder, recipe: Recipe) -> None:
    (run.path / "params.safetensors").unlink(missing_ok=True)
    RunFolder.create(run.path, recipe_values(recipe), read_json(run.path / "versions.json"))


def _stored_data(run: RunFolder) -> dict[str, Any] | None:
    path = run.path / "data.json"
    return read_json(path) if path.is_file() else None


def _load(
    run: RunFolder,
    recipe: Recipe,
    checkpoint: str,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    device: str = "cpu",
    inner_lr: float | None = None,
) -> BuiltLearner:
    if checkpoint not in ("best", "final"):
        raise FewstepError(f"The checkpoint must be 'best' or 'final': got {checkpoint!r}.")
    path = run.path / ("best.safetensors" if checkpoint == "best" else "params.safetensors")
    if checkpoint == "best" and not path.is_file():
        path = run.path / "params.safetensors"  # nothing was ever validated
    if not path.is_file():
        raise RunError(
            f"{run.path} holds no {checkpoint} meta-parameters yet: training has not come so far. "
            "Let it go on: `fewstep train ... --resume`."
        )
    learner = build_learner(recipe, module=model, loss=loss, device=_device(device), inner_lr=inner_lr)
    meta, about = load_meta(path)
    try:
        learner.load_meta(meta)
    except ValueError as error:
        raise RunError(f"{path} does not fit the model: {error}") from None
    learner.iteration = int(about.get("iteration", 0))
    return learner


def _illustrate(run: RunFolder, data: Data, learner: BuiltLearner, plan: Evaluate, examples: int = 2) -> None:
    """Store one-dimensional predictions before and along adaptation, to draw later."""
    distribution = data.distribution("test", plan.shots or 1, plan.queries)
    curve = getattr(distribution, "curve", None)
    if curve is None or (data.standardization is not None and data.standardization.columns != (1, 1)):
        return
    inputs, targets = _restorers(data)
    stored = []
    for i in range(examples):
        drawn = curve(generator(plan.seed, "illustrate", i))
        support = drawn.task.support
        stored.append(
            {
                "shots": plan.shots,
                "grid": inputs(drawn.inputs),
                "truth": targets(drawn.targets),
                "support": {"inputs": inputs(support.inputs), "targets": targets(support.targets)},
                "predictions": {
                    str(steps): targets(learner.adapt(support, steps)(drawn.inputs).cpu())
                    for steps in sorted({0, 1, plan.steps})
                },
            }
        )
    write_json(run.path / "illustration.json", stored)


def _restorers(
    data: Data,
) -> tuple[Callable[[torch.Tensor], list[float]], Callable[[torch.Tensor], list[float]]]:
    scale = data.standardization
    if scale is None:
        return (lambda x: x[:, 0].tolist()), (lambda y: y[:, 0].tolist())
    return (
        lambda x: (x.double()[:, 0] * scale.input_std[0] + scale.input_mean[0]).tolist(),
        lambda y: scale.restore(y)[:, 0].tolist(),
    )


@contextmanager
def _threads(recipe: Recipe) -> Generator[None]:
    """Compute with the recipe's number of threads, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.execution.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise FewstepError(
            f"--device must be one that torch can use here, such as cpu or cuda: got {name!r} "
            f"({str(error).partition(chr(10))[0]})."
        ) from None
    return name


def _versions(device: str) -> dict[str, Any]:
    return {
        "fewstep": metadata.version("fewstep"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "command": " ".join(json.dumps(word) if " " in word else word for word in sys.argv),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
