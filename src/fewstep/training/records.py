"""The run folder: what one training leaves behind, and what everything after it reads.

    config.json           the resolved recipe
    versions.json         software and hardware it ran with
    data.json             for data sets: hash, splits, standardisation
    metrics.jsonl         one JSON object per line, by iteration
    checkpoint.pt         all that a resume needs
    best.safetensors      meta-parameters with the best validation score
    params.safetensors    final meta-parameters; there once training is finished
    evaluations/*.json    results of `fewstep evaluate`: means over tasks
    evaluations/*.csv     the same for each task
    inspections/*.json    results of `fewstep inspect`
    illustration.json     adaptation to two tasks, where it can be drawn: predictions of one target, or walks
    plots/, tensorboard/  figures; event files

Every file is replaced as a whole or appended to by whole lines, so a run that is killed at any moment can go on.
"""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from filelock import FileLock, Timeout

from fewstep.errors import RunError
from fewstep.files import read_json, replaced, unwritable, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FORMAT = 1
"""Version of the run folder's layout and of the checkpoint in it."""

MORE_IS_BETTER = frozenset({"accuracy", "return"})
"""Metrics of which more is better; of all others, less."""


@final
class RunFolder:
    """One run on disk.

    Args:
        path: The folder of an existing run.

    Raises:
        RunError: It is no run, or one of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            what = "there is no such folder" if not self.path.exists() else "it has no config.json"
            raise RunError(
                f"RUN must be the folder of a run made by `fewstep train`: {self.path}: {what}. "
                "Give the folder that training named, or train first."
            )
        stored = read_json(self.path / "config.json")
        if isinstance(stored, dict) and "adapted" in stored:
            raise RunError(
                f"RUN must be the folder of a run made by `fewstep train`: {self.path} holds an adapted model. Use it "
                "with `fewstep predict`, or go on adapting it with `fewstep adapt`."
            )
        came = stored.get("format") if isinstance(stored, dict) else None
        if came == FORMAT and not isinstance(stored.get("recipe"), dict):
            raise RunError(
                f"The config.json of a run must hold its recipe: {self.path} has none. Restore it from a copy."
            )
        if came != FORMAT:
            raise RunError(
                f"{self.path} must be a run of format {FORMAT}: its format is {came}. "
                "Use the version of fewstep that versions.json in it names."
            )
        self.config: dict[str, Any] = stored["recipe"]

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any], versions: dict[str, Any]) -> RunFolder:
        """Write what a run begins with; call it with the folder `locked`.

        Args:
            path: Where.
            config: The resolved recipe, as plain values.
            versions: What it runs with.

        Raises:
            RunError: The folder cannot be written to.
        """
        path = Path(path)
        write_json(path / "versions.json", versions)
        write_json(path / "config.json", {"format": FORMAT, "recipe": config})
        return cls(path)

    @property
    def is_finished(self) -> bool:
        """Whether training went to its end."""
        return (self.path / "params.safetensors").is_file()

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise unwritable(path, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line of metrics.jsonl; a last line that a kill cut off is passed over."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        records: list[dict[str, Any]] = []
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise RunError(f"A run needs a readable metrics.jsonl: {path}: {error.strerror}.") from None
        for line in lines:
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("iteration"), int):
                    records.append(record)
        return records

    def forget_metrics_after(self, iteration: int) -> None:
        """Drop lines that a resume from this iteration writes again or completes, and one that a kill cut off."""
        if not (self.path / "metrics.jsonl").exists():
            return
        kept = [each for each in self.metrics() if each["iteration"] <= iteration and not each.get("partial")]
        with replaced(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def write_evaluation(self, name: str, evaluation: dict[str, Any], per_task: Sequence[Sequence[Any]] = ()) -> Path:
        """Store one evaluation under its name, and its table of tasks, if there is one, as its `per_task` is named."""
        if per_task:
            path = self._written("evaluations") / evaluation["per_task"]
            with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(per_task)
        return self._write_result("evaluations", name, evaluation)

    def write_inspection(self, name: str, inspection: dict[str, Any]) -> Path:
        """Store one inspection under its name."""
        return self._write_result("inspections", name, inspection)

    def evaluations(self) -> list[dict[str, Any]]:
        """All stored evaluations, by split, shots and queries."""
        stored = [read_json(path) for path in sorted((self.path / "evaluations").glob("*.json"))]
        return sorted(stored, key=lambda e: (e.get("split"), e.get("shots") or 0, e.get("queries") or 0))

    def _write_result(self, folder: str, name: str, result: dict[str, Any]) -> Path:
        path = self._written(folder) / f"{name}.json"
        write_json(path, result)
        return path

    def _written(self, folder: str) -> Path:
        path = self.path / folder
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        return path


@contextmanager
def locked(path: str | Path) -> Iterator[Path]:
    """Hold a folder, made if need be, against a second training.

    Raises:
        RunError: Another process holds it, or it cannot be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"A run folder takes one training at a time: another process is training into {path}. "
            "Wait for it, stop it, or choose another --out."
        ) from None
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield path
    finally:
        lock.release()
