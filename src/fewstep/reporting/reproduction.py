"""The paper's tables and figures beside the same measured with fewstep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.ticker import MaxNLocator
from rich.text import Text

from fewstep.reporting.drawing import INK, dress, footnote, legend, save, sentence, styles_of
from fewstep.reporting.plots import draw_curve, draw_published, panels
from fewstep.reporting.published import published
from fewstep.reporting.reading import curve, interval_note, metric_name
from fewstep.reporting.tables import ABSENT, empty_table, number_cell, published_cell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from rich.table import Table


class Reproduced(NamedTuple):
    """A row of one of the paper's tables, measured again.

    Attributes:
        name: What was learned and, behind a comma, how.
        steps: Gradient steps at test that are told.
        iterations: Of training.
        evaluations: As the paper did; for images also with 15 queries per class, and with the `support` policy.
    """

    name: str
    steps: Sequence[int]
    iterations: int
    evaluations: Sequence[Mapping[str, Any]]


def reproduction_table(title: str, rows: Sequence[Reproduced]) -> Table:
    """One of the paper's tables beside the same measured with fewstep.

    Args:
        title: What the table is called.
        rows: Its rows.
    """
    images = any(len(row.evaluations) > 1 for row in rows)
    table = empty_table(title, "±: 95 % confidence interval over tasks")
    table.add_column("")
    further = ("15 queries", "support statistics") if images else ()
    for name in ("steps", "paper", "fewstep", *further, "tasks", "iterations"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [_cells(row, evaluation) for evaluation in row.evaluations]
        cells += [""] * (1 + len(further) - len(cells))
        steps, tasks = _between(row).join(map(str, row.steps)), str(row.evaluations[0]["tasks"])
        table.add_row(*map(Text, (row.name, steps, _paper(row), *cells, tasks, f"{row.iterations:,}")))
    return table


def _cells(row: Reproduced, evaluation: Mapping[str, Any]) -> str:
    points = {point.step: point for point in curve(evaluation)}
    return _between(row).join(number_cell(points[step].mean, points[step].plus_minus) for step in row.steps)


def _between(row: Reproduced) -> str:
    """Returns take a line each: with their intervals, those of several steps do not fit beside the paper's in one."""
    return "\n" if row.evaluations[0]["metric"] == "return" else " / "


def _paper(row: Reproduced) -> str:
    found = published(row.evaluations[0])
    if found is None:
        return ABSENT
    return _between(row).join(published_cell(found, step) for step in row.steps if step in found.values)


def returns_figure(title: str, rows: Sequence[Reproduced], path: str | Path) -> None:
    """Average return against the number of gradient steps (the paper's Figures 4 and 5).

    A panel for each kind of tasks, a curve for each method, its band as wide as "±" in `reproduction_table`; diamonds
    for the paper's numbers. What was evaluated without adapting, the oracle, is a level across the panel.

    Args:
        title: What the figure is called in the paper.
        rows: Of reinforcement learning.
        path: Ends in .png, .svg or .pdf.

    Raises:
        RunError: The file cannot be written.
    """
    save(path, lambda: _returns(title, rows))


def _returns(title: str, rows: Sequence[Reproduced]) -> Figure:
    by_tasks: dict[str, list[tuple[str, Reproduced]]] = {}
    for row in rows:
        tasks, _, method = row.name.partition(", ")
        by_tasks.setdefault(tasks, []).append((method, row))
    styles = styles_of(method for methods in by_tasks.values() for method, _ in methods)
    figure, grid = panels(len(by_tasks), columns=2, shared=False)
    for axes, (tasks, methods) in zip(grid, by_tasks.items(), strict=True):
        for method, row in methods:
            points, style = [p for p in curve(row.evaluations[0]) if p.step in row.steps], styles[method]
            if len(points) == 1:
                (_, level, reach), colour = points[0], style.colour
                axes.axhline(level, color=colour, ls="--", lw=1.6, label=method, zorder=3)
                axes.axhspan(level - reach, level + reach, color=colour, alpha=0.12, lw=0)
            else:
                draw_curve(axes, method, points, style)
            if paper := published(row.evaluations[0]):
                told = {step: value for step, value in paper.values.items() if step in row.steps}
                draw_published(axes, paper._replace(source=title, values=told), style)
        dress(axes, title=sentence(tasks), x="Gradient steps")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supylabel(sentence(metric_name("return")), fontsize=9, color=INK)
    legend(figure, grid)
    footnote(figure, f"Bands: {interval_note([('', row.evaluations[0]) for row in rows])}.")
    return figure
