"""The command line. Torch is imported by the commands that need it, not by `fewstep --help`."""

from __future__ import annotations

import logging
import sys
from importlib import metadata
from typing import Annotated

import typer

from fewstep.cli.adapting import adapt, predict
from fewstep.cli.datasets import check_data, miniimagenet_data, omniglot_data
from fewstep.cli.results import compare, evaluate, inspect, plot, render, reproduce
from fewstep.cli.shared import messages, say
from fewstep.cli.training import demo, recipes, train, tune
from fewstep.errors import FewstepError, Interrupted, NonFiniteError
from fewstep.memory import is_out_of_memory, keep_freed_memory

__all__ = ["app", "main"]

app = typer.Typer(
    name="fewstep",
    help="Few shots, few steps: model-agnostic meta-learning for any PyTorch module.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Look at data sets, and get them.", no_args_is_help=True, rich_markup_mode=None)

for command in (recipes, train, tune, evaluate, inspect, compare, plot, render, reproduce, adapt, predict, demo):
    app.command()(command)
for name, command in {"check": check_data, "omniglot": omniglot_data, "miniimagenet": miniimagenet_data}.items():
    data.command(name)(command)
app.add_typer(data, name="data")


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
        if not is_out_of_memory(error):
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
