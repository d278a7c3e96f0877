"""A sheet of pictures to look at: for each class those that it was given, and those that were taken for it."""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from fewstep.files import replaced

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

_INK, _FAINT, _RULE, _WRONG = "#333333", "#7a7a7a", "#dddddd", "#c62828"
_DPI = 120
_CELL, _GAP, _CAPTION = 0.72, 0.1, 0.34
"""Inches: side of a picture, space between pictures, and space for two lines below it."""
_NAMES, _HEADING, _SUPPORT_COLUMNS, _COLUMNS = 1.4, 2.7, 4, 8
"""Inches for the names of classes and for the right heading; most pictures side by side."""
_CLASSES, _LINES = 100, 4
"""Most classes, and most lines of pictures for each: a sheet is for looking at."""


class Shown(NamedTuple):
    """A picture that was classified.

    Attributes:
        image: uint8 `[height, width]` or `[height, width, 3]`.
        name: Its file's.
        label: The class that it was taken for.
        probability: Of that class.
        right: Whether it is of that class, where this is known.
    """

    image: np.ndarray
    name: str
    label: str
    probability: float
    right: bool | None = None


def contact_sheet(support: Mapping[str, Sequence[np.ndarray]], predictions: Sequence[Shown], path: Path) -> None:
    """Draw a row for each class: on the left its support pictures, on the right those taken for it, the surest first.

    So a mistake is a picture that stands among others of another kind.

    Args:
        support: Pictures of each class.
        predictions: All pictures that were classified; there may be none.
        path: A .png file.

    Raises:
        RunError: It cannot be written.
    """
    with rc_context({"font.family": _families([*support, *(shown.name for shown in predictions)])}):
        _draw(support, predictions, path)


def _draw(support: Mapping[str, Sequence[np.ndarray]], predictions: Sequence[Shown], path: Path) -> None:
    classes = list(support)[:_CLASSES]
    taken = {
        name: sorted((s for s in predictions if s.label == name), key=lambda s: -s.probability) for name in classes
    }
    narrow = min(_SUPPORT_COLUMNS, max(len(images) for images in support.values()))
    wide = min(_COLUMNS, max(len(shown) for shown in taken.values()))
    lines = [
        min(_LINES, max(math.ceil(len(support[name]) / narrow), math.ceil(len(taken[name]) / max(wide, 1))))
        for name in classes
    ]
    line_height, step = _CELL + _CAPTION, _CELL + _GAP
    right = _NAMES + narrow * step + 0.3
    width = right + max(wide * step, _HEADING if wide else 0) + 0.2
    height = 0.55 + sum(lines) * line_height + 0.15
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    _text(axes, _NAMES, 0.33, "support", color=_FAINT)
    if wide:
        _text(axes, right, 0.33, "taken for this class, with its probability", color=_FAINT)
    top = 0.5
    for name, count in zip(classes, lines, strict=True):
        axes.plot([0.15, width - 0.15], [top - 0.06, top - 0.06], color=_RULE, linewidth=0.8)
        _text(axes, 0.15, top + _CELL / 2, _short(name, 15), fontweight="bold")
        _block(axes, [_Cell(image) for image in support[name]], _NAMES, top, narrow, count)
        _block(axes, [_cell(shown) for shown in taken[name]], right, top, wide, count)
        top += count * line_height
    if len(support) > len(classes):
        _text(axes, 0.15, top + 0.1, f"and {len(support) - len(classes)} more classes", color=_FAINT)
    with replaced(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box stands for it
        figure.savefig(temporary, format="png")


class _Cell(NamedTuple):
    """A picture with the two lines of its caption."""

    image: np.ndarray
    above: str = ""
    below: str = ""
    colour: str = _INK


def _cell(shown: Shown) -> _Cell:
    percent = _percent(shown.probability)
    if shown.right is False:
        return _Cell(shown.image, f"{percent}, mistake", shown.name, _WRONG)
    return _Cell(shown.image, percent, shown.name)


def _block(axes: Axes, pictures: Sequence[_Cell], left: float, top: float, columns: int, lines: int) -> None:
    """Pictures with their captions, in columns; says how many there is no place for."""
    for place, (image, above, below, colour) in enumerate(pictures[: columns * lines]):
        x = left + place % columns * (_CELL + _GAP)
        y = top + place // columns * (_CELL + _CAPTION)
        axes.imshow(
            image,
            extent=(x, x + _CELL, y + _CELL, y),
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest",
            aspect="auto",
        )
        left_out = len(pictures) - columns * lines
        if left_out > 0 and place == columns * lines - 1:
            above, below, colour = f"and {left_out} more", "", _INK
        _text(axes, x, y + _CELL + 0.08, above, fontsize=7 if colour == _INK else 6, color=colour)
        _text(axes, x, y + _CELL + 0.19, _short_file(below, 18), fontsize=5, color=_FAINT)


def _text(
    axes: Axes, x: float, y: float, text: str, fontsize: float = 8.5, color: str = _INK, fontweight: str = "normal"
) -> None:
    style = {"fontsize": fontsize, "color": color, "fontweight": fontweight}
    axes.text(x, y, text, style, verticalalignment="center", parse_math=False)


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 6]}…{name[-5:]}"


def _short_file(name: str, letters: int) -> str:
    """Without what its neighbours share: the ending, and of what is too long the beginning."""
    stem = name.rpartition(".")[0] or name
    return stem if len(stem) <= letters else f"…{stem[1 - letters :]}"


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f} %" if probability < 0.995 else "> 99 %"


def _families(texts: Iterable[str]) -> list[str]:
    """Fonts for these texts: matplotlib's own, and where it lacks a character the first on this machine that has it."""
    families = ["DejaVu Sans"]
    missing = {c for c in "".join(texts) if c.isprintable()} - _characters(font_manager.findfont(families[0]))
    for font in font_manager.fontManager.ttflist if missing else ():
        found = missing & _characters(font.fname)
        if found and not font.name.startswith("Last Resort"):  # which has boxes for everything
            families.append(font.name)
            missing -= found
    if missing:
        log.warning("No font on this machine has %s: boxes stand for them", " ".join(sorted(missing)[:20]))
    return families


@cache
def _characters(file: str) -> frozenset[str]:
    with suppress(OSError, RuntimeError, ValueError):  # a damaged font has none
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    return frozenset()
