"""Run folders as training and evaluation leave them, without either."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fewstep.training.records import RunFolder, locked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAML_CURVE = [3.1, 0.69, 0.52, 0.45, 0.41, 0.39, 0.37, 0.36, 0.355, 0.352, 0.351]


def evaluation(means: list[float], ci95: list[float | None] | None = None, **changes: Any) -> dict[str, Any]:
    """Of MAML on 5-shot sinusoids, unless changed."""
    cis = ci95 or [0.1 * abs(mean) for mean in means]
    return {
        "recipe": "sinusoid-5shot",
        "algorithm": "maml",
        "metric": "mse",
        "split": "test",
        "tasks": 600,
        "ways": None,
        "shots": 5,
        "queries": 5,
        "normalization": "transductive",
        "seed": 0,
        "steps": [{"step": i, "mean": mean, "ci95": ci} for i, (mean, ci) in enumerate(zip(means, cis, strict=True))],
        "evaluation_seed": 0,
        "fingerprint": "1f3a9c0277aa01bb",
        "checkpoint": "best",
        "iteration": 69_000,
        "inner_lr": 0.01,
    } | changes


def omniglot(means: list[float], ci95: list[float | None] | None = None, **changes: Any) -> dict[str, Any]:
    settings = {"recipe": "omniglot-5way-1shot", "metric": "accuracy", "ways": 5, "shots": 1, "queries": 1}
    return evaluation(means, ci95, **settings | {"inner_lr": 0.4} | changes)


def make_run(
    folder: Path,
    *evaluations: dict[str, Any],
    seed: int = 0,
    metrics: list[dict[str, Any]] | None = None,
    finished: bool = True,
    per_task: Sequence[Sequence[Any]] = (),
    **config: Any,
) -> RunFolder:
    values = {
        "name": "sinusoid-5shot",
        "seed": seed,
        "tasks": {"kind": "sinusoid", "shots": 5},
        "algorithm": {"kind": "maml", "inner_lr": 0.01},
        "meta": {"lr": 0.001},
    }
    with locked(folder):
        run = RunFolder.create(folder, values | config, {"fewstep": "0"})
        for record in metrics or []:
            run.append_metrics(record)
        for i, one in enumerate(evaluations):
            of_tasks = per_task if i == 0 else ()
            named = {"per_task": f"test-{i}.csv"} if of_tasks else {}
            run.write_evaluation(f"test-{i}", one | {"seed": seed} | named, of_tasks)
        if finished:
            (run.path / "params.safetensors").touch()
    return run


def write_illustration(run: RunFolder, examples: list[dict[str, Any]]) -> None:
    (run.path / "illustration.json").write_text(json.dumps(examples), encoding="utf-8")
