"""Tables for tests, as files."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path


def write_table(path: Path, header: list[str], rows: Iterable[list[str]], drop: Collection[int] = ()) -> Path:
    """A CSV file, whose last column is empty in the rows to drop: still to be measured."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([*row[:-1], "" if place in drop else row[-1]] for place, row in enumerate(rows))
    return path
