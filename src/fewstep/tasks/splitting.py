"""Which tasks, or classes to make tasks of, belong to meta-train, meta-validation and meta-test."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from fewstep.errors import DataError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fewstep.names import Split


def split_tasks(
    names: Iterable[str], fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
) -> dict[Split, list[str]]:
    """Divide tasks into meta-train, meta-validation and meta-test by a fixed rule.

    The names are ordered by the SHA-256 of their UTF-8 text and cut where the fractions say, so a task's
    split depends on the set of names alone: not on a seed, the order of the rows or how many a task has. New
    rows never move a task; new tasks move only those that lie beside a cut.

    Args:
        names: The tasks.
        fractions: Shares of meta-train, meta-validation and meta-test. Each split gets at least one task.

    Returns:
        The names in each split, in the order of the rule.

    Raises:
        DataError: There are fewer than three tasks.
        ValueError: The fractions are not three positive numbers that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1):
        raise ValueError(
            f"`fractions` must be three positive shares that sum to 1: got {tuple(fractions)}. "
            "Give those of train, val and test, such as (0.7, 0.15, 0.15)."
        )
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    count = len(ordered)
    if count < 3:
        raise DataError(
            f"A table needs at least 3 tasks, one for each of train, val and test: got {count} "
            f"({quoted(ordered)}). Add tasks, or check which column `tasks.task` names."
        )
    first = min(max(round(count * fractions[0]), 1), count - 2)
    second = min(max(round(count * (fractions[0] + fractions[1])), first + 1), count - 1)
    return {"train": ordered[:first], "val": ordered[first:second], "test": ordered[second:]}
