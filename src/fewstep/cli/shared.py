"""What commands share: where they print, and arguments that several take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from fewstep.names import Checkpoint

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
    typer.Option(help="Where data sets lie (else FEWSTEP_DATA), or a folder or table of your own."),
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a recipe value; may be repeated.")
]
SplitOption = Annotated[Literal["val", "test"], typer.Option(help="Which tasks.")]
CheckpointOption = Annotated[Checkpoint, typer.Option(help="Best by validation, or final.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ...")]


def say(text: str, console: Console = output) -> None:
    """Print a line as it is: nothing in it is markup, and no width breaks it."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)
