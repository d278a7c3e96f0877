"""What `fewstep plot` and `fewstep compare` make of run folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fewstep.errors import RunError
from fewstep.reporting.differences import differences
from fewstep.reporting.drawing import check_path
from fewstep.reporting.groups import grouped_by_seed
from fewstep.reporting.plots import adaptation_figure, learning_curve_figure, training_figure
from fewstep.reporting.reading import differing, illustrations, with_errors
from fewstep.reporting.tables import difference_table, evaluation_table
from fewstep.reporting.walks import walks_figure
from fewstep.training.records import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

Figure = Literal["training", "steps", "adaptation"]
FIGURES: tuple[Figure, ...] = ("training", "steps", "adaptation")


def plot_runs(paths: Iterable[Path], out: Path | None = None, figure: Figure | None = None) -> list[Path]:
    """Draw figures of runs.

    Args:
        paths: Run folders.
        out: The file of one figure; by default each goes to `plots/` in the first run's folder.
        figure: "training" (loss or return against iterations), "steps" (metric against gradient steps) or "adaptation"
            (predictions or walks before and after); by default all that the runs have data for, for `out` the first.

    Returns:
        The files written.

    Raises:
        RunError: A folder is no run, or the runs lack what the figure shows.
    """
    runs = _labelled(paths)
    several = f"-of-{len(runs)}-runs" if len(runs) > 1 else ""  # beside those of the first run alone
    folder = _plots(next(iter(runs.values()))) if out is None else check_path(out).parent
    written: list[Path] = []
    missing: list[RunError] = []
    for name in FIGURES if figure is None else (figure,):
        if out is not None and written:
            break
        path = out or folder / f"{name}{several}.png"
        try:
            _draw(name, runs, path)
        except RunError as error:
            missing.append(error)
            continue
        written.append(path)
    if not written:
        raise missing[0]
    return written


def compare_runs(paths: Iterable[Path], out: Path) -> tuple[list[Table], Path | None]:
    """Tables and one figure of the stored evaluations of runs; seeds of one recipe are taken together.

    Args:
        paths: Run folders.
        out: The figure's file.

    Returns:
        A table of the evaluations and, where there are any on the same tasks, one of their differences; the figure's
        file, or None where the metrics differ and there is none.

    Raises:
        RunError: A folder is no run or has no evaluation.
    """
    entries = grouped_by_seed(list(_labelled(paths).values()))
    path = None if differing(entries, ["metric"]) else out
    if path is not None:
        learning_curve_figure(entries, path)
    tables = [evaluation_table([each for entry in entries for each in with_errors(*entry)])]
    if found := differences(entries):
        tables.append(difference_table(found))
    return tables, path


def compared_values(paths: Iterable[Path]) -> dict[str, Any]:
    """What `compare_runs` tells, as plain values.

    Args:
        paths: Run folders.

    Returns:
        "evaluations" and "differences", each evaluation with its "label" first; None for what is not finite.

    Raises:
        RunError: A folder is no run or has no evaluation.
    """
    entries = grouped_by_seed(list(_labelled(paths).values()))
    parts = {"evaluations": entries, "differences": differences(entries)}
    return {part: [_plain({"label": label, **each}) for label, each in found] for part, found in parts.items()}


def _plain(value: Any) -> Any:
    """The value as JSON has it: paths as text, and neither infinity nor nan."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(each) for each in cast("list[Any]", value)]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inspection_path(run: RunFolder) -> Path:
    """Where the figure of an inspection goes, if nobody says where.

    Raises:
        RunError: The run's folder cannot be written to.
    """
    return _plots(run) / "inspection.png"


def _plots(run: RunFolder) -> Path:
    folder = run.path / "plots"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"Figures need a place: {folder}: {error.strerror}. Name a file with --out.") from None
    return folder


def _labelled(paths: Iterable[Path]) -> dict[str, RunFolder]:
    runs = [RunFolder(path) for path in paths]
    names = [run.path.resolve().name for run in runs]
    return {name if names.count(name) == 1 else str(run.path): run for name, run in zip(names, runs, strict=True)}


def _draw(figure: Figure, runs: dict[str, RunFolder], out: Path) -> None:
    if figure == "training":
        training_figure(runs, out)
    elif figure == "steps":
        learning_curve_figure(grouped_by_seed(list(runs.values())), out)
    else:
        _draw_adaptation({label: illustrations(run) for label, run in runs.items()}, out)


def _draw_adaptation(examples: dict[str, list[dict[str, Any]]], out: Path) -> None:
    walk = {label for label, found in examples.items() if "walks" in found[0]}
    if walk and walk != examples.keys():
        others = ", ".join(sorted(examples.keys() - walk))
        raise RunError(
            "One figure shows adaptation of one kind: got walks in the plane and, of "
            f"{others}, predictions. Plot them apart."
        )
    if walk:
        walks_figure(examples, out)
    else:
        adaptation_figure({label: found[0] for label, found in examples.items()}, out)
