"""Training with a bar to look at."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, final

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fewstep.cli.shared import messages, say
from fewstep.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fewstep.experiments.config import Recipe


def train_one(
    recipe: Recipe,
    folder: Path,
    again: str,
    data: Path | None,
    device: str,
    resume: bool,
    source: str | None = None,
    settings: Sequence[str] = (),
) -> None:
    """Train one run, with a progress bar; an interruption tells `again`, the command that goes on.

    `source` and `settings` are what the recipe was loaded from, if `train` is to tell where it now asks for more.
    """
    from fewstep.experiments.train_run import train as train_run

    with TrainingProgress(recipe) as progress:
        try:
            train_run(
                source or recipe,
                out=folder,
                settings=settings,
                data=data,
                device=device,
                resume=resume,
                watchers=[progress],
            )
        except Interrupted as error:
            raise Interrupted(f"{error} Go on with: {again}") from None


@final
class TrainingProgress:
    """A progress bar on a terminal; elsewhere one plain line per validation."""

    def __init__(self, recipe: Recipe) -> None:
        self._name, self._total = recipe.name, recipe.meta.iterations
        self._batch_size = recipe.meta.batch_size
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=messages,
            transient=True,
            refresh_per_second=4,
            disable=not messages.is_terminal,
        )
        self._task: TaskID | None = None
        self._shown = self._started = time.monotonic()
        self._first = 0
        self._told = ""
        self._mean: float | None = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, iteration: int, record: dict[str, Any]) -> None:
        """See `Watcher`."""
        now = time.monotonic()
        if self._task is None:
            # The first iteration also prepares: the rate counts from its end.
            self._first, self._started = iteration, now
            self._task = self._bar.add_task(self._name, total=self._total, completed=iteration, state="")
        key, name, memory = (
            ("return_after", "return", 0.8) if "return_after" in record else ("query_loss", "loss", 0.99)
        )
        if key in record:
            value = record[key]
            self._mean = value if self._mean is None else memory * self._mean + (1 - memory) * value
            self._told = f"{name} {self._mean:.4g}"
        rate = (iteration - self._first) * self._batch_size / max(now - self._started, 1e-9)
        if "val_score" in record and not messages.is_terminal:
            shown = ", ".join(f"{k} {v:.4g}" for k, v in record.items() if k not in ("val_score", "val_steps"))
            say(
                f"{self._name}: iteration {iteration} of {self._total}, {self._told}, {shown}, {_rate(rate)} tasks/s",
                messages,
            )
        if now - self._shown > 0.2 or iteration == self._total:
            self._shown = now
            self._bar.update(self._task, completed=iteration, state=f"{self._told}  {_rate(rate)} tasks/s")


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
