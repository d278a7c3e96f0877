"""Runs as a user knows them: opened by folder or by name, and loaded as a learner."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fewstep.core.context import tensor_float
from fewstep.errors import FewstepError, RunError
from fewstep.experiments.build import NOTHING, FromPython, build_learner
from fewstep.experiments.build_reinforcement import spaces_of
from fewstep.experiments.execution import checked_device
from fewstep.experiments.recipe_files import load_recipe
from fewstep.files import read_json
from fewstep.tasks.table import Standardization
from fewstep.training.checkpoint import load_meta
from fewstep.training.records import RunFolder

if TYPE_CHECKING:
    from collections.abc import Generator

    from fewstep.experiments.build import BuiltLearner
    from fewstep.experiments.config import Recipe
    from fewstep.experiments.data import Data
    from fewstep.names import Checkpoint, Split
    from fewstep.rl.environment import Environment

log = logging.getLogger(__name__)

READY = Path(__file__).parent.parent / "ready"
"""Runs that come with fewstep: config, final meta-parameters and evaluations."""


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
    if Path(run).exists():
        return RunFolder(run)
    if str(run) not in ready():
        raise RunError(
            f"RUN must be the folder of a run made by `fewstep train`, or a ready initialisation: there is no {run}. "
            f"Ready are: {', '.join(ready())}."
        )
    return RunFolder(READY / str(run))


def tell_of_unfinished(run: RunFolder, checkpoint: Checkpoint = "best") -> None:
    """Warn of a run whose training has not come to its end: what it says is of the best so far.

    Raises:
        FewstepError: There is nothing yet to tell of.
    """
    meta_file(run, checkpoint)
    if not run.is_finished:
        log.warning(
            "%s is unfinished: these are its best meta-parameters so far. Training goes on with --resume", run.path
        )


def standardization(run: str | Path | RunFolder) -> Standardization:
    """Between the user's units and the model's, for a run that was trained on a table.

    Raises:
        RunError: It was not.
    """
    folder = open_run(run)
    stored = stored_data(folder) or {}
    if "standardization" not in stored:
        raise RunError(
            f"Only a run trained on a table has a standardisation: {folder.path} was trained on "
            f"{folder.config['tasks']['kind']} tasks. Use its learner's inputs and outputs as they are."
        )
    return Standardization.from_dict(stored["standardization"])


def recipe_of(run: RunFolder) -> Recipe:
    """The resolved recipe of a run."""
    return load_recipe(run.config, where=str(run.path / "config.json"))


def stored_data(run: RunFolder) -> dict[str, Any] | None:
    """What the run remembers about its data set, if it has one."""
    path = run.path / "data.json"
    return read_json(path) if path.is_file() else None


def shots_and_queries(recipe: Recipe) -> tuple[int | None, int | None]:
    """As trained with; None where custom tasks know best, and for all queries that there are."""
    return getattr(recipe.tasks, "shots", None), getattr(recipe.tasks, "queries", None)


def as_many_as_there_are(tasks: int, data: Data, split: Split) -> int:
    """The number of tasks to evaluate: a finite split is not counted twice, or its interval would be too narrow."""
    return min(tasks, data.available(split)) if data.available else tasks


def load_learner(
    run: RunFolder,
    recipe: Recipe,
    checkpoint: Checkpoint,
    own: FromPython = NOTHING,
    *,
    environment: Environment | None = None,
    device: str = "cpu",
) -> BuiltLearner:
    """As `load`, with the recipe at hand, which may adapt otherwise than the run's own."""
    if environment is not None:
        _check_spaces(run, environment)
    return learner_from(meta_file(run, checkpoint), recipe, own, environment=environment, device=device)


def _check_spaces(run: RunFolder, environment: Environment) -> None:
    """See that an environment from Python has the observations and actions of the run's."""
    expected: dict[str, Any] = (stored_data(run) or {}).get("environment") or {}
    came = spaces_of(environment)
    if differing := [name for name in ("observation_size", "actions") if expected.get(name, came[name]) != came[name]]:
        raise RunError(
            f"An environment must have the observations and actions of that which {run.path} was trained in: "
            + "; ".join(f"{name} expected {expected[name]}, got {came[name]}" for name in differing)
            + ". Pass the run's own environment, or another run."
        )


def meta_file(run: RunFolder, checkpoint: Checkpoint = "best") -> Path:
    """The file of a run's meta-parameters: "best" by validation, or "final".

    Raises:
        FewstepError: There is none yet.
    """
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
    return path


def learner_from(
    path: Path,
    recipe: Recipe,
    own: FromPython = NOTHING,
    *,
    environment: Environment | None = None,
    device: str = "cpu",
) -> BuiltLearner:
    """The recipe's learner with the meta-parameters of a file.

    Raises:
        FewstepError: They are not those of this recipe and module.
    """
    learner = build_learner(recipe, own, environment=environment, device=checked_device(device))
    meta, about = load_meta(path)
    try:
        learner.load_meta(meta)
    except ValueError as error:
        raise RunError(f"{path} does not fit the model: {error}") from None
    if about.get("constants", learner.constants()) != learner.constants():
        raise RunError(
            f"{path} was trained with other buffers or frozen parameters than this module has. "
            "Pass the module with those that it was trained with: they are not part of what a run stores."
        )
    learner.iteration = int(about.get("iteration", 0))
    return learner


@contextmanager
def computing_as(recipe: Recipe) -> Generator[None]:
    """Compute with the recipe's number of threads and precision, then as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.execution.threads or threads)
    try:
        with tensor_float(recipe.execution.precision == "tf32"):
            yield
    finally:
        torch.set_num_threads(threads)
