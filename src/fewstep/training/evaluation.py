"""Evaluation on a fixed stream of tasks: curves over inner steps, with confidence intervals."""

from __future__ import annotations

import hashlib
import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fewstep.core.rng import generator
from fewstep.core.trees import concatenate, leaves, length
from fewstep.core.types import Task
from fewstep.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from fewstep.tasks.task import TaskDistribution


log = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Metrics of many tasks along their adaptation.

    Attributes:
        curves: For each metric `[tasks, steps + 1]`.
        fingerprint: Of the very tasks: equal fingerprints, equal tasks.
        names: Of the tasks, where they have any.
    """

    curves: dict[str, Tensor]
    fingerprint: str
    names: list[str] | None = None


def tell_of_non_finite(evaluation: Evaluation, metrics: Iterable[str], split: str) -> None:
    """Warn of tasks that leave no mean over all of them, since a metric of theirs is not finite."""
    for metric in metrics:
        values = evaluation.curves[metric]
        bad = (~values.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            log.warning(
                "%d of %d tasks of %s have no finite %s, and so it has no mean: task %s%s. Look for bad values in "
                "their data; else adaptation to them diverges",
                len(bad),
                len(values),
                split,
                metric,
                ", ".join(str(evaluation.names[i] if evaluation.names else i) for i in bad[:5]),
                " ..." if len(bad) > 5 else "",
            )


def measured(
    measure: Callable[[Any], Any],
    distribution: TaskDistribution,
    *,
    tasks: int,
    seed: int,
    split: str,
    at_once: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Any, str]:
    """Measure something on each task of a fixed stream.

    The stream depends on seed, split and number of tasks, and on how many are drawn at once: neither on the learner
    nor on how it was trained.

    Args:
        measure: Of tasks that were drawn together; a tree of tensors `[tasks, ...]`.
        distribution: The tasks of one split.
        tasks: How many.
        seed: Of the task stream.
        split: Name of the split, part of the stream's name.
        at_once: Tasks drawn and measured together; None: all.
        progress: Called with the number of tasks done.

    Returns:
        What was measured on all tasks, and their fingerprint.
    """
    digest = hashlib.sha256()
    parts: list[Any] = []
    done = 0
    for count, stream in streams(tasks, seed, split, at_once):
        batch = drawn(distribution, count, stream)
        for group in batch if isinstance(batch, list) else [batch]:
            for values in _identity(group):
                digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        parts.append(measure(batch))
        done += count
        if progress:
            progress(done)
    return concatenate(parts), digest.hexdigest()[:16]


def streams(tasks: int, seed: int, split: str, at_once: int | None) -> Iterator[tuple[int, torch.Generator]]:
    """How many tasks `measured` draws together, again and again, and from which streams."""
    for done in range(0, tasks, at_once or tasks):
        yield min(at_once or tasks, tasks - done), generator(seed, "evaluate", split, done)


def drawn(distribution: TaskDistribution, count: int, stream: torch.Generator) -> Any:
    """Tasks as a distribution draws them, as many as it was asked for.

    Raises:
        DataError: They are more or fewer.
    """
    batch = distribution.sample(count, stream)
    groups: list[Any] = batch if isinstance(batch, list) else [batch]
    came = sum(length(group) for group in groups if leaves(group))
    if came != count:  # fewer would be taken for as many, and an interval be too wide
        raise DataError(
            "A distribution draws as many tasks as it is asked for, as a Task whose tensors lead with that number: "
            f"got {came} of {count} from {type(distribution).__name__}. Look into its `sample`, which gives tensors "
            "and no arrays."
        )
    return batch


def _identity(tasks: Any) -> Iterator[Tensor]:
    """What tells tasks from others: continuous targets; else, since labels do not, the inputs too.

    The inputs of an oracle say more than those of the learners that it is compared with, on the same tasks. Of tasks
    that are no examples, but environments say, it is all that there is.
    """
    if not isinstance(tasks, Task):
        yield from leaves(tasks)
        return
    for batch in tasks:
        if not all(values.is_floating_point() for values in leaves(batch.targets)):
            yield from leaves(batch.inputs)
        yield from leaves(batch.targets)


def mean_and_ci95(values: Tensor) -> tuple[list[float], list[float]]:
    """Mean over tasks and half-width of its 95 % confidence interval, 1.96 std / sqrt(tasks).

    Args:
        values: `[tasks, steps + 1]`.

    Returns:
        Two lists over steps. With a single task the half-width is nan.
    """
    tasks = length(values)
    values = values.double()
    spread = values.std(dim=0) if tasks > 1 else torch.full_like(values[0], math.nan)
    return values.mean(dim=0).tolist(), (1.96 * spread / math.sqrt(tasks)).tolist()


def share_and_ci95(part: Tensor, whole: Tensor) -> tuple[float, float]:
    """A part's share of a whole, r = mean(part) / mean(whole), and half-width of its 95 % confidence interval.

    The half-width is 1.96 std(part - r whole) / (sqrt(tasks) |mean(whole)|): to first order, the delta method.

    Args:
        part: `[tasks]`.
        whole: `[tasks]`.
    """
    part, whole = part.double(), whole.double()
    share = part.mean() / whole.mean()
    spread = (part - share * whole).std() if length(part) > 1 else whole.new_tensor(math.nan)
    return share.item(), (1.96 * spread / math.sqrt(length(part)) / whole.mean().abs()).item()
