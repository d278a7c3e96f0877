"""Figure of walks in the plane, before and after adaptation to their goals (the paper's Figure 4, right)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.collections import LineCollection

from fewstep.errors import RunError
from fewstep.reporting.drawing import FAINT, INK, counted, dress, legend, literal, new_figure, save

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEFORE, _AFTER = "#56B4E9", ("#009E73", "#00451D", "#5C8A00")
_GOAL = "#D62728"
_REACH = 0.62
"""Of the plane around the origin, where walks begin, that is shown at least: goals are within 0.5."""


def walks_figure(examples: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Walks to two goals, a row for each run and goal, a panel for each number of gradient steps.

    Args:
        examples: By label, what `reading.illustrations` gives for a run on navigation.
        path: Ends in .png, .svg or .pdf.

    Raises:
        RunError: There is no example, or the file cannot be written.
    """
    save(path, lambda: _walks(examples))


def _walks(examples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    if not examples:
        raise RunError("A figure of walks needs at least one run: got none. Run `fewstep evaluate RUN` first.")
    rows = [
        (label if len(goals) == 1 else f"{label}, goal {i + 1}", goal)
        for label, goals in examples.items()
        for i, goal in enumerate(goals)
    ]
    columns = max(len(goal["walks"]) for _, goal in rows)
    figure = new_figure(0.7 + 1.9 * columns, 0.6 + 1.95 * len(rows))
    points = [point for _, goal in rows for walks in goal["walks"].values() for walk in walks for point in walk]
    reach = max([_REACH, *(1.05 * abs(place) for point in points for place in point)])
    grid = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    for row, (label, goal) in zip(grid, rows, strict=True):
        for axes, (step, walks) in zip(row, goal["walks"].items(), strict=False):
            _draw(axes, goal["goal"], int(step), walks, reach)
        for axes in row[len(goal["walks"]) :]:
            axes.remove()
        row[0].set_ylabel(literal(label), fontsize=8.5, color=INK)
    legend(figure, [axes for axes in grid.flat if axes.figure is not None])
    return figure


def _draw(
    axes: Axes, goal: Sequence[float], step: int, walks: Sequence[Sequence[Sequence[float]]], reach: float
) -> None:
    colour = _AFTER[min(step, len(_AFTER)) - 1] if step else _BEFORE
    axes.add_collection(LineCollection(walks, colors=colour, linewidths=0.7, alpha=0.6, zorder=3))
    for walk in walks:
        axes.plot(*walk[-1], "o", color=colour, ms=3.5, zorder=4)
    axes.plot([], [], "o-", color=FAINT, ms=3.5, lw=0.9, label="episode")
    axes.plot(0, 0, "s", color=FAINT, ms=5, label="start", zorder=5)
    axes.plot(*goal, "*", color=_GOAL, ms=11, mec="white", mew=0.6, label="goal, not observed", zorder=6)
    dress(axes, title=f"after {counted(step, 'step')}" if step else "before adaptation")
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    tick = 0.5 if reach < 1 else math.floor(reach)
    axes.set_xticks([-tick, 0, tick])
    axes.set_yticks([-tick, 0, tick])
    axes.set_aspect("equal")
