"""The largest problem that fits into memory: ways against inner steps, for one task. From the root of the checkout:

python -m benchmarks.memory --limit 24            # GiB
python -m benchmarks.memory --limit 24 --verify   # and do one meta-iteration of each of them

Peak memory of a second-order meta-iteration, beyond imports, parameters and tasks, grows by a constant for each way. It
is measured at two numbers of ways, and the line through them tells the largest number that stays within the limit.
Several tasks take as much as one with `execution.chunk_size = 1`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.speed.client import Client, WorkerError
from benchmarks.speed.workloads import WORKLOADS

if TYPE_CHECKING:
    from benchmarks.speed.workloads import Workload

GIB = 2**30
STEPS = (1, 5, 50)
WAYS = {"omniglot-20way-1shot": (20, 60), "miniimagenet-5way-1shot": (5, 10)}
"""Where the line is measured, by workload; its shots and queries per class stay as they are."""
EXECUTIONS = {"fewstep-eager": "all steps kept", "fewstep-remat": "`execution.remat`"}


def peak(workload: Workload, peer: str, patience: float) -> float:
    """GiB of one meta-iteration after a first one.

    Raises:
        WorkerError: It did not come to its end.
    """
    with TemporaryDirectory() as folder:
        spec = {"workload": asdict(workload), "order": "second", "peer": peer, "mode": "time", "device": "cpu"}
        with Client(
            spec | {"threads": 2, "gradient": str(Path(folder) / "gradient.npz")}, sys.stderr, patience
        ) as worker:
            worker.receive()
            return worker.run(1)["memory"] / GIB


def largest(at: tuple[int, int], peaks: tuple[float, float], limit: float) -> int:
    """Ways on the line through two measurements, at the limit."""
    slope = (peaks[1] - peaks[0]) / (at[1] - at[0])
    return int(at[1] + (limit - peaks[1]) / slope)


def verified(problem: Workload, peer: str, patience: float) -> str:
    """What came of a problem at the limit, in words."""
    try:
        return f"measured: {peak(problem, peer, patience):.1f} GiB"
    except WorkerError as error:
        return str(error)


def main() -> None:
    """Print a Markdown table, line by line."""
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--limit", type=float, default=24, help="GiB")
    parser.add_argument("--verify", action="store_true", help="do a meta-iteration of the largest problems too")
    parser.add_argument("--only", choices=WAYS, help="one of the workloads")
    parser.add_argument("--patience", type=float, default=1800, help="seconds that one measurement may take")
    args = parser.parse_args()
    print("| one task of | inner steps | | GiB at ways | largest number of ways |", flush=True)
    print("|---|---|---|---|---|", flush=True)
    for name in [args.only] if args.only else WAYS:
        at = WAYS[name]
        for steps in STEPS:
            for peer, words in EXECUTIONS.items():
                problem = replace(WORKLOADS[name], tasks=1, steps=steps)
                try:
                    few, many = (peak(replace(problem, ways=ways), peer, args.patience) for ways in at)
                    ways = largest(at, (few, many), args.limit)
                    measured, cell = f"{few:.2f} at {at[0]}, {many:.2f} at {at[1]}", f"{ways:,}"
                except WorkerError as error:
                    measured, cell, ways = str(error), "-", 0
                if args.verify and ways:
                    cell += f" ({verified(replace(problem, ways=ways), peer, args.patience)})"
                print(f"| {name} | {steps} | {words} | {measured} | {cell} |", flush=True)


if __name__ == "__main__":
    main()
