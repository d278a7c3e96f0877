"""Make a ready initialisation, part of the package, out of a finished run.

    python benchmarks/make_ready.py RUN NAME

Copies the resolved recipe, what it ran with, the best meta-parameters and the evaluations to
src/fewstep/ready/NAME. Paths of the machine that it was trained on are left behind.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

from fewstep.experiments.runs import READY
from fewstep.files import read_json
from fewstep.training.records import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 500_000
"""Bytes: what a package can carry without anyone noticing."""


def make_ready(run: RunFolder, name: str) -> Path:
    """Copy the run's essence into the package."""
    parameters = run.path / "best.safetensors"
    if parameters.stat().st_size > LIMIT:
        raise SystemExit(f"A ready initialisation has at most {LIMIT} bytes: this has {parameters.stat().st_size}.")
    folder = READY / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "evaluations").mkdir(parents=True)
    shutil.copy(run.path / "config.json", folder)
    shutil.copyfile(parameters, folder / "params.safetensors")
    for evaluation in (run.path / "evaluations").glob("test-*-best.json"):
        shutil.copy(evaluation, folder / "evaluations")
    versions = {key: value for key, value in read_json(run.path / "versions.json").items() if key != "command"}
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    if (run.path / "data.json").is_file():
        data = {key: value for key, value in read_json(run.path / "data.json").items() if key != "folder"}
        (folder / "data.json").write_text(json.dumps(data, indent=2) + "\n")
    return folder


if __name__ == "__main__":
    print(make_ready(RunFolder(sys.argv[1]), sys.argv[2]))
