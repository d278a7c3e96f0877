"""What all figures share: light axes, one legend, colours that tell apart, files written as a whole.

Figures are drawn without pyplot, so no global figure, backend or style is touched.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fewstep.errors import RunError
from fewstep.files import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from matplotlib.axes import Axes

_FORMATS = ("png", "svg", "pdf")
_DPI = 150
INK, FAINT = "#333333", "#7a7a7a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow."""
DASHES = ("-", "--", ":", "-.")
PAPER = "paper, "
"""How the labels of published numbers begin."""


class Style(NamedTuple):
    """Of a line."""

    colour: str
    dashes: str


def new_figure(width: float, height: float) -> Figure:
    """A white one, in inches, whose parts keep clear of each other."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def dress(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Light grid, two spines, small print."""
    axes.set_title(literal(title), fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel(literal(x), fontsize=9, color=INK)
    if y:
        axes.set_ylabel(literal(y), fontsize=9, color=INK)
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b0b0")
    axes.tick_params(which="both", labelsize=8, color="#b0b0b0", labelcolor=INK)


def legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend above the panels, each label once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for label in handles:
        if label.startswith(PAPER):  # its colours are those of the curves
            handles[label] = Line2D([], [], ls="", marker="D", ms=5.5, mfc="white", mec=FAINT, mew=1.2)
    width, height = figure.get_size_inches()
    fitting = int(width / (0.55 + 0.063 * max(map(len, handles))))
    columns = max(1, min(fitting, len(handles)))
    figure.set_figheight(height + 0.17 * (math.ceil(len(handles) / columns) - 1))  # panels keep their size
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=columns,
        fontsize=8, frameon=False, labelcolor=INK, handlelength=2.6, columnspacing=1.4,
    )  # fmt: skip


def footnote(figure: Figure, text: str) -> None:
    """Small print below, in as many lines as it takes."""
    lines = textwrap.wrap(text, int(figure.get_figwidth() / 0.058))
    figure.supxlabel("\n".join(lines), fontsize=7, color=FAINT)


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A colour for each name, in the order given; solid lines until the colours run out."""
    return {
        name: Style(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: no mathematics between "$", no hiding of a leading "_"."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def counted(number: int, what: str) -> str:
    """A number of things: "1 step", "2 steps"."""
    return f"{number} {what}{'s' * (number != 1)}"


def sentence(text: str) -> str:
    """With a capital in front."""
    return text[:1].upper() + text[1:]


def check_path(path: str | Path) -> Path:
    """Check that a figure can be written there.

    Raises:
        RunError: Its suffix is unknown, or there is no such folder.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in _FORMATS:
        raise RunError(
            f"A figure is written as {', '.join(f'.{name}' for name in _FORMATS)}: got {path.name!r}. "
            "Give a name with one of these endings."
        )
    if not path.parent.is_dir():
        raise RunError(f"A figure needs an existing folder: {path.parent} is none. Make it, or choose another.")
    return path


def save(path: str | Path, draw: Callable[[], Figure]) -> None:
    """Write a figure as a whole; a path that cannot be written is refused before anything is drawn."""
    path = check_path(path)
    figure = draw()
    with replaced(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().removeprefix("."), dpi=_DPI)
