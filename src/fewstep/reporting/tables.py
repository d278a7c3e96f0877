"""Evaluations and recipes as tables for the terminal."""

from __future__ import annotations

import io
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewstep.errors import RunError
from fewstep.reporting.published import Published, published
from fewstep.reporting.reading import (
    ENVIRONMENT,
    algorithm_name,
    curve,
    described,
    differing,
    interval_note,
    mixed_tasks,
    required,
    seeds,
    unit,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from fewstep.reporting.reading import Entry

_TITLE = ("metric", "split", "tasks", "tasks_from", "ways", "shots", "queries", "repeats", "trajectories")
_DETAILS = (*ENVIRONMENT, "normalization", "checkpoint", "inner_lr", "fingerprint")
_HEADERS = {"normalization": "normalized", "inner_lr": "rate", "tasks_from": "tasks of"}
USUAL_STEPS = (0, 1, 5, 10)
ABSENT = "-"


def evaluation_table(entries: Sequence[Entry], steps: Collection[int] | None = None) -> Table:
    """Evaluations side by side, with the paper's numbers below those that have any.

    Title and caption name what all entries share; what they do not share becomes a column. The caption says
    what "±" means: the 95 % confidence interval over tasks or, where a row stands for several seeds, the
    standard deviation over them (see `fewstep.reporting.groups`).

    Args:
        entries: Labels and evaluations; those of `groups.grouped_by_seed`, for instance.
        steps: Numbers of gradient steps to show; by default 0, 1, 5, 10, those trained with, the last, and the paper's.

    Returns:
        The table.

    Raises:
        RunError: There is no entry, or a step that no entry was evaluated at.
    """
    required(entries)
    shown = _steps_shown(entries, steps)
    columns = differing(entries, (*_TITLE, *_DETAILS))
    if "fingerprint" in columns and not mixed_tasks(entries):
        entries = [(label, {**evaluation, "fingerprint": None}) for label, evaluation in entries]
        columns.remove("fingerprint")  # other shots, other tasks: no news
    table = empty_table(_title(entries, columns), _caption(entries, columns))
    table.add_column("run", overflow="fold")
    table.add_column("algorithm", no_wrap=True)
    for field in columns:
        table.add_column(_HEADERS.get(field, field), no_wrap=field != "fingerprint", overflow="fold")
    for step in shown:
        table.add_column(f"step {step}", justify="right", no_wrap=True)
    for i, (label, evaluation) in enumerate(entries):
        several = f", {seeds(evaluation)} seeds, ± spread" if seeds(evaluation) > 1 else ""
        state = ", unfinished" if evaluation.get("unfinished") else ""
        settings = [_setting(field, evaluation) for field in columns]
        numbers = {point.step: number_cell(point.mean, point.plus_minus) for point in curve(evaluation)}
        table.add_row(
            Text(label + several + state),
            Text(algorithm_name(evaluation)),
            *map(Text, settings),
            *(Text(numbers.get(step, ABSENT)) for step in shown),
        )
        paper = published(evaluation)
        if paper and (i + 1 == len(entries) or published(entries[i + 1][1]) != paper):
            table.add_row(*_paper_row(paper, len(columns), shown), style="dim")
    return table


def difference_table(entries: Sequence[Entry]) -> Table:
    """Differences of runs on the same tasks.

    Args:
        entries: Labels and evaluations; those of `differences.differences`.
    """
    shown = _steps_shown(entries, None)
    columns = differing(entries, (*_TITLE, *ENVIRONMENT, "normalization"))
    caption = "±: 95 % confidence interval over tasks of the difference on the same task"
    table = empty_table(f"Differences: {_shared(entries, set(_TITLE).difference(columns))}", caption)
    table.add_column("runs", overflow="fold")
    for field in columns:
        table.add_column(_HEADERS.get(field, field), no_wrap=True)
    for step in shown:
        table.add_column(f"step {step}", justify="right", no_wrap=True)
    for label, evaluation in entries:
        numbers = {point.step: number_cell(point.mean, point.plus_minus) for point in curve(evaluation)}
        settings = [Text(_setting(field, evaluation)) for field in columns]
        table.add_row(Text(label), *settings, *(Text(numbers.get(step, ABSENT)) for step in shown))
    return table


def recipes_table(recipes: Mapping[str, str]) -> Table:
    """Names of recipes and what each is.

    Args:
        recipes: As `fewstep.experiments.recipe_files.bundled_recipes` gives them.
    """
    table = empty_table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    for name, what in recipes.items():
        table.add_row(Text(name), Text(what))
    return table


def rows_table(header: Sequence[str], rows: Sequence[Sequence[str]], most: int = 40) -> Table:
    """Rows of a file, for the terminal.

    Args:
        header: Names of the columns; the first holds text, the others numbers.
        rows: Their cells.
        most: Rows to show; the others are counted.
    """
    table = empty_table()
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="right" if place else "left")
    for row in rows[:most]:
        table.add_row(*map(Text, row))
    if len(rows) > most:
        table.add_row(Text(f"and {len(rows) - most} more"))
    return table


def timings_table(ways: Iterable[tuple[Sequence[str], float, float, float]]) -> Table:
    """Ways to execute a recipe: their settings, and the seconds of a first and of later iterations, and of all."""
    table = empty_table()
    table.add_column("execution", overflow="fold")
    for name in ("first iteration, s", "then, ms", "all iterations"):
        table.add_column(name, justify="right", no_wrap=True)
    for settings, first, later, whole in ways:
        what = " ".join(setting.removeprefix("execution.") for setting in settings) or "as the recipe says"
        times = (f"{first:.2f}", f"{1e3 * later:.3g}", str(timedelta(seconds=round(whole))))
        table.add_row(*map(Text, (what, *times)))
    return table


def plain(table: Table, width: int = 160) -> str:
    """The table as text without colours, its lines without trailing spaces."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def empty_table(title: str | None = None, caption: str | None = None) -> Table:
    """A table without columns, in the style of all."""
    return Table(
        title=Text(title) if title else None,
        caption=Text(caption) if caption else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


def _steps_shown(entries: Sequence[Entry], chosen: Collection[int] | None) -> list[int]:
    evaluated = [[row["step"] for row in evaluation["steps"]] for _, evaluation in entries]
    present = set().union(*evaluated)
    if chosen is None:
        usual = {*USUAL_STEPS, *(steps[-1] for steps in evaluated)}
        usual.update(evaluation["trained_steps"] for _, evaluation in entries if evaluation.get("trained_steps"))
        usual.update(*(paper.values for _, evaluation in entries if (paper := published(evaluation))))
        return sorted(usual & present)
    if not present.issuperset(chosen):
        raise RunError(
            f"Steps must be among those evaluated, {min(present)} to {max(present)}: got "
            f"{', '.join(map(str, sorted(set(chosen) - present)))}. Choose others, or run "
            f"`fewstep evaluate RUN --steps {max(chosen)}`."
        )
    return sorted(set(chosen))


def _title(entries: Sequence[Entry], columns: Collection[str]) -> str:
    title = _shared(entries, set(_TITLE).difference(columns))
    return title[:1].upper() + title[1:]


def _shared(entries: Sequence[Entry], fields: Collection[str]) -> str:
    words = (described(field, entries[0][1]) for field in (*_TITLE, *_DETAILS) if field in fields)
    return ", ".join(filter(None, words))


def _caption(entries: Sequence[Entry], columns: Collection[str]) -> str:
    lines = [_shared(entries, set(_DETAILS).difference(columns)), f"±: {interval_note(entries)}"]
    if "fingerprint" in columns:
        lines.append("the rows were not all measured on the same tasks: their fingerprints differ")
    papers = dict.fromkeys(f"{p.source} ({p.protocol})" for _, e in entries if (p := published(e)))
    if papers:
        lines.append(f"paper: {'; '.join(papers)}")
    return "\n".join(filter(None, lines))


def _setting(field: str, evaluation: Mapping[str, Any]) -> str:
    value = evaluation.get(field)
    if value is None:
        return {"queries": "all others", "tasks_from": "the run"}.get(field, ABSENT)
    if value == "accuracy":
        return "accuracy %"
    if field == "inner_lr":
        return ", ".join(f"{rate:g}" for rate in (value if isinstance(value, list) else [value]))
    return str(value)


def _paper_row(paper: Published, settings: int, steps: Sequence[int]) -> list[Text]:
    return [
        Text("paper"),
        *[Text()] * (1 + settings),
        *(Text(published_cell(paper, step) if step in paper.values else "") for step in steps),
    ]


def published_cell(paper: Published, step: int) -> str:
    """As printed in the paper."""
    shown = [unit(paper.metric) * number for number in paper.values[step] if number is not None]
    return " ± ".join(f"{number:.{paper.decimals}f}" for number in shown)


def number_cell(mean: float, plus_minus: float) -> str:
    """A mean with as many decimals as two digits of its interval have, or four digits where it has none."""
    if not math.isfinite(mean):
        return "not finite"
    if not math.isfinite(plus_minus) or plus_minus == 0:
        interval = " ± 0" if plus_minus == 0 else ""
        return f"{mean:.4g}{interval}"
    decimals = 1 - math.floor(math.log10(plus_minus))
    if decimals > 6 or abs(mean) >= 1e6:
        return f"{mean:.3e} ± {plus_minus:.1e}"
    decimals = max(decimals, 0)
    return f"{mean:.{decimals}f} ± {plus_minus:.{decimals}f}"
