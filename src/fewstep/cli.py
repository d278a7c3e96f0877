"""The command line. Torch is imported by the commands that need it, not by `fewstep --help`."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fewstep.errors import DataError, FewstepError, Interrupted, NonFiniteError, RecipeError
from fewstep.memory import keep_freed_memory
from fewstep.names import Checkpoint, Method, Normalization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewstep.adapting.classifier import Prediction
    from fewstep.experiments.config import Recipe

app = typer.Typer(
    name="fewstep",
    help="Few shots, few steps: model-agnostic meta-learning for any PyTorch module.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at data sets, and get them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
output = Console(width=None if sys.stdout.isatty() else 160)
messages = Console(stderr=True, highlight=False)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A bundled name (see `fewstep recipes`), or a TOML file.")
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, or the name of a ready initialisation.")
]
RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Run folders made by `fewstep train`.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A data folder, or a folder of pictures.")]
DataOption = Annotated[
    Path | None,
    typer.Option(help="Where data sets lie (else FEWSTEP_DATA), or a folder or table of your own that moved."),
]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ...")]


class ExportName(StrEnum):
    """Formats for other programs: lists of choices must be enumerations."""

    onnx = "onnx"
    torch = "torch"


def say(text: str, console: Console = output) -> None:
    """Print a line as it is: nothing in it is markup, and no width breaks it."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _version(asked: bool) -> None:
    if asked:
        print(f"fewstep {metadata.version('fewstep')}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Few shots, few steps: model-agnostic meta-learning for any PyTorch module."""


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, to be shown as a file.")] = None,
    *,
    keys: Annotated[bool, typer.Option("--keys", help="Show every key of a recipe, with values and defaults.")] = False,
) -> None:
    """List the bundled recipes, show one, or all that a recipe may say."""
    from fewstep.experiments.recipe_files import bundled_recipes, bundled_text
    from fewstep.reporting.tables import recipes_table

    if name is not None:
        print(bundled_text(name), end="")
        return
    if keys:
        from rich.markdown import Markdown

        from fewstep.experiments.recipe_reference import reference

        output.print(Markdown(reference()))
        return
    output.print(recipes_table(bundled_recipes()))
    say("Train one with: fewstep train NAME")


@app.command()
def train(
    recipe: RecipeArgument,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a recipe value; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set seed=N.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Train once for each seed, into OUT-seedN.")
    ] = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/RECIPE-seedN.")] = None,
    device: DeviceOption = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
) -> None:
    """Meta-train a recipe into a run folder."""
    from fewstep.experiments.recipe_files import load_recipe

    if seed is not None and seeds is not None:
        raise RecipeError("Give --seed or --seeds, not both.")
    with messages.status("Loading"):
        from fewstep.experiments.train_run import asks_for_more, existing_run, with_recorded_choices
    chosen = _seeds(seeds) if seeds is not None else [seed]
    jobs: list[tuple[Recipe, Path]] = []
    wanted: dict[Path, Recipe] = {}
    for number in chosen:
        asked = [*(settings or []), *([] if number is None else [f"seed={number}"])]
        loaded = load_recipe(recipe, asked)
        folder = Path("runs") / f"{loaded.name}-seed{loaded.seed}" if out is None else out
        if out is not None and seeds is not None:
            folder = out.with_name(f"{out.name}-seed{loaded.seed}")
        if resume and not (folder / "config.json").exists():
            say(f"There is no run in {folder} to go on with: it begins", messages)
        if resume:
            wanted[folder] = loaded
            loaded = load_recipe(recipe, with_recorded_choices(folder, asked))
        jobs.append((loaded, folder))
    if len(jobs) > 1:
        for loaded, folder in jobs:  # before hours go by
            existing_run(folder, loaded, resume)
    for loaded, folder in jobs:
        again = ["fewstep", "train", recipe, *(word for setting in settings or [] for word in ("--set", setting))]
        again += ["--seed", str(loaded.seed), *(["--data", str(data)] if data else [])]
        again += [*(["--device", device] if device != "cpu" else []), "--out", str(folder), "--resume"]
        _train_one(loaded, folder, shlex.join(again), data, device, resume)
        say(f"Trained {loaded.name}: {folder}")
        if hint := asks_for_more(wanted.get(folder, loaded), loaded):
            say(hint, messages)
        say(f"Next: fewstep evaluate {folder}")


def _seeds(text: str) -> list[int | None]:
    try:
        numbers: list[int | None] = [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--seeds must be whole numbers with commas between: got {text!r}.") from None
    if len(set(numbers)) < len(numbers):
        raise RecipeError(f"--seeds must differ from each other: got {text!r}.")
    return numbers


def _train_one(recipe: Recipe, folder: Path, again: str, data: Path | None, device: str, resume: bool) -> None:
    from fewstep.experiments.train_run import train as train_run

    with TrainingProgress(recipe) as progress:
        try:
            train_run(
                recipe,
                out=folder,
                data=data,
                device=device,
                resume=resume,
                watchers=[progress],
            )
        except Interrupted as error:
            raise Interrupted(f"{error} Go on with: {again}") from None


@app.command()
def evaluate(
    run: RunArgument,
    tasks_from: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Evaluate on the tasks of another recipe, tuning nothing.")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Labelled examples (per class).")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="Query examples (per class).")] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Inner steps; any number.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="How many tasks.")] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="Which tasks.")] = "test",
    normalization: Annotated[Normalization | None, typer.Option(help="Batch normalisation of queries.")] = None,
    method: Annotated[Method | None, typer.Option(help="Of a pretrained classifier.")] = None,
    trajectories: Annotated[int | None, typer.Option(min=1, help="Of an environment: episodes for each step.")] = None,
    checkpoint: Annotated[Checkpoint, typer.Option(help="Best by validation, or final.")] = "best",
    data: DataOption = None,
    device: DeviceOption = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Evaluate a run on tasks that it has not seen; the result is stored in the run too."""
    with messages.status("Loading"):
        from fewstep.experiments.evaluate_run import evaluate_each
        from fewstep.experiments.runs import open_run, recipe_of
        from fewstep.experiments.transfer import transferred
    folder = open_run(run)
    recipe = recipe_of(folder)
    if tasks_from is not None:
        recipe, _ = transferred(recipe, tasks_from)
    asked = {
        "shots": shots,
        "queries": queries,
        "normalization": normalization,
        "method": method,
        "trajectories": trajectories,
    }
    variants = [asked]
    if not as_json and not any(asked.values()):
        variants += [asked | variant.model_dump() for variant in recipe.evaluate.variants]
    with messages.status("Evaluating") as status:
        results = evaluate_each(
            folder,
            variants,
            tasks_from=tasks_from,
            steps=steps,
            tasks=tasks,
            split=split,
            checkpoint=checkpoint,
            data=data,
            device=device,
            progress=lambda done: status.update(f"Evaluating: {done} tasks"),
        )
    if as_json:
        print(json.dumps(results[0]))
        return
    from fewstep.reporting.reading import with_errors
    from fewstep.reporting.tables import evaluation_table

    output.print(evaluation_table([entry for result in results for entry in with_errors(run.resolve().name, result)]))


@app.command()
def inspect(
    run: RunArgument,
    steps: Annotated[int | None, typer.Option(min=1, help="Inner steps; any number.")] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="How many tasks; by default the recipe's, at most 200.")
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="Which tasks.")] = "test",
    head: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="The head's parameters, such as 'head.*'; else the last linear layer."),
    ] = None,
    checkpoint: Annotated[Checkpoint, typer.Option(help="Best by validation, or final.")] = "best",
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


@app.command()
def render(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="GIF to write.")],
    steps: Annotated[str, typer.Option(help="Gradient steps to film after, by commas.")] = "0,1",
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks, one above the other.")] = 2,
    seed: Annotated[int, typer.Option(help="Which tasks.")] = 0,
    checkpoint: Annotated[Checkpoint, typer.Option(help="Best by validation, or final.")] = "best",
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
    say(f"Wrote {out}: tasks {', '.join(f'{task:.3g}' for task in drawn)}, after {steps} gradient steps.", messages)


@app.command()
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


@app.command()
def compare(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option(help="Figure to write (.png, .svg or .pdf).")] = Path("compare.png"),
) -> None:
    """Compare evaluated runs, task by task where they were evaluated on the same. Seeds of one recipe are grouped."""
    from fewstep.reporting.report import compare_runs

    tables, path = compare_runs(runs, out)
    for table in tables:
        output.print(table)
    if path is None:
        say("No figure: it would show one metric, and these runs have several", messages)
    else:
        say(f"Wrote {path}")


@app.command()
def reproduce(
    table: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="table1 (images), table2 (sinusoids), table3 (context), figure4 or figure5."
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
        _train_one(recipe, folder, shlex.join(again), data, device, resume=True)

    options = {"only": only, "iterations": iterations, "seed": seed, "data": data, "device": device}
    title = f"{table[:-1].capitalize()} {table[-1]}"
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


@app.command()
def tune(
    recipe: RecipeArgument,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a recipe value; may be repeated."),
    ] = None,
    rounded: Annotated[bool, typer.Option("--rounded", help="Try products of fewer digits too.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="To time each way in each of two rounds.")] = 3.0,
    data: DataOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Time the ways to execute a recipe on this machine, and tell the fastest; compiling takes minutes."""
    with messages.status("Loading") as status:
        from fewstep.experiments.tune_run import tune as tune_run
        from fewstep.reporting.tables import timings_table

        ways = tune_run(
            recipe,
            settings=settings or [],
            data=data,
            device=device,
            rounded=rounded,
            seconds=seconds,
            progress=lambda what: status.update(f"Timing {what}"),
        )
    output.print(timings_table(ways))
    words = ["fewstep", "train", recipe, *(w for s in [*(settings or []), *ways[0].settings] for w in ("--set", s))]
    words += [*(["--data", str(data)] if data else []), *(["--device", device] if device != "cpu" else [])]
    say(f"Fastest: {shlex.join(words)}")


@app.command()
def adapt(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run folder, a ready initialisation, or an adapted model to go on with."),
    ],
    support: Annotated[
        Path, typer.Option(help="Folder with a folder of pictures for each class; of a run on a table, measured rows.")
    ],
    predict: Annotated[
        Path | None, typer.Option(help="A picture, or a folder of them, to classify; of a run on a table, more rows.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Gradient steps; by default the recipe's evaluate.steps.")
    ] = None,
    head: Annotated[
        Literal["zero", "mean", "prototype"] | None,
        typer.Option(help="Where the head begins; by default as trained for as many classes, else prototype."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write, by default adapted/SUPPORT; of a run on a table, a new CSV file."),
    ] = None,
    export: Annotated[
        list[ExportName] | None, typer.Option(help="Write the model for other programs too; may be repeated.")
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Adapt a run to your own few examples: pictures of new classes, or a table's rows of new tasks."""
    with messages.status("Loading"):
        from fewstep.adapting.classifier import is_adapted
        from fewstep.adapting.tables import is_on_table

        on_table = not is_adapted(run) and is_on_table(run)
    if on_table:
        if head or export:
            raise FewstepError("--head and --export go with runs on pictures: leave them out for a run on a table.")
        _adapt_to_table(run, support, predict, steps, out, device)
        return
    from fewstep.pictures import adapt_to_pictures, predictions_table

    with messages.status("Adapting"):
        outcome = adapt_to_pictures(
            run,
            support,
            predict,
            steps=steps,
            head=head,
            out=out,
            exports=[each.value for each in export or []],
            device=device,
        )
    if outcome.predicted:
        output.print(predictions_table(outcome.predicted.predictions))
        _tell_score(outcome.predicted.predictions)
    model = outcome.classifier
    counts = ", ".join(f"{name} ({len(images)})" for name, images in model.support.items())
    note = f"Adapted to {len(model.classes)} classes: {counts}; steps {model.steps}, head {model.head}."
    say(note)
    for path in (outcome.folder, *outcome.files):
        say(f"Wrote {path}")
    if not outcome.predicted:
        say(f"Next: fewstep predict {outcome.folder} IMAGE")


def _adapt_to_table(
    run: str, support: Path, predict: Path | None, steps: int | None, out: Path | None, device: str
) -> None:
    from fewstep.adapting.tables import predict_table
    from fewstep.reporting.tables import rows_table
    from fewstep.training.records import replaced

    if predict is None:
        raise FewstepError(
            "A run on a table needs rows to predict: give --predict, a CSV or Parquet file with the columns for task "
            "and inputs."
        )
    file = out or Path("adapted") / f"{predict.stem}-predicted.csv"
    if file.suffix.lower() != ".csv" or file.is_dir():
        raise FewstepError(f"--out must be a CSV file for a run on a table: got {file}. End it in .csv.")
    if file.exists() and "predicted_" not in file.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        raise FewstepError(f"--out must be a new file, or predictions of before: {file} holds something else.")
    with messages.status("Adapting"):
        found = predict_table(run, support, predict, steps=steps, device=device)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as temporary:
        temporary.write_bytes(found.encoded())
    output.print(rows_table(found.header(), found.rows()))
    counts = ", ".join(f"{name} ({rows})" for name, rows in found.support.items())
    note = f"Adapted to {counts}; steps {found.steps}."
    say(note)
    if found.errors:
        rows = len(found.tasks)
        errors = ", ".join(
            f"{name} {error:.4g}" + (f" (of {found.known[name]} of {rows} rows)" if found.known[name] < rows else "")
            for name, error in found.errors.items()
        )
        say(f"Root mean squared error, in your units: {errors}")
    say(f"Wrote {file}")


@app.command()
def predict(
    adapted: Annotated[Path, typer.Argument(metavar="ADAPTED", help="A folder made by `fewstep adapt`.")],
    pictures: Annotated[Path, typer.Argument(metavar="IMAGE_OR_DIR", help="A picture, or a folder of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Classify pictures with an adapted model."""
    if as_json and as_csv:
        raise FewstepError("Give --json or --csv, not both.")
    with messages.status("Loading"):
        from fewstep.adapting.classifier import load_adapted
        from fewstep.pictures import predict_pictures, predictions_csv, predictions_json, predictions_table

        predictions = predict_pictures(load_adapted(adapted), pictures).predictions
    if as_json:
        print(predictions_json(predictions))
    elif as_csv:
        print(predictions_csv(predictions), end="")
    else:
        output.print(predictions_table(predictions))
        _tell_score(predictions)


def _tell_score(predictions: Sequence[Prediction]) -> None:
    from fewstep.pictures import rightly_taken

    if right := rightly_taken(predictions):
        say(f"{sum(right)} of {len(right)} lie in the folder of their class.")


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for the runs and figures.")] = Path("demo")) -> None:
    """Meta-train on sinusoids in about a minute, beside pretraining and the oracle."""
    from fewstep.demo import demo as run_demo

    run_demo(out, output, train=_train_one)


@data_app.command("check")
def check_data(folder: FolderArgument) -> None:
    """Tell what is in DIR: Omniglot, MiniImagenet, or pictures in a folder for each class. Reads every picture."""
    _report_data(folder)


@data_app.command("omniglot")
def omniglot_data(folder: FolderArgument) -> None:
    """Download Omniglot (15 MB) into DIR/omniglot, or tell what to put there; then check it."""
    with messages.status("Loading"):
        from fewstep.tasks.download import download_omniglot
    download_omniglot(folder, progress=messages.is_terminal)
    _report_data(folder)


@data_app.command("miniimagenet")
def miniimagenet_data(folder: FolderArgument) -> None:
    """Tell what to put into DIR for MiniImagenet, which cannot be downloaded freely, or check what is there."""
    with messages.status("Loading"):
        from fewstep.tasks.miniimagenet import check_images, list_images
    check_images(list_images(folder))
    _report_data(folder)


def _report_data(folder: Path) -> None:
    with messages.status("Reading"):
        from fewstep.tasks.check import check

        found = check(folder)
    for one in found:
        if one.problem is None:
            say(str(one))
    problems = [one.problem for one in found if one.problem is not None]
    if problems:
        raise DataError("\n".join(problems))


@final
class TrainingProgress:
    """A progress bar on a terminal; elsewhere one plain line per validation."""

    def __init__(self, recipe: Recipe) -> None:
        self._name, self._total = recipe.name, recipe.meta.iterations
        self._batch_size = recipe.meta.batch_size
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=messages,
            transient=True,
            refresh_per_second=4,
            disable=not messages.is_terminal,
        )
        self._task: TaskID | None = None
        self._shown = self._started = time.monotonic()
        self._first = self._done = 0
        self._told = ""
        self._mean: float | None = None

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, iteration: int, record: dict[str, Any]) -> None:
        """See `Watcher`."""
        now = time.monotonic()
        if self._task is None:
            # The first iteration also prepares: the rate counts from its end.
            self._first, self._started = iteration, now
            self._task = self._bar.add_task(self._name, total=self._total, completed=iteration, state="")
        self._done = iteration
        key, name, memory = (
            ("return_after", "return", 0.8) if "return_after" in record else ("query_loss", "loss", 0.99)
        )
        if key in record:
            value = record[key]
            self._mean = value if self._mean is None else memory * self._mean + (1 - memory) * value
            self._told = f"{name} {self._mean:.4g}"
        rate = (iteration - self._first) * self._batch_size / max(now - self._started, 1e-9)
        if "val_score" in record and not messages.is_terminal:
            shown = ", ".join(f"{k} {v:.4g}" for k, v in record.items() if k not in ("val_score", "val_steps"))
            say(
                f"{self._name}: iteration {iteration} of {self._total}, {self._told}, {shown}, {_rate(rate)} tasks/s",
                messages,
            )
        if now - self._shown > 0.2 or iteration == self._total:
            self._shown = now
            self._bar.update(self._task, completed=iteration, state=f"{self._told}  {_rate(rate)} tasks/s")


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def main() -> None:
    """Run the command line; errors that fewstep raises on purpose are one message and an exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fewstep").setLevel(logging.INFO)
    keep_freed_memory()
    try:
        app(prog_name="fewstep")
    except Interrupted as error:
        say(str(error), messages)
        sys.exit(130)
    except FewstepError as error:
        say(f"Error: {error}", messages)
        sys.exit(1 if isinstance(error, NonFiniteError) else 2)
    except (MemoryError, RuntimeError) as error:
        if not (type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "allocate memory" in str(error)):
            raise
        reason = str(error).partition("\n")[0]
        say(
            f"Error: the memory does not suffice: {reason}. Lower meta.batch_size or the model's size, or compute "
            "fewer tasks together (execution.chunk_size).",
            messages,
        )
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        # A folder that cannot be written, a disk that is full: no fault of the program.
        say(f"Error: {error.filename or 'the file system'}: {error.strerror}", messages)
        sys.exit(2)


if __name__ == "__main__":
    main()
