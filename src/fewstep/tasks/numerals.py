"""Numbers as spreadsheets write them: with decimal points or commas, and perhaps separators of thousands.

A cell such as 1.500 is one and a half or one thousand five hundred, as the habit of its country is. The other numbers
of a file tell which; where they do not, it is not guessed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

if TYPE_CHECKING:
    from collections.abc import Iterable

Mark: TypeAlias = Literal[".", ","]

_SPACES = re.compile("(?<=\\d)[ \u00a0\u202f'\u2019](?=\\d{3}(?!\\d))")
"""Separators of thousands that can be nothing else."""
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:\.\d{3})+|(?:,\d{3})+)")
"""One mark before groups of three digits: of thousands, or a decimal one before three decimals."""
_BOTH = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:\.\d{3})+,\d*|(?:,\d{3})+\.\d*)")
_SMALL = re.compile(r"[+-]?\d{1,3}")


@final
@dataclass(frozen=True)
class Numerals:
    """How the numbers of a file are to be read.

    Attributes:
        decimal: Marks that some cell of the file shows to stand before decimals.
        comma_separated: Whether commas are between its columns, where points are then taken for decimal ones.
    """

    decimal: frozenset[Mark] = frozenset()
    comma_separated: bool = True

    @classmethod
    def of(cls, cells: Iterable[Any], *, comma_separated: bool) -> Numerals:
        """What these cells tell for certain."""
        found = set[Mark]()
        for cell in cells:
            if isinstance(cell, str) and ("," in cell or ("." in cell and ("." not in found or cell.count(".") > 1))):
                mark = _certain(_text(cell))
                found |= {mark} if mark else set()
        return cls(frozenset(found), comma_separated)

    def number(self, cell: Any) -> float | None:
        """The finite number in a cell, or None. Names such as '12_3' are none, though Python reads 123."""
        if not isinstance(cell, str):
            return _float(cell)
        value = None if "," in cell or self.decimal == {","} else _float(cell)  # which nearly always is all
        return _float(self._plain(_text(cell))) if value is None else value

    def doubt(self, column: Iterable[Any]) -> str | None:
        """A cell of a column that may be read in two ways, or None."""
        if len(self.decimal) == 1 or (not self.decimal and self.comma_separated):
            return None
        cells = [_text(cell) for cell in column if isinstance(cell, str)]
        beside_small = any(_SMALL.fullmatch(cell) for cell in cells)
        if not beside_small and not self.decimal:  # all of them with as many decimals
            return None
        return next((cell for cell in cells if _GROUPED.fullmatch(cell) and cell.count(_mark(cell)) == 1), None)

    def separates_thousands(self, cell: Any) -> bool:
        """Whether the one mark in a cell is taken for a separator of thousands."""
        if not isinstance(cell, str) or not ("," in cell or self.decimal == {","} or cell.count(".") > 1):
            return False
        text = _text(cell)
        if not _GROUPED.fullmatch(text):
            return False
        mark = _mark(text)
        if text.count(mark) > 1:
            return True
        return mark not in self.decimal if self.decimal else (mark == "," and self.comma_separated)

    def is_taken_as_usual(self, cell: Any) -> bool:
        """Whether the mark in a cell is taken for a decimal one though nothing in the file tells."""
        if self.decimal or self.comma_separated or not isinstance(cell, str):
            return False
        text = _text(cell)
        return _GROUPED.fullmatch(text) is not None and text.count(_mark(text)) == 1

    def _plain(self, text: str) -> str:
        """As Python writes it."""
        if _BOTH.fullmatch(text):
            last = text[max(text.rfind("."), text.rfind(","))]
            return text.replace("," if last == "." else ".", "").replace(last, ".")
        return text.replace(_mark(text), "") if self.separates_thousands(text) else text.replace(",", ".", 1)


def _float(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and "_" not in str(cell) else None


def _text(cell: str) -> str:
    return _SPACES.sub("", cell.strip().replace("\u2212", "-"))


def _mark(text: str) -> Mark:
    return "," if "," in text else "."


def _certain(text: str) -> Mark | None:
    """The mark that stands before decimals in this number for certain, if there is one."""
    if _BOTH.fullmatch(text):
        return "," if text.rfind(",") > text.rfind(".") else "."
    if _GROUPED.fullmatch(text) and text.count(_mark(text)) > 1:
        return "," if _mark(text) == "." else "."  # of thousands for certain, so decimals have the other
    if text.count(".") + text.count(",") != 1 or _GROUPED.fullmatch(text):
        return None
    try:
        float(text.replace(",", "."))
    except ValueError:
        return None
    return _mark(text)
