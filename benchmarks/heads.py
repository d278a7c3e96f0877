"""Measure the ways to begin a head for other classes, and the loss, on Omniglot's meta-validation tasks.

    python -m benchmarks.heads --data DIR    # from the checkout's root

Each task is adapted as `fewstep adapt` does it, from the ready initialisation omniglot-5way-1shot, and its queries are
judged one by one (batch-normalisation policy `support`). The same tasks in every column. Prints two Markdown tables:
accuracy in percent, with 95 % confidence intervals.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from fewstep.adapting.fitting import fit_classifier
from fewstep.adapting.initialisation import initialisation
from fewstep.core.rng import generator
from fewstep.core.trees import index
from fewstep.core.types import Batch, Task
from fewstep.learners.heads import balanced_cross_entropy
from fewstep.tasks.few_shot import FewShot
from fewstep.tasks.omniglot import DRAWINGS, load_omniglot, split_names
from fewstep.training.evaluation import mean_and_ci95

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.adapting.initialisation import Initialisation
    from fewstep.learners.heads import HeadPolicy
    from fewstep.learners.supervised import Loss

RUN = "omniglot-5way-1shot"
WAYS, SHOTS, QUERIES = (3, 5, 10, 20), (1, 5), 3
HEADS: tuple[HeadPolicy, ...] = ("trained", "zero", "mean", "prototype")
RAGGED = [1, 1, 2, 5, 10]
"""Shots of each of five classes."""


def draw(images: Tensor, shots: list[int], count: int) -> Task:
    """Tasks of as many ways as there are shots."""
    ways, most = len(shots), max(shots)
    tasks = FewShot(images, ways, most, QUERIES, rotate=True).sample(count, generator(0, "heads"))
    kept = torch.cat([torch.arange(number) + most * label for label, number in enumerate(shots)])
    return Task(Batch(tasks.support.inputs[:, kept], tasks.support.targets[:, kept]), tasks.query)


def measured(start: Initialisation, tasks: Task, steps: int, head: HeadPolicy, loss: Loss) -> str:
    """Mean and interval over tasks of the share of queries told right."""
    ways = int(tasks.support.targets.max()) + 1
    if head == "trained" and ways != start.ways:
        return ""
    scores: list[Tensor] = []
    for task in (index(tasks, number) for number in range(len(tasks.query.targets))):
        adapted = fit_classifier(start, task.support, ways, steps, head, loss=loss)
        scores.append((adapted(task.query.inputs).argmax(1) == task.query.targets).float().mean())
    mean, ci = mean_and_ci95(torch.stack(scores))
    return f"{100 * mean:.1f} ± {100 * ci:.1f}"


def head_table(start: Initialisation, images: Tensor, count: int, steps: int) -> None:
    """Print a row for each number of ways and shots, a column for each head."""
    _print_row("ways", "shots", *HEADS)
    _print_row(*["---"] * (2 + len(HEADS)))
    for shots in [*([shots] * ways for ways in WAYS for shots in SHOTS), RAGGED]:
        tasks = draw(images, shots, count)
        _print_row(*_told(shots), *(measured(start, tasks, steps, head, balanced_cross_entropy) for head in HEADS))


def loss_table(start: Initialisation, images: Tensor, count: int, steps: int) -> None:
    """Print a column for each loss; they differ in some tasks only."""
    _print_row("ways", "shots", "head", "balanced, trained scale", "mean over examples", "scaled by the new ways")
    _print_row(*["---"] * 6)
    heads: list[HeadPolicy] = ["trained", "prototype", "prototype", "prototype"]
    for shots, head in zip((RAGGED, RAGGED, [5] * 10, [1] * 20), heads, strict=True):
        scaled = partial(_scaled, len(shots) / start.ways)
        tasks = draw(images, shots, count)
        losses = (balanced_cross_entropy, cross_entropy, scaled)
        _print_row(*_told(shots), head, *(measured(start, tasks, steps, head, loss) for loss in losses))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.heads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds omniglot/; else FEWSTEP_DATA")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=["heads", "losses"], help="one of the tables")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start, (images, _) = initialisation(RUN), load_omniglot(given.data).only(split_names()["val"])
    images = images.unflatten(0, (-1, DRAWINGS))
    for name, table in (("heads", head_table), ("losses", loss_table)):
        if given.only in (None, name):
            table(start, images, given.tasks, given.steps)


def _scaled(factor: float, logits: Tensor, labels: Tensor) -> Tensor:
    return factor * balanced_cross_entropy(logits, labels)


def _print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _told(shots: list[int]) -> tuple[str, str]:
    """Ways and shots."""
    return str(len(shots)), ", ".join(map(str, shots if len(set(shots)) > 1 else shots[:1]))


if __name__ == "__main__":
    main()
