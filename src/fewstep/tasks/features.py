"""What a model sees of a table's rows: its input columns, of which some may hold categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fewstep.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Categories = Mapping[str, Sequence[str]]
    """For each input column that holds categories, the names of all."""


class Feature(NamedTuple):
    """One number of a row.

    Attributes:
        column: Where it comes from.
        category: Which it tells, by 1 for a row of this category and 0 for any other; of a column of numbers None.
    """

    column: str
    category: str | None = None

    @property
    def name(self) -> str:
        """`COLUMN`, or `COLUMN=CATEGORY`."""
        return self.column if self.category is None else f"{self.column}={self.category}"


def features(inputs: Sequence[str], categories: Categories) -> list[Feature]:
    """The features of a row, in the order of its input columns and of each column's categories."""
    return [Feature(column, category) for column in inputs for category in categories.get(column, (None,))]


def numeric(inputs: Sequence[str], categories: Categories) -> list[str]:
    """The input columns that hold numbers."""
    return [column for column in inputs if column not in categories]


def check_categories(inputs: Sequence[str], categories: Categories) -> None:
    """See that categories are those of input columns, and have names.

    Raises:
        ValueError: They are not, or have not.
    """
    for column, names in categories.items():
        if column not in inputs:
            raise ValueError(f"tasks.categories must be those of input columns, {quoted(inputs)}: got {column!r}")
        if len({*names}) < max(len(names), 2) or "" in names:
            raise ValueError(
                f"tasks.categories must be two or more for a column, different and not empty: got {[*names]} for "
                f"{column!r}"
            )
