"""Commands that judge runs, and show what came of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fewstep.cli.progress import train_one
from fewstep.cli.shared import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    RunArgument,
    RunsArgument,
    SplitOption,
    messages,
    output,
    say,
)
from fewstep.names import Method, Normalization

if TYPE_CHECKING:
    from fewstep.experiments.config import Recipe


def evaluate(
    run: RunArgument,
    tasks_from: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Evaluate on the tasks of another recipe, tuning nothing.")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Labelled examples (per class).")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Query examples (per class).")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Inner steps; any number.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="How many tasks.")] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Of a table: divide each task's rows anew so often, and take the mean.")
    ] = None,
    split: SplitOption = "test",
    normalization: Annotated[Normalization | None, typer.Option(help="Batch normalisation of queries.")] = None,
    method: Annotated[Method | None, typer.Option(help="Of a pretrained classifier.")] = None,
    trajectories: Annotated[int | None, typer.Option(min=1, help="Of an environment: episodes for each step.")] = None,
    checkpoint: CheckpointOption = "best",
    data: DataOption = None,
    device: DeviceOption = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON of the recipe's own way instead of a table of all.")
    ] = False,
) -> None:
    """Evaluate a run on tasks that it has not seen; the result is stored in the run too."""
    with messages.status("Loading"):
        from fewstep.experiments.evaluate_run import evaluate_each
    asked = {
        "shots": shots,
        "queries": queries,
        "normalization": normalization,
        "method": method,
        "trajectories": trajectories,
    }
    with messages.status("Evaluating") as status:
        results = evaluate_each(
            run,
            [asked],
            tasks_from=tasks_from,
            steps=steps,
            tasks=tasks,
            repeats=repeats,
            split=split,
            checkpoint=checkpoint,
            data=data,
            device=device,
            progress=lambda done: status.update(f"Evaluating: {done} tasks"),
            variants=not as_json and not any(asked.values()),
        )
    if as_json:
        print(json.dumps(results[0]))
        return
    from fewstep.reporting.reading import with_errors
    from fewstep.reporting.tables import evaluation_table

    output.print(evaluation_table([entry for result in results for entry in with_errors(run.resolve().name, result)]))


def inspect(
    run: RunArgument,
    steps: Annotated[int | None, typer.Option(min=1, help="Inner steps; any number.")] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="How many tasks; by default the recipe's, at most 200.")
    ] = None,
    split: SplitOption = "test",
    head: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="The head's parameters, such as 'head.*'; else the last linear layer."),
    ] = None,
    checkpoint: CheckpointOption = "best",
    data: DataOption = None,
    device: DeviceOption = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(help="Figure to write (.png, .svg or .pdf); by default RUN/plots/inspection.png."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Look inside the adaptation: which layers move, which ones the loss answers to, what the head alone gives."""
    with messages.status("Loading"):
        from fewstep.experiments.inspect_run import inspect as inspect_run
        from fewstep.experiments.runs import READY, open_run
        from fewstep.reporting.drawing import check_path
        from fewstep.reporting.inspection import inspection_figure, layers_table, parts_table
        from fewstep.reporting.report import inspection_path
    folder = open_run(run)
    if out:
        check_path(out)  # before minutes go by
    with messages.status("Inspecting") as status:
        result = inspect_run(
            folder,
            steps=steps,
            tasks=tasks,
            split=split,
            head=head,
            checkpoint=checkpoint,
            data=data,
            device=device,
            progress=lambda done: status.update(f"Inspecting: {done} tasks"),
        )
    path = out or (inspection_path(folder) if folder.path.parent != READY else None)
    if path:
        inspection_figure(result, path)
    if as_json:
        print(json.dumps(result))
        return
    output.print(layers_table(result))
    output.print(parts_table(result))
    if path:
        say(f"Wrote {path}")


def compare(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option(help="Figure to write (.png, .svg or .pdf).")] = Path("compare.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables, and draw nothing.")] = False,
) -> None:
    """Compare evaluated runs, task by task where they were evaluated on the same. Seeds of one recipe are grouped."""
    from fewstep.reporting.report import compare_runs, compared_values

    if as_json:
        print(json.dumps(compared_values(runs)))
        return
    tables, path = compare_runs(runs, out)
    for table in tables:
        output.print(table)
    if path is None:
        say("No figure: it would show one metric, and these runs have several", messages)
    else:
        say(f"Wrote {path}")


def plot(
    runs: RunsArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write (.png, .svg or .pdf); by default one per figure in RUN/plots."),
    ] = None,
    figure: Annotated[
        Literal["training", "steps", "adaptation"] | None,
        typer.Option(help="Which figure; by default all that the runs have data for."),
    ] = None,
) -> None:
    """Draw training curves, curves over gradient steps, and predictions before and after adaptation."""
    from fewstep.reporting.report import plot_runs

    for path in plot_runs(runs, out=out, figure=figure):
        say(f"Wrote {path}")


def reproduce(
    table: Annotated[
        str,
        typer.Argument(
            metavar="table1|table2|table3|figure4|figure5", help="Images, sinusoids, a context; navigation, robots."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the runs; those in there are used.")] = Path("runs"),
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Recipes to go through, such as 'omniglot-*'.")] = "*",
    iterations: Annotated[int | None, typer.Option(min=1, help="Train no run for longer.")] = None,
    seed: Annotated[int, typer.Option(help="Of the runs.")] = 0,
    missing: Annotated[bool, typer.Option("--list", help="List the runs and how far they are; train nothing.")] = False,
    data: DataOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train or go on with whatever one of the paper's tables or figures lacks, and print ours beside it."""
    from fewstep.reporting.reproduction import reproduction_table, returns_figure
    from fewstep.reporting.tables import rows_table
    from fewstep.reproduce import progress
    from fewstep.reproduce import reproduce as rows_of

    if missing:
        runs = progress(table, out, only=only, iterations=iterations, seed=seed)
        lines = [[run.recipe, f"{run.done:,}", f"{run.wanted:,}", str(run.folder)] for run in runs]
        output.print(rows_table(["recipe", "iterations done", "of", "run"], lines))
        return
    again = ["fewstep", "reproduce", table, "--out", str(out), "--only", only, "--seed", str(seed)]
    again += [*(["--iterations", str(iterations)] if iterations else []), *(["--data", str(data)] if data else [])]
    again += ["--device", device] if device != "cpu" else []

    def train(recipe: Recipe, folder: Path) -> None:
        train_one(recipe, folder, shlex.join(again), data, device, resume=True)

    options = {"only": only, "iterations": iterations, "seed": seed, "data": data, "device": device}
    title = f"{table[:-1].capitalize()} {table[-1:]}"
    rows: list[Any] = []
    try:
        for row in rows_of(table, out, train, **options):
            rows.append(row)
            say(f"{row.name}: done", messages)
    finally:  # what there is, also where it comes to a stop
        if rows:
            output.print(reproduction_table(title, rows))
    if table.startswith("figure"):
        returns_figure(title, rows, out / f"{table}.png")
        say(f"Wrote {out / table}.png")


def render(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="GIF to write.")],
    steps: Annotated[str, typer.Option(help="Gradient steps to film after, by commas.")] = "0,1",
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks, one above the other.")] = 2,
    seed: Annotated[int, typer.Option(help="Which tasks.")] = 0,
    checkpoint: CheckpointOption = "best",
) -> None:
    """Film a robot before and after adaptation (runs of cheetah-* and ant-*); needs no screen."""
    if not all(step.strip().isdecimal() for step in steps.split(",")):
        raise typer.BadParameter(f"must be numbers by commas, such as 0,1: got {steps!r}", param_hint="--steps")
    with messages.status("Filming"):
        from fewstep.experiments.render_run import render as render_run

        drawn = render_run(
            run,
            out,
            steps=[int(step) for step in steps.split(",")],
            tasks=tasks,
            seed=seed,
            checkpoint=checkpoint,
        )
    say(f"Wrote {out}: tasks {', '.join(f'{task:.3g}' for task in drawn)}, after {steps} gradient steps.")
