"""Whether peers compute the same meta-gradient, before anything is timed.

The reference is the loop over tasks in float64. On convolutional networks at full size it says little: among millions
of ReLUs and maxima some flip with the last bit, several inner steps multiply that, and the loop in float32 itself is
off by up to a tenth, as the draw falls. So a peer must there be about as near as that loop is, its floor, and must be
near in a small version of the workload, where nothing flips.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from benchmarks.speed.peers import ROUNDED
from benchmarks.speed.workloads import shrunk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.speed.client import Client
    from benchmarks.speed.workloads import Workload

    Start = Callable[[Workload, str, str, Path], Client]

TOLERANCE = 1e-2
"""Relative error with which a peer is timed, at full size."""

FLOORS = 5
"""Or this many times the floor, if that is more."""

SMALL_TOLERANCE = 1e-3
"""Relative error with which a peer is timed, in the small version."""


class Reference(NamedTuple):
    """What peers are compared with in one case.

    Attributes:
        flops: Of one meta-iteration, in convolutions and matrix products.
        floor: Relative error of the loop over tasks in float32.
        small: The file of the small version's gradient; None where the full size is meaningful by itself.
    """

    full: Path
    small: Path | None
    flops: int
    floor: float


def reference(start: Start, workload: Workload, folder: Path) -> Reference:
    """Run the loop over tasks; `start` starts a worker on a workload, as a peer, in a mode, with a file to write."""
    full, small = folder / "full.npz", folder / "small.npz"
    with start(workload, "loop", "reference", full) as worker:
        flops = worker.receive()["flops"]
    if not has_small(workload):
        return Reference(full, None, flops, 0.0)
    with start(workload, "loop", "check", folder / "floor.npz") as worker:
        worker.receive()
    with start(shrunk(workload), "loop", "reference", small) as worker:
        worker.receive()
    return Reference(full, small, flops, disagreement(folder / "floor.npz", full))


def has_small(workload: Workload) -> bool:
    """Whether agreement needs a small version: of convolutional networks that are not small already."""
    return workload.classifies and shrunk(workload) != workload


def check_small(start: Start, workload: Workload, peer: str, ref: Reference, folder: Path) -> dict[str, Any]:
    """A peer's error in the small version, if there is one."""
    if ref.small is None:
        return {}
    path = folder / f"{peer}-small.npz"
    with start(shrunk(workload), peer, "check", path) as worker:
        worker.receive()
    return {"small_error": disagreement(path, ref.small)}


def agrees(peer: str, record: dict[str, Any], ref: Reference) -> bool:
    """Whether a peer may be timed."""
    if peer in ROUNDED:
        return math.isfinite(record["error"])
    near = record["error"] <= max(TOLERANCE, FLOORS * ref.floor)
    return near and record.get("small_error", 0.0) <= SMALL_TOLERANCE


def disagreement(gradient: Path, true: Path) -> float:
    """Relative error ||g - g_ref|| / ||g_ref|| over all parameters; infinite where one is missing or not finite."""
    with np.load(gradient) as own, np.load(true) as reference:
        if set(own.files) != set(reference.files):
            return float("inf")
        squares = sum(float(((own[name] - reference[name]) ** 2).sum()) for name in reference.files)
        error = (squares / sum(float((reference[name] ** 2).sum()) for name in reference.files)) ** 0.5
    return error if np.isfinite(error) else float("inf")
