"""The numbers that a model sees of a table's rows: its input columns, of which some may hold categories."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fewstep.tasks.rows import Rows

    Categories = Mapping[str, Sequence[str]]
    """For each input column that holds no numbers, the names of all categories that it may hold."""


def features(inputs: Sequence[str], categories: Categories) -> dict[str, bool]:
    """The names of a row's features, and which of them are indicators.

    A column of numbers is one feature. A column of categories is as many as it has: one for each, `COLUMN=CATEGORY`,
    which is 1 where the row is of this category, else 0.
    """
    found: dict[str, bool] = {}
    for name in inputs:
        found |= {f"{name}={each}": True for each in categories[name]} if name in categories else {name: False}
    return found


def numeric(inputs: Sequence[str], categories: Categories) -> list[str]:
    """The input columns that hold numbers, as `features_of` wants them to be read: before all others."""
    return [name for name in inputs if name not in categories]


def features_of(rows: Rows, inputs: Sequence[str], categories: Categories) -> list[list[float]]:
    """The features of each row."""
    columns: list[list[list[float]]] = []
    numbers = dict(zip(numeric(inputs, categories), zip(*rows.numbers, strict=True), strict=False))
    for name in inputs:
        if name in categories:
            indicators = {each: [float(each == other) for other in categories[name]] for each in categories[name]}
            columns.append([indicators[label] for label in rows.labels[name]])
        else:
            columns.append([[number] for number in numbers[name]])
    return [[*chain.from_iterable(row)] for row in zip(*columns, strict=True)]
