"""Measure the ways to begin a head for other classes, on Omniglot's meta-validation tasks. From the checkout's root:

    python -m benchmarks.heads --data DIR

Each task is adapted as `fewstep adapt` does it, from the ready initialisation omniglot-5way-1shot, and its queries are
judged one by one (batch-normalisation policy `support`). The same tasks for every policy. Prints a Markdown table:
accuracy in percent, with 95 % confidence intervals.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fewstep.core.rng import generator
from fewstep.core.trees import index
from fewstep.experiments.adapting import fit, initialisation
from fewstep.tasks.few_shot import FewShot
from fewstep.tasks.omniglot import load_omniglot, omniglot_split
from fewstep.training.evaluation import mean_and_ci95

if TYPE_CHECKING:
    from fewstep.core.types import Batch, Task
    from fewstep.experiments.adapted import Initialisation
    from fewstep.learners.supervised import Adapted

RUN = "omniglot-5way-1shot"
WAYS, SHOTS, QUERIES = (3, 5, 10, 20), (1, 5), 3
HEADS = ("trained", "zero", "mean", "prototype")
RAGGED = (1, 1, 2, 5, 10)
"""Shots of five classes, the last measurement."""

Fit = "Callable[[Batch, int, int, str], Adapted]"


def accuracy(adapted: Adapted, query: Batch) -> float:
    """Share of queries told right."""
    return (adapted(query.inputs).argmax(1) == query.targets).float().mean().item()


def cell(start: Initialisation, tasks: Task, ways: int, steps: int, head: str, keep: torch.Tensor | None = None) -> str:
    """Mean and interval over tasks."""
    if head == "trained" and ways != 5:
        return ""
    scores: list[float] = []
    for number in range(len(tasks.query.targets)):
        task = index(tasks, number)
        support = task.support if keep is None else type(task.support)(*(part[keep] for part in task.support))
        scores.append(accuracy(fit(start, support, ways, steps, head), task.query))
    mean, ci = mean_and_ci95(torch.tensor(scores))
    return f"{100 * mean:.1f} ± {100 * ci:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.heads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds omniglot/; else FEWSTEP_DATA")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start, images = initialisation(RUN), omniglot_split(load_omniglot(given.data), "val")
    print("| ways | shots | " + " | ".join(HEADS) + " |\n|" + "---|" * (2 + len(HEADS)))
    for ways in WAYS:
        for shots in SHOTS:
            tasks = FewShot(images, ways, shots, QUERIES, rotate=True).sample(given.tasks, generator(0, "heads"))
            measure = partial(cell, start, tasks, ways, given.steps)
            print(f"| {ways} | {shots} | " + " | ".join(measure(head) for head in HEADS) + " |", flush=True)
    tasks = FewShot(images, len(RAGGED), max(RAGGED), QUERIES, rotate=True).sample(given.tasks, generator(0, "heads"))
    keep = torch.cat([torch.arange(count) + place * max(RAGGED) for place, count in enumerate(RAGGED)])
    measure = partial(cell, start, tasks, len(RAGGED), given.steps, keep=keep)
    shown = ", ".join(map(str, RAGGED))
    print(f"| {len(RAGGED)} | {shown} | " + " | ".join(measure(head) for head in HEADS) + " |")


if __name__ == "__main__":
    main()
