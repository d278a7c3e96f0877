"""`fewstep train`: begin a run, or go on with one."""

from __future__ import annotations

import logging
import platform
import re
import shlex
import sys
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewstep.core.rng import generator
from fewstep.core.trees import leaves
from fewstep.errors import RunError
from fewstep.experiments.build import FromPython, build_learner, metric_of
from fewstep.experiments.config import Recipe, validated_every
from fewstep.experiments.data import find_data
from fewstep.experiments.execution import checked_device, keep_compiled
from fewstep.experiments.recipe_files import as_text, differing_keys, load_recipe, recipe_values
from fewstep.experiments.resuming import asks_for_more, differing, existing_run, moved_to, with_recorded_choices
from fewstep.experiments.runs import (
    as_many_as_there_are,
    computing_as,
    meta_file,
    open_run,
    recipe_of,
    shots_and_queries,
    stored_data,
)
from fewstep.files import entries, read_json, write_json
from fewstep.learners.learner import begun_at
from fewstep.training import loop
from fewstep.training.checkpoint import load_meta, sha256
from fewstep.training.evaluation import Evaluation, drawn, measured, tell_of_non_finite
from fewstep.training.records import MORE_IS_BETTER, RunFolder, locked
from fewstep.training.tensorboard import TensorBoard
from fewstep.training.tensorboard import available as tensorboard_available

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from fewstep.experiments.build import AlgorithmFactory, BuiltLearner
    from fewstep.experiments.data import Data, OwnTasks
    from fewstep.learners.supervised import Loss
    from fewstep.tasks.task import TaskDistribution
    from fewstep.training.loop import Watcher


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    out: str | Path,
    settings: Iterable[str] | Mapping[str, Any] = (),
    data: str | Path | None = None,
    model: nn.Module | None = None,
    task_distribution: OwnTasks | None = None,
    loss: Loss | None = None,
    algorithm: AlgorithmFactory | None = None,
    device: str = "cpu",
    resume: bool = False,
    watchers: Iterable[Watcher] = (),
) -> RunFolder:
    """Train a recipe into a run folder.

    Args:
        recipe: A bundled name, a TOML file, the values of a recipe, or one loaded.
        out: The run folder; new or empty, unless `resume`.
        settings: `key=value` strings over the recipe, as for `--set`, or values by dotted key.
        data: Folder that holds the data sets, for recipes that need one; or where the recipe's own folder or table
            lies, whatever it says itself.
        model: Your own module, where `model.kind = "custom"`.
        task_distribution: Your own, or one for each split, or an environment, where `tasks.kind = "custom"`.
        loss: Your own loss of outputs and targets, where `loss.kind = "custom"`.
        algorithm: Your own, where `algorithm.kind = "custom"`: a function of the recipe's inner rule and number of
            inner steps, as `fewstep.maml` is.
        device: Where to compute.
        resume: Go on with the run in `out`; a finished one is left as it is.
        watchers: See every iteration.

    Returns:
        The run.

    Raises:
        FewstepError: One of its kinds, each with what to do about it.
    """
    path, settings = Path(out), as_text(settings)
    if isinstance(recipe, Recipe):  # complete: its iterations are meant
        asked = loaded = load_recipe(recipe_values(recipe), settings)
    else:
        asked = load_recipe(recipe, settings)
        loaded = load_recipe(recipe, with_recorded_choices(path, settings)) if resume else asked
    hint = asks_for_more(asked, loaded)
    existing = existing_run(path, loaded, resume)
    stored = stored_data(existing) if existing else None
    if existing is not None and data is None:
        data = moved_to(loaded, recipe_of(existing))
    if existing is not None and existing.is_finished and not differing(loaded, recipe_of(existing)):
        if "tasks.path" in differing_keys(loaded, recipe_of(existing)):
            find_data(loaded, stored, data, task_distribution, device)  # raises where these are other data
        if hint:
            log.warning(hint)
        return existing
    device = checked_device(device)
    start = None
    if loaded.meta.start is not None and "checkpoint.pt" not in entries(path):
        start = _open_start(loaded.meta.start)
    loaded_data = find_data(loaded, stored, data, task_distribution, device)
    if loaded.execution.compile:
        keep_compiled()
    own = FromPython(model, loss, algorithm)
    environment, ragged = loaded_data.environment, loaded_data.ragged
    learner = build_learner(loaded, own, environment=environment, device=device, ragged=ragged)
    _tell_beforehand(loaded, model)
    begun_from = _begin_at(learner, start) if start else {}
    train_tasks = loaded_data.distribution("train", *shots_and_queries(loaded))
    _check_tasks(loaded, loaded_data)
    validate = _validator(loaded, loaded_data, learner)
    with locked(path), computing_as(loaded), ExitStack() as closing:
        existing = existing_run(path, loaded, resume)
        run = existing or _create(path, loaded, loaded_data, _versions(device) | begun_from)
        plan = _plan(loaded)
        boards = [TensorBoard(path / "tensorboard", plan.log_every)] if tensorboard_available() else []
        for board in boards:
            closing.callback(board.close)
        loop.train(
            learner,
            train_tasks,
            run,
            plan,
            validate=validate,
            watchers=(*watchers, *boards),
            before_writing=lambda: _record_changes(run, loaded, loaded_data, device),
        )
    if hint:
        log.warning(hint)
    return RunFolder(path)


def _tell_beforehand(recipe: Recipe, model: nn.Module | None) -> None:
    """What is better known before hours go by."""
    if recipe.execution.compile:
        log.info("The meta-gradient is compiled, which takes a minute or so the first time on a machine")
    frozen = 0 if model is None else sum(not parameter.requires_grad for parameter in model.parameters())
    if frozen:
        log.warning("%d frozen parameters are not stored with the run: to load it, a module must have the same", frozen)
    if 0 < recipe.meta.iterations < validated_every(recipe):
        log.warning(
            "Nothing is validated in %d iterations (validation.every = %d): the last meta-parameters count as best",
            recipe.meta.iterations,
            validated_every(recipe),
        )


def _plan(recipe: Recipe) -> loop.Plan:
    every = validated_every(recipe)
    return loop.Plan(
        iterations=recipe.meta.iterations,
        batch_size=recipe.meta.batch_size,
        seed=recipe.seed,
        # Where an iteration takes seconds, each counts; else as many as are validated together, up to a hundred.
        log_every=1 if recipe.loss.kind == "reinforce" else min(100, every),
        validate_every=every,
        patience=recipe.validation.patience,
    )


def _open_start(start: str) -> RunFolder:
    try:
        return open_run(start)
    except RunError as error:
        raise RunError(re.sub(r"\ARUN\b", "meta.start", str(error))) from None


def _begin_at(learner: BuiltLearner, run: RunFolder) -> dict[str, Any]:
    """Take over the meta-parameters of another run; what to remember of where they are from."""
    path = meta_file(run)
    found, about = load_meta(path)
    meta, own = begun_at(learner.meta, found)
    if set(learner.meta.model) <= set(own):
        raise RunError(
            f"meta.start must be a run whose model has parameters of the same names and shapes: {path} shares none "
            f"with this recipe's, whose first are {', '.join(own[:3])}. Choose the same model.kind and its sizes, or "
            "another run."
        )
    learner.load_meta(meta)
    apart = f"; what it does not have begins anew: {', '.join(own)}" if own else ""
    log.log(logging.WARNING if own else logging.INFO, "Training begins at %s%s", path, apart)
    return {"start": {"file": str(path), "iteration": int(about["iteration"]), "sha256": sha256(path)}}


def _check_tasks(recipe: Recipe, data: Data) -> None:
    """Find out before training, not after it, that the tasks of some split cannot be drawn, or be tested on."""
    if recipe.tasks.kind == "custom":
        train = data.distribution("train", None, None)
        drawn(train, recipe.meta.batch_size, generator(recipe.seed, "check"))
        drawn(data.distribution("val", None, None), recipe.validation.tasks, generator(recipe.seed, "check"))
        _tell_of_chance(train, recipe.seed)
        return
    shots, queries = shots_and_queries(recipe)
    plan = recipe.evaluate
    for variant in (plan, *plan.variants):
        for split in ("val", "test"):
            data.distribution(split, variant.shots or plan.shots or shots, variant.queries or plan.queries or queries)


def _tell_of_chance(tasks: TaskDistribution, seed: int) -> None:
    """Warn where a stream does not determine the tasks that are drawn from it."""
    one, again = (leaves(drawn(tasks, 2, generator(seed, "check"))) for _ in range(2))
    same = [a.shape == b.shape and a.nan_to_num().equal(b.nan_to_num()) for a, b in zip(one, again, strict=False)]
    if not all(same) or len(one) != len(again):
        log.warning(
            "Tasks of %s differ when they are drawn again from an equal stream: so will evaluations, and a resumed run "
            "from one that was not interrupted. Draw from the generator that is given, and from nothing else",
            type(getattr(tasks, "environment", tasks)).__name__,
        )


def _validator(recipe: Recipe, data: Data, learner: BuiltLearner) -> Callable[[], dict[str, float]]:
    plan = recipe.validation
    shots, queries = shots_and_queries(recipe)
    steps = recipe.algorithm.steps if plan.steps is None else plan.steps
    tasks = data.distribution("val", plan.shots or shots, plan.queries or queries)

    def validate() -> dict[str, float]:
        curves, fingerprint = measured(
            lambda batch: learner.evaluate(batch, steps, last_only=True),
            tasks,
            tasks=as_many_as_there_are(plan.tasks, data, "val"),
            seed=recipe.evaluate.seed,
            split="val",
            at_once=data.at_once,
        )
        metric = metric_of(recipe)
        known = [name for name in ("loss", metric) if name in curves]
        tell_of_non_finite(Evaluation(curves, fingerprint), [metric], "val")
        last = {name: curves[name][:, -1].mean().item() for name in known}
        return {"score": -last[metric] if metric in MORE_IS_BETTER else last[metric], "steps": steps, **last}

    return validate


def _create(path: Path, recipe: Recipe, data: Data, versions: dict[str, Any]) -> RunFolder:
    (path / "data.json").unlink(missing_ok=True)  # of an attempt that came to nothing
    if data.record:
        write_json(path / "data.json", data.record)
    return RunFolder.create(path, recipe_values(recipe), versions)


def _record_changes(run: RunFolder, recipe: Recipe, data: Data, device: str) -> None:
    """Write down what is otherwise from here on: where the data lie, iterations, execution, the machine."""
    if data.record and data.record != stored_data(run):
        write_json(run.path / "data.json", data.record)
    versions = read_json(run.path / "versions.json")
    resumed: list[dict[str, Any]] = versions.get("resumed", [])
    known = {key: value for each in (versions, *resumed) for key, value in each.items()}
    new = {key: value for key, value in _versions(device).items() if key != "command" and known.get(key) != value}
    if not new and not differing_keys(recipe, recipe_of(run)):
        return
    if differing(recipe, recipe_of(run)):  # it has further to go
        (run.path / "params.safetensors").unlink(missing_ok=True)
    versions |= {"resumed": [*resumed, new]} if new else {}
    RunFolder.create(run.path, recipe_values(recipe), versions)


def _versions(device: str) -> dict[str, Any]:
    return {
        "fewstep": metadata.version("fewstep"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "command": shlex.join(sys.argv),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
