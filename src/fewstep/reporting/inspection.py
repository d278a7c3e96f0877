"""What `fewstep inspect` measured, as two tables and a figure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator
from rich.text import Text

from fewstep.reporting.drawing import (
    COLOURS,
    FAINT,
    INK,
    counted,
    dress,
    footnote,
    literal,
    new_figure,
    save,
    sentence,
)
from fewstep.reporting.reading import described, finite, metric_name, unit
from fewstep.reporting.tables import ABSENT, USUAL_STEPS, empty_table, number_cell

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    Inspection = Mapping[str, Any]
    Curve = Sequence[Mapping[str, Any]]

PARTS = {"everything": "everything", "head": "the head alone", "rest": "all but the head"}
_PROTOCOL = ("split", "tasks", "ways", "shots", "queries", "normalization", "checkpoint", "fingerprint")
_INTERVAL = "95 % confidence interval over tasks"
_COLUMNS = (("moved %", "relative_movement", 100), ("gain", "gain", 1), ("untrained gain", "untrained_gain", 1))
_LEGEND = (
    "moved: distance from the initialisation, in % of the layer's own length; rms: per parameter\n"
    "gain: decrease of the query loss where this layer alone takes the steps; "
    "untrained: the same network with random parameters"
)
_NOT_ADAPTED = "not adapted"
_STEPS = ("#9ECAE1", "#4292C6", "#08519C", "#041F3D")
"""From early to late."""
_LINES = (("#8CC4E8", "-", 4.0), (COLOURS[1], "-", 1.6), (COLOURS[2], "--", 1.6), (FAINT, ":", 1.6))
"""Colour, dashes and width: the curve of everything is broad, for another may lie on it."""


def layers_table(inspection: Inspection) -> Table:
    """How far each layer moves, and how sensitive the loss of new tasks is to it.

    Args:
        inspection: As `experiments.inspect_run.inspect` returns it.
    """
    last = _last(inspection)
    shown = [(what, key, factor, step) for what, key, factor in _COLUMNS for step in sorted({1, last})]
    table = empty_table("Layers: how far they move, and how sensitive the loss of new tasks is to them", _LEGEND)
    table.add_column("layer", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    for what, _, _, step in shown:
        table.add_column(f"{what},\n{counted(step, 'step')}", justify="right", no_wrap=True)
    table.add_column(f"rms moved,\n{counted(last, 'step')}", justify="right", no_wrap=True)
    for layer in inspection["layers"]:
        cells = [_cell_at(layer[key], step, factor) for _, key, factor, step in shown]
        cells.append(_cell_at(layer["rms_movement"], last, 1))
        if not layer["adapted"]:
            cells = [_NOT_ADAPTED, *[ABSENT] * (len(cells) - 1)]
        some = 0 < layer["adapted"] < layer["parameters"]
        count = (f"{layer['adapted']:,} of " if some else "") + f"{layer['parameters']:,}"
        table.add_row(Text(layer["layer"]), count, *cells)
    return table


def parts_table(inspection: Inspection) -> Table:
    """The query metric where everything adapts, the head alone, and all but the head.

    Args:
        inspection: As `experiments.inspect_run.inspect` returns it.
    """
    last = _last(inspection)
    steps = [step for step in sorted({*USUAL_STEPS, last}) if step <= last]
    details = ", ".join(filter(None, (described(field, inspection) for field in _PROTOCOL)))
    head = f"head: {', '.join(inspection['head']['parameters'])}"
    title = f"{sentence(metric_name(inspection['metric']))} by what adapts"
    note = f"{ABSENT}: the gain is within its interval of none, so there is none to share"
    table = empty_table(title, f"{head}\n{details}\n±: {_INTERVAL}\n{note}")
    table.add_column("initialisation", no_wrap=True)
    table.add_column("what adapts")
    for step in steps:
        table.add_column(f"step {step}" if step else "before", justify="right", no_wrap=True)
    factor = unit(inspection["metric"])
    for name, views in (("meta-trained", inspection), ("untrained", inspection["untrained"])):
        for part, what in PARTS.items():
            table.add_row(name, what, *(_cell_at(views["parts"][part], step, factor) for step in steps))
        shares = (_cell_at(views["head_share"], step, 100) for step in steps)
        table.add_row(name, "the head's share of the gain, %", *shares, style="dim")
    return table


def inspection_figure(inspection: Inspection, path: str | Path) -> None:
    """Movement and sensitivity of the layers, and feature learning, a panel for each.

    Args:
        inspection: As `experiments.inspect_run.inspect` returns it.
        path: Ends in .png, .svg or .pdf.

    Raises:
        RunError: The file cannot be written.
    """
    save(path, lambda: _inspection(inspection))


def _inspection(inspection: Inspection) -> Figure:
    layers = inspection["layers"]
    height = max(0.27 * len(layers), 1.9)
    figure = new_figure(10.4, height + 1.55)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.95))
    _draw_movement(left, layers)
    _draw_gains(middle, layers)
    _draw_parts(right, inspection)
    for axes in (left, middle):
        axes.set_yticks(range(len(layers)), [literal(layer["layer"]) for layer in layers])
        axes.set_ylim(len(layers) - 0.5, -0.5)
        for i, layer in enumerate(layers):
            axes.get_yticklabels()[i].set_color(INK if layer["adapted"] else FAINT)
    middle.tick_params(labelleft=False)
    for axes in (left, middle, right):
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.42 / height), ncols=2 if axes is right else 4, fontsize=8,
            frameon=False, labelcolor=INK, handlelength=1.8, columnspacing=1.2, handletextpad=0.5, borderpad=0,
        )  # fmt: skip
    protocol = ", ".join(filter(None, (described(field, inspection) for field in ("split", "ways", "shots", "tasks"))))
    footnote(figure, f"{inspection['recipe']}: {protocol}. Bars and bands: {_INTERVAL}.")
    return figure


def _draw_movement(axes: Axes, layers: Sequence[Mapping[str, Any]]) -> None:
    last = len(layers[0]["relative_movement"]) - 1
    steps = [step for step in sorted({*USUAL_STEPS, last}) if 0 < step <= last]
    shown = [layer["relative_movement"] if layer["adapted"] else None for layer in layers]
    for k, step in enumerate(steps):
        colour = _STEPS[-1 - (len(steps) - 1 - k) * (len(_STEPS) - 1) // max(len(steps) - 1, 1)]
        _dots(axes, shown, step, 100, k - (len(steps) - 1) / 2, colour, counted(step, "step"))
    for i, curve in enumerate(shown):
        if curve is None:
            axes.text(0.02, i, _NOT_ADAPTED, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color=FAINT)
    means = [100 * finite(curve[step]["mean"]) for curve in shown if curve for step in steps]
    positive = [mean for mean in means if mean > 0]
    if positive and max(positive) > 30 * min(positive):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(left=0)
    dress(axes, title="How far layers move", x="Movement (% of the layer's length)")


def _draw_gains(axes: Axes, layers: Sequence[Mapping[str, Any]]) -> None:
    axes.axvline(0, color="#b0b0b0", lw=1, zorder=1)
    for key, label, colour, side in (
        ("gain", "meta-trained", COLOURS[0], -0.5),
        ("untrained_gain", "untrained", COLOURS[1], 0.5),
    ):
        _dots(axes, [layer[key] for layer in layers], 1, 1, side, colour, label)
    dress(axes, title="How sensitive the loss is to layers", x="Decrease of query loss, one step of one layer")


def _dots(
    axes: Axes, curves: Sequence[Curve | None], step: int, factor: float, side: float, colour: str, label: str
) -> None:
    """A dot with its interval for each layer, somewhat above or below the layer's line."""
    places = [i for i, curve in enumerate(curves) if curve]
    points = [curve[step] for curve in curves if curve]
    axes.errorbar(
        [factor * finite(point["mean"]) for point in points], [i + 0.22 * side for i in places],
        xerr=[factor * finite(point["ci95"]) for point in points], fmt="o", ms=4.2, color=colour, elinewidth=1.1,
        capsize=0, label=label, zorder=3,
    )  # fmt: skip


def _draw_parts(axes: Axes, inspection: Inspection) -> None:
    factor = unit(inspection["metric"])
    untrained = ("untrained, everything", inspection["untrained"]["parts"]["everything"])
    curves = [*((what, inspection["parts"][part]) for part, what in PARTS.items()), untrained]
    for (label, points), (colour, dashes, width) in zip(curves, _LINES, strict=True):
        steps = [point["step"] for point in points]
        means, halves = (_values(points, key, factor) for key in ("mean", "ci95"))
        axes.plot(steps, means, color=colour, ls=dashes, marker="o", ms=width + 1.6, lw=width, label=label, zorder=4)
        low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, lw=0, zorder=2)
    dress(
        axes,
        title="What the head alone gives",
        x="Gradient steps",
        y=textwrap.fill(sentence(metric_name(inspection["metric"])), 38),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if inspection["metric"] == "accuracy":
        axes.set_ylim(0, 102)
    else:
        axes.set_ylim(bottom=0 if axes.get_ylim()[0] < axes.get_ylim()[1] / 3 else None)


def _values(points: Iterable[Mapping[str, Any]], key: str, factor: float) -> list[float]:
    return [factor * finite(point[key]) for point in points]


def _cell_at(curve: Curve | None, step: int, factor: float) -> str:
    if curve is None or curve[step]["mean"] is None:
        return ABSENT
    mean, half_width = finite(curve[step]["mean"]), finite(curve[step]["ci95"])
    return number_cell(factor * mean, factor * half_width)


def _last(inspection: Inspection) -> int:
    return len(inspection["steps"]) - 1
