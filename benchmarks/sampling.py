"""The time to draw a meta-batch, beside that of a meta-iteration. From the root of the checkout:

python -m benchmarks.sampling benchmarks/speed.json    # results of `python -m benchmarks.speed`
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from benchmarks.speed.results import read
from benchmarks.speed.tables import number
from benchmarks.speed.workloads import WORKLOADS

from fewstep.core.rng import generator
from fewstep.tasks.few_shot import FewShot
from fewstep.tasks.sinusoid import Sinusoid

if TYPE_CHECKING:
    from benchmarks.speed.workloads import Workload

    from fewstep.tasks.task import TaskDistribution

DRAWS = 50


def distribution(workload: Workload) -> TaskDistribution:
    """The workload's tasks, from images of the data set's number and size."""
    if not workload.classifies:
        return Sinusoid(shots=workload.shots, queries=workload.queries)
    omniglot = workload.name.startswith("omniglot")
    classes, examples = (1100, 20) if omniglot else (64, 600)
    images = torch.randint(256, (classes, examples, workload.channels, workload.size, workload.size)).to(torch.uint8)
    return FewShot(images, workload.ways, workload.shots, workload.queries, rotate=omniglot)


def seconds(tasks: TaskDistribution, count: int) -> float:
    """Median time of a draw."""
    taken: list[float] = []
    for iteration in range(DRAWS):
        start = time.perf_counter()
        tasks.sample(count, generator(0, "train", iteration))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser("python -m benchmarks.sampling", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("json", type=Path, help="results of benchmarks.speed, for the time of a meta-iteration")
    cases = read(parser.parse_args().json)
    torch.set_num_threads(2)
    print("| | ms to draw a meta-batch | share of a second-order iteration | of a first-order iteration |")
    print("|---|---|---|---|")
    for name, workload in WORKLOADS.items():
        whole = [case for case in cases if case["workload"] == name and case["device"] == "cpu" and not case["varied"]]
        times = {case["order"]: case["peers"].get("fewstep", {}).get("median") for case in whole if not case["shrunk"]}
        if workload.network not in ("mlp", "convnet") or not times:
            continue
        drawing = seconds(distribution(workload), workload.tasks)
        shares = [f"{100 * drawing / times[order]:.1f} %" if times.get(order) else "" for order in ("second", "first")]
        print(f"| {name} | {number(1e3 * drawing)} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
