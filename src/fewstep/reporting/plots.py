"""Figures from run folders: adaptation to one task, curves over gradient steps, and training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fewstep.errors import RunError
from fewstep.reporting.drawing import (
    INK,
    PAPER,
    Style,
    counted,
    dress,
    footnote,
    legend,
    literal,
    new_figure,
    save,
    sentence,
    styles_of,
)
from fewstep.reporting.published import Published, published
from fewstep.reporting.reading import (
    ENVIRONMENT,
    curve,
    described,
    differing,
    finite,
    interval_note,
    metric_name,
    required,
    seeds,
    unit,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fewstep.reporting.reading import Entry, Point
    from fewstep.training.records import RunFolder

_TRUTH, _SUPPORT = "#D62728", "#7B3FA0"
_BEFORE = ("#86C994", (0, (1, 1.4)))
_AFTER = (
    ("#2E9E4F", (0, (6, 2, 1, 2))),
    ("#00451D", (0, (4, 1.6))),
    ("#5C8A00", "-"),
    ("#00768A", (0, (8, 2))),
)
"""Colour and dashes of predictions: dotted before adaptation, then dashed, as in the paper's Figure 2."""


def adaptation_figure(examples: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Adaptation to one task, a panel for each run (the paper's Figure 2).

    Args:
        examples: By label, an example as `reading.illustrations` gives it.
        path: Ends in .png, .svg or .pdf.

    Raises:
        RunError: There is no example, or the file cannot be written.
    """
    save(path, lambda: _adaptation(examples))


def learning_curve_figure(entries: Sequence[Entry], path: str | Path) -> None:
    """The metric against the number of gradient steps (the paper's Figures 3 and 6).

    A panel for each split, number of ways and of shots; a curve for each label, its band as wide as "±" in
    `tables.evaluation_table`; diamonds for the paper's numbers. To compare runs, group their seeds first with
    `groups.grouped_by_seed`.

    Args:
        entries: Labels and evaluations, all of one metric.
        path: Ends in .png, .svg or .pdf.

    Raises:
        RunError: There is no entry, the metrics differ, or the file cannot be written.
    """
    save(path, lambda: _learning_curves(entries))


def training_figure(runs: Mapping[str, RunFolder], path: str | Path) -> None:
    """Training loss, or returns, and validation against meta-iterations.

    Args:
        runs: By label.
        path: Ends in .png, .svg or .pdf.

    Raises:
        RunError: A run has recorded nothing yet, some have losses and some returns, or the file cannot be written.
    """
    save(path, lambda: _training(runs))


# --- adaptation to one task


def _adaptation(examples: Mapping[str, Mapping[str, Any]]) -> Figure:
    if not examples:
        raise RunError("An adaptation figure needs at least one example: got none. Run `fewstep evaluate RUN` first.")
    figure = new_figure(max(0.6 + 3.3 * len(examples), 4.4), 3.3)
    panels = figure.subplots(1, len(examples), sharey=True, squeeze=False)[0]
    steps = sorted({int(step) for example in examples.values() for step in example["predictions"]})
    styles = dict(zip([step for step in steps if step], _AFTER * len(steps), strict=False)) | {0: _BEFORE}
    named = {tuple(example.get("columns", ("Input", "Target"))) for example in examples.values()}
    inputs, targets = named.pop() if len(named) == 1 else ("Input", "Target")
    for axes, (label, example) in zip(panels, examples.items(), strict=True):
        axes.plot(example["grid"], example["truth"], color=_TRUTH, lw=1.1, label="truth", zorder=3)
        for step in sorted(map(int, example["predictions"])):
            colour, dashes = styles[step]
            name = f"after {counted(step, 'gradient step')}" if step else "before adaptation"
            prediction = example["predictions"][str(step)]
            axes.plot(example["grid"], prediction, color=colour, ls=dashes, lw=1.7, label=name, zorder=4)
        support = example["support"]
        axes.plot(
            support["inputs"], support["targets"], "^", color=_SUPPORT, mec="white", mew=0.6, ms=8,
            label="support examples", zorder=5, clip_on=False,
        )  # fmt: skip
        dress(axes, title=f"{label}, {counted(example['shots'], 'shot')}", x=inputs)
        axes.margins(x=0)
    panels[0].set_ylabel(literal(targets), fontsize=9, color=INK)
    panels[0].set_ylim(*_limits_of_task(examples.values()))
    legend(figure, panels)
    return figure


def _limits_of_task(examples: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Wide enough for predictions that miss, not for those that diverge: half a span on either side."""
    examples = list(examples)
    task = [y for e in examples for y in (*e["truth"], *e["support"]["targets"]) if math.isfinite(y)]
    low, high = min(task), max(task)
    reach = (high - low or 1.0) / 2
    guesses = [y for e in examples for values in e["predictions"].values() for y in values if math.isfinite(y)]
    lowest, highest = max(min([low, *guesses]), low - reach), min(max([high, *guesses]), high + reach)
    margin = 0.06 * (highest - lowest or 1.0)
    return lowest - margin, highest + margin


# --- curves over gradient steps


def _learning_curves(entries: Sequence[Entry]) -> Figure:
    required(entries)
    if differing(entries, ["metric"]):
        came = ", ".join(f"{evaluation['metric']} ({label})" for label, evaluation in entries)
        raise RunError(f"One figure shows one metric: got {came}. Plot them apart.")
    names = _curve_names(entries)
    styles = styles_of(names)
    by_panel: dict[tuple[Any, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for name, (_, evaluation) in zip(names, entries, strict=True):
        by_panel.setdefault(_panel(evaluation), []).append((name, evaluation))
    figure, grid = panels(len(by_panel))
    for axes, curves in zip(grid, by_panel.values(), strict=True):
        papers: list[Published] = []
        for name, evaluation in curves:
            draw_curve(axes, name, curve(evaluation), styles[name])
            if (paper := published(evaluation)) and paper not in papers:
                papers.append(paper)
                draw_published(axes, paper, styles[name])
        dress(axes, title=_panel_title(curves[0][1]), x="Gradient steps")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        low, high = axes.get_xlim()
        if high - low < 1:  # where nothing adapts, there is one step to show
            axes.set_xlim(low - 0.5, high + 0.5)
    metric: str = entries[0][1]["metric"]
    figure.supylabel(sentence(metric_name(metric)), fontsize=9, color=INK)
    drawn = [np.asarray(line.get_ydata(), float) for axes in grid for line in axes.lines]
    _set_scale(grid[0], np.concatenate(drawn).tolist(), metric)
    legend(figure, grid)
    footnote(figure, _note(entries))
    return figure


def panels(count: int, *, columns: int = 3, shared: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of as many panels, in so many columns at most, which share their vertical axis or do not."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = new_figure(5.0 if count == 1 else 0.6 + 3.1 * columns, 0.9 + 2.8 * rows)
    grid = list(figure.subplots(rows, columns, sharey=shared, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _panel(evaluation: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(evaluation.get(field) for field in ("tasks_from", *ENVIRONMENT, "split", "ways", "shots"))


def _panel_title(evaluation: Mapping[str, Any]) -> str:
    words = (described(field, evaluation) for field in ("ways", "shots", "split"))
    environment = evaluation.get("environment")
    others = [described("tasks_from", evaluation), environment and f"of {environment}"]
    return sentence(" ".join(filter(None, [*words, "tasks", *others])))


def _curve_names(entries: Sequence[Entry]) -> list[str]:
    """Labels, with the number of seeds and those settings that panels do not tell apart."""
    protocol = ("tasks", "queries", "repeats", "trajectories", "horizon", "physics", "normalization", "checkpoint")
    fields = differing(entries, protocol)

    def name(entry: Entry, fields: Iterable[str]) -> str:
        label, evaluation = entry
        several = counted(seeds(evaluation), "seed") if seeds(evaluation) > 1 else ""
        return ", ".join(filter(None, [label, several, *(described(field, evaluation) for field in fields)]))

    placed = [(_panel(entry[1]), name(entry, fields)) for entry in entries]
    return [
        name(entry, [*fields, "inner_lr"] if placed.count(place) > 1 else fields)
        for entry, place in zip(entries, placed, strict=True)
    ]


def draw_curve(axes: Axes, name: str, points: Sequence[Point], style: Style) -> None:
    """One method's metric by step, with its band."""
    lost = next((point.step for point in points if not math.isfinite(point.mean)), None)
    label = literal(name if lost is None else f"{name} (not finite from step {lost})")
    steps, means = [point.step for point in points], [point.mean for point in points]
    axes.plot(steps, means, color=style.colour, ls=style.dashes, marker="o", ms=3.2, lw=1.6, label=label, zorder=4)
    if len(points) == 1:  # no band is as wide as one point
        axes.errorbar(steps, means, [points[0].plus_minus], color=style.colour, elinewidth=1.2, capsize=2.5, zorder=4)
    low, high = ([p.mean + sign * p.plus_minus for p in points] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=style.colour, alpha=0.16, lw=0, zorder=2)


def draw_published(axes: Axes, paper: Published, style: Style) -> None:
    """The paper's numbers, as diamonds."""
    steps, factor = list(paper.values), unit(paper.metric)
    means = [factor * mean for mean, _ in paper.values.values()]
    intervals = [math.nan if ci95 is None else factor * ci95 for _, ci95 in paper.values.values()]
    axes.errorbar(
        steps, means, intervals, fmt="D", ms=5.5, mfc="white", mec=style.colour, mew=1.2, ecolor=style.colour,
        elinewidth=1.2, capsize=2.5, label=f"{PAPER}{paper.source}", zorder=5,
    )  # fmt: skip


def _set_scale(axes: Axes, means: Iterable[float], metric: str) -> None:
    """Errors start at 0, or are logarithmic where they differ fiftyfold; accuracy ends at 100 %; returns are plain."""
    known = [mean for mean in means if math.isfinite(mean)]
    if not known or metric.startswith("return"):  # which have no zero of their own
        return
    if metric != "accuracy" and min(known) > 0 and max(known) > 50 * min(known):
        axes.set_yscale("log")
        axes.set_ylim(min(known) / 1.6, max(known) * 1.6)
    elif metric != "accuracy" and min(known) >= 0:
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.06 * max(known)))
    elif metric == "accuracy":
        axes.set_ylim(max(axes.get_ylim()[0], 0), min(axes.get_ylim()[1], 102))


def _note(entries: Sequence[Entry]) -> str:
    by_panel: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        by_panel.setdefault(_panel(entry[1]), []).append(entry)
    note = f"Bands: {interval_note(entries)}."
    if any(differing(same, ["fingerprint"]) for same in by_panel.values()):
        note += " Not all curves of a panel were measured on the same tasks."
    return note


# --- training

_MEASURES = {
    "query_loss": "Meta-training query loss",
    "return_after": "Average return in meta-training\nafter adaptation",
}
_VALIDATED = {"accuracy": "Meta-validation accuracy (%)", "return": "Meta-validation\naverage return"}


def _training(runs: Mapping[str, RunFolder]) -> Figure:
    if not runs:
        raise RunError("A training figure needs at least one run: got none. Give the folder of a run.")
    measures = {label: _measure(run) for label, run in runs.items()}
    if len(set(measures.values())) > 1:
        came = ", ".join(f"{measure} ({label})" for label, measure in measures.items())
        raise RunError(f"One figure shows one measure of training: got {came}. Plot them apart.")
    measure = next(iter(measures.values()))
    losses = {label: _recorded(run, measure) for label, run in runs.items()}
    checks = {label: [r for r in run.metrics() if r.get("split") == "val"] for label, run in runs.items()}
    for label, run in runs.items():
        if not losses[label] and not checks[label]:
            raise RunError(
                f"A training figure needs metrics of every run: {run.path} has recorded none yet. "
                "Train it further, or leave it out."
            )
    validated = any(checks.values())
    figure = new_figure(6.4, 4.9 if validated else 3.1)
    above, *below = figure.subplots(1 + validated, 1, sharex=True, squeeze=False)[:, 0]
    styles = styles_of(list(runs))
    for label, points in losses.items():
        _draw_losses(above, label, points, styles[label])
    dress(above, y=_MEASURES[measure], x="" if validated else "Meta-iterations")
    _set_scale(above, [loss for points in losses.values() for _, loss in points], measure)
    for axes in below:
        _draw_validations(axes, checks, styles)
    figure.axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.axes[-1].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend(figure, [above, *below])
    if validated:
        footnote(figure, "Circles: the meta-parameters that were kept as best.")
    return figure


def _measure(run: RunFolder) -> str:
    """What training of this kind is told in."""
    return "return_after" if run.config.get("loss", {}).get("kind") == "reinforce" else "query_loss"


def _recorded(run: RunFolder, measure: str) -> list[tuple[int, float]]:
    """A measure of training by iteration."""
    records = (record for record in run.metrics() if record.get("split") == "train")
    return [(r["iteration"], finite(r[measure])) for r in records if measure in r]


def _draw_losses(axes: Axes, label: str, points: Sequence[tuple[int, float]], style: Style) -> None:
    """Every record, faint, and over it the mean of the records around where there are many."""
    iterations, losses = [i for i, _ in points], [loss for _, loss in points]
    reach = len(points) // 50
    if reach:
        axes.plot(iterations, losses, color=style.colour, ls=style.dashes, lw=0.7, alpha=0.3, zorder=2)
    around = [losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses))]
    means = [sum(near) / len(near) for near in around]
    marker = "o" if len(points) == 1 else ""  # no line goes through one point
    axes.plot(
        iterations,
        means,
        color=style.colour,
        ls=style.dashes,
        lw=1.5,
        marker=marker,
        ms=4,
        label=literal(label),
        zorder=3,
    )


def _draw_validations(
    axes: Axes, checks: Mapping[str, Sequence[Mapping[str, Any]]], styles: Mapping[str, Style]
) -> None:
    known = [record for records in checks.values() for record in records]
    metric = next((name for name in _VALIDATED if all(name in record for record in known)), "score")
    factor = unit(metric)
    shown: list[float] = []
    for label, records in checks.items():
        if not records:
            continue
        colour, dashes = styles[label]
        iterations = [record["iteration"] for record in records]
        values = [factor * finite(record[metric]) for record in records]
        shown += values
        scores = [finite(record["score"]) for record in records]
        best = min(range(len(scores)), key=lambda i: (math.isnan(scores[i]), scores[i]))
        axes.plot(iterations, values, color=colour, ls=dashes, lw=1.5, label=literal(label), zorder=3)
        axes.plot(iterations[best], values[best], "o", ms=6, mfc="white", mec=colour, mew=1.4, zorder=4, clip_on=False)
    what = _VALIDATED.get(metric, "Meta-validation score\n(lower is better)")
    dress(axes, y=what, x="Meta-iterations")
    _set_scale(axes, shown, metric)
