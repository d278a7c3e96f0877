"""Commands that use a run on tasks of the user's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fewstep.cli.shared import DeviceOption, messages, output, say
from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fewstep.adapting.classifier import Prediction


class ExportName(StrEnum):
    """Formats for other programs: lists of choices must be enumerations."""

    onnx = "onnx"
    torch = "torch"


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
    from fewstep.adapting.tables import check_file, predict_table
    from fewstep.reporting.tables import rows_table

    if predict is None:
        raise FewstepError(
            "A run on a table needs rows to predict: give --predict, a CSV or Parquet file with the columns for task "
            "and inputs."
        )
    file = out or Path("adapted") / f"{predict.stem}-predicted.csv"
    check_file(file)
    with messages.status("Adapting"):
        found = predict_table(run, support, predict, steps=steps, device=device)
    found.write(file)
    output.print(rows_table(found.header(), found.rows()))
    counts = ", ".join(f"{name} ({rows})" for name, rows in found.support.items())
    note = f"Adapted to {counts}; steps {found.steps}."
    say(note)
    rows = len(found.tasks)
    if found.classes:
        for name, error in found.errors.items():
            say(f"{name}: {round((1 - error) * found.known[name])} of {found.known[name]} are right.")
    elif found.errors:
        errors = ", ".join(
            f"{name} {error:.4g}" + (f" (of {found.known[name]} of {rows} rows)" if found.known[name] < rows else "")
            for name, error in found.errors.items()
        )
        say(f"Root mean squared error, in your units: {errors}")
    say(f"Wrote {file}")


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
