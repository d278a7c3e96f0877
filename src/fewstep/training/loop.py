"""The outer loop: meta-updates, records, validation, checkpoints and an orderly stop."""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final

import torch

from fewstep.core.rng import derived_seed, drawing_from, generator
from fewstep.core.trees import leaves
from fewstep.errors import EpisodeError, Interrupted, NonFiniteError, RunError
from fewstep.training.checkpoint import load_checkpoint, save_checkpoint, save_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fewstep.learners.learner import Learner
    from fewstep.tasks.task import TaskDistribution
    from fewstep.training.records import RunFolder


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a training does, apart from the learner and the tasks.

    Attributes:
        iterations: Meta-updates in all.
        batch_size: Tasks per meta-update.
        seed: Of the task stream and of randomness inside models.
        log_every: Iterations between records, each the mean over them.
        validate_every: Iterations between validations.
        patience: Validations without improvement before an early stop; None: never.
        checkpoint_seconds: Time between checkpoints.
    """

    iterations: int
    batch_size: int
    seed: int = 0
    log_every: int = 100
    validate_every: int = 1000
    patience: int | None = None
    checkpoint_seconds: float = 30.0


class Watcher(Protocol):
    """Sees a training pass by: a progress bar, TensorBoard."""

    def update(self, iteration: int, record: dict[str, Any]) -> None:
        """Called after every iteration with what it gave, and after every validation."""
        ...


@final
@dataclass
class _Progress:
    """What a resume needs beside the learner's own state."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    best: float | None = None
    best_iteration: int = 0
    stale: int = 0
    seconds: float = 0.0
    unvalidated: bool = False

    def add(self, metrics: dict[str, float]) -> None:
        self.count += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


def train(
    learner: Learner,
    tasks: TaskDistribution,
    run: RunFolder,
    plan: Plan,
    *,
    validate: Callable[[], dict[str, float]],
    watchers: tuple[Watcher, ...] = (),
    before_writing: Callable[[], object] = lambda: None,
) -> None:
    """Train until the plan is fulfilled, going on from the run's checkpoint where there is one.

    Args:
        learner: Updated in place.
        tasks: Meta-train tasks.
        run: Where records and checkpoints go.
        plan: How long, and how often what.
        validate: Scores the learner on meta-validation tasks; of what it returns, "score" is what counts, lower being
            better.
        watchers: See every iteration.
        before_writing: Called once before this training changes the run; until then, what is there stands.

    Raises:
        Interrupted: A signal asked to stop; the checkpoint is written.
        EpisodeError: An environment failed; the checkpoint is written.
        NonFiniteError: Training diverged; the last checkpoint stands.
        RunError: The run folder cannot be read or written.
    """
    _Training(learner, tasks, run, plan, validate, watchers, before_writing).go_on()


@final
class _Training:
    """A training under way: the learner and its run folder, and how far both are."""

    def __init__(
        self,
        learner: Learner,
        tasks: TaskDistribution,
        run: RunFolder,
        plan: Plan,
        validate: Callable[[], dict[str, float]],
        watchers: tuple[Watcher, ...],
        before_writing: Callable[[], object],
    ) -> None:
        self._learner, self._tasks, self._run, self._plan = learner, tasks, run, plan
        self._score, self._watchers, self._before_writing = validate, watchers, before_writing
        self._checkpoint = run.path / "checkpoint.pt"
        self._device = next(iter(leaves(learner.meta))).device
        self._progress = self._restored()
        self._began, self._earlier = learner.iteration, self._progress.seconds
        self._started = self._saved = time.monotonic()
        self._writes = False

    def go_on(self) -> None:
        """Until the plan is fulfilled, patience is at an end, or someone asks to stop."""
        learner, plan, progress = self._learner, self._plan, self._progress
        with _stop_requests(has_begun=self._has_moved) as stop_requested:
            if progress.unvalidated:  # an environment failed then
                self._validate()
                self._save()
            while learner.iteration < plan.iterations and not _out_of_patience(progress, plan):
                try:
                    self._advance()
                except EpisodeError:  # an environment failed, before anything was updated, or while it was validated
                    if self._has_moved():
                        self._save()
                        log.warning("Stopped after iteration %s", self._how_far())
                    raise
                if time.monotonic() - self._saved > plan.checkpoint_seconds:
                    self._save()
                if stop_requested():
                    self._save()
                    raise Interrupted(f"Stopped after iteration {self._how_far()}.")
        if learner.iteration < plan.iterations:
            log.warning("Stopped after iteration %d of %d: %s", learner.iteration, plan.iterations, _reason(progress))
        self._save()
        if progress.count:  # the last, shorter interval; the checkpoint does not know it, so that a resume may go on
            self._record(partial=True)
        save_meta(self._run.path / "params.safetensors", learner.meta, _about(learner))

    def _restored(self) -> _Progress:
        if not self._checkpoint.is_file():
            if (self._run.path / "metrics.jsonl").is_file():
                log.warning("%s has no checkpoint: it begins again", self._run.path)
            return _Progress()
        state = load_checkpoint(self._checkpoint)
        try:
            self._learner.load_state_dict(state["learner"])
        except ValueError as error:
            raise RunError(f"{self._checkpoint} is of another model or rule than this one: {error}") from error
        return _Progress(**state["progress"])

    def _advance(self) -> None:
        """One iteration, and what is due after it."""
        metrics = _iterate(self._learner, self._tasks, self._plan, self._checkpoint, self._device)
        self._progress.add(metrics)
        self._show(metrics)
        if self._learner.iteration % self._plan.log_every == 0:
            self._record()
        if self._learner.iteration % self._plan.validate_every == 0:
            self._validate()

    def _validate(self) -> None:
        self._progress.unvalidated = True
        self._begin_writing()
        scores = _validate(self._learner, self._run, self._score, self._progress)
        self._progress.unvalidated = False
        self._show({f"val_{name}": value for name, value in scores.items()})

    def _record(self, *, partial: bool = False) -> None:
        self._begin_writing()
        _record(self._run, self._learner.iteration, self._progress, self._seconds(), partial=partial)

    def _save(self) -> None:
        self._begin_writing()
        self._saved = time.monotonic()
        self._progress.seconds = self._seconds()
        save_checkpoint(self._checkpoint, {"learner": self._learner.state_dict(), "progress": vars(self._progress)})

    def _begin_writing(self) -> None:
        if not self._writes:
            self._before_writing()
            self._run.forget_metrics_after(self._began)
        self._writes = True

    def _show(self, record: dict[str, Any]) -> None:
        for watcher in self._watchers:
            watcher.update(self._learner.iteration, record)

    def _has_moved(self) -> bool:
        return self._learner.iteration > self._began

    def _how_far(self) -> str:
        return f"{self._learner.iteration} of {self._plan.iterations}; saved {self._checkpoint}"

    def _seconds(self) -> float:
        """That it has trained for, in this process and in those before a resume."""
        return self._earlier + time.monotonic() - self._started


def _iterate(
    learner: Learner, tasks: TaskDistribution, plan: Plan, checkpoint: Path, device: torch.device
) -> dict[str, float]:
    """One meta-update on the tasks of this iteration's own stream (Algorithm 2, lines 3-10)."""
    iteration = learner.iteration
    batch = tasks.sample(plan.batch_size, generator(plan.seed, "train", iteration))
    with drawing_from(derived_seed(plan.seed, "module", iteration), device):
        try:
            return learner.step(batch)
        except NonFiniteError as error:
            stands = (
                f"the last checkpoint stands: {checkpoint}" if checkpoint.is_file() else "no checkpoint was due yet"
            )
            raise NonFiniteError(f"{error} Nothing was updated; {stands}.") from error


def _record(run: RunFolder, iteration: int, progress: _Progress, seconds: float, *, partial: bool = False) -> None:
    means = {name: total / progress.count for name, total in progress.sums.items()}
    used = {"seconds": round(seconds, 3), "peak_memory_mib": _peak_memory_mib()}
    marked = {"partial": True} if partial else {}  # of a shorter interval: a resume takes it back
    run.append_metrics({"iteration": iteration, "split": "train", **means, **used, **marked})
    progress.sums.clear()
    progress.count = 0


def _peak_memory_mib() -> float | None:
    """Of this process so far; on GPUs, of its tensors there. None where the system does not tell."""
    if torch.cuda.is_initialized():
        on_gpus = sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
        if on_gpus:  # else it computes on the CPU
            return round(on_gpus / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _validate(
    learner: Learner, run: RunFolder, validate: Callable[[], dict[str, float]], progress: _Progress
) -> dict[str, float]:
    scores = validate()
    known = {name: value if math.isfinite(value) else None for name, value in scores.items()}  # JSON has no nan
    run.append_metrics({"iteration": learner.iteration, "split": "val", **known})
    # A score that is not finite is never the best.
    if math.isfinite(scores["score"]) and (progress.best is None or scores["score"] < progress.best):
        progress.best, progress.best_iteration, progress.stale = scores["score"], learner.iteration, 0
        save_meta(run.path / "best.safetensors", learner.meta, _about(learner))
    else:
        progress.stale += 1
    return scores


def _about(learner: Learner) -> dict[str, str]:
    return {"iteration": str(learner.iteration), "constants": learner.constants()}


def _out_of_patience(progress: _Progress, plan: Plan) -> bool:
    return plan.patience is not None and progress.stale >= plan.patience


def _reason(progress: _Progress) -> str:
    """Why patience ran out, and what to do."""
    if progress.best is None:
        return "no validation had a finite score, so training diverged. Begin anew with a lower meta.lr"
    return (
        f"the last {progress.stale} validations were no better than that of iteration {progress.best_iteration}. To go "
        "on, resume with a larger one: --set validation.patience=N"
    )


@contextmanager
def _stop_requests(has_begun: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request that the loop honours between iterations; a second one is not caught.

    Before the first iteration is done, which compiles for a minute perhaps, nothing can be lost: then at once.

    Raises:
        Interrupted: That is the case.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(*_: object) -> None:
        requested.set()
        restore()
        if not has_begun():
            raise KeyboardInterrupt  # which no one takes for a fault of their own
        log.warning("Stopping when this iteration is done; a second time stops at once")

    for number in before:
        signal.signal(number, request)
    try:
        yield requested.is_set
    except KeyboardInterrupt:
        if has_begun():
            raise
        raise Interrupted("Stopped before the first iteration was done: there was nothing to save.") from None
    finally:
        restore()
