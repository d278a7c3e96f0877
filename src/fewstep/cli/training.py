"""Commands that train, or tell how to."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.progress import train_one
from fewstep.cli.shared import DataOption, DeviceOption, RecipeArgument, SettingsOption, messages, output, say
from fewstep.errors import RecipeError

if TYPE_CHECKING:
    from fewstep.experiments.config import Recipe


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, to be shown as a file.")] = None,
    *,
    keys: Annotated[bool, typer.Option("--keys", help="Show every key of a recipe, with values and defaults.")] = False,
) -> None:
    """List the bundled recipes, show one, or all that a recipe may say."""
    from fewstep.experiments.recipe_files import bundled_recipes, bundled_text
    from fewstep.reporting.tables import recipes_table

    if name is not None and keys:
        raise RecipeError("Give a NAME, to see its file, or --keys, to see all that a recipe may say: not both.")
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


def train(
    recipe: RecipeArgument,
    settings: SettingsOption = None,
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
    if seeds is not None and out is not None and out.name in ("", ".."):
        raise RecipeError(
            f"With --seeds, --out must end in a name, to which each seed is added: got {str(out)!r}. Give one, such as "
            "runs/many."
        )
    with messages.status("Loading"):
        from fewstep.experiments.resuming import existing_run, with_recorded_choices
    chosen = _seeds(seeds) if seeds is not None else [seed]
    jobs: list[tuple[list[str], Recipe, Path]] = []
    for number in chosen:
        asked = [*(settings or []), *([] if number is None else [f"seed={number}"])]
        loaded = load_recipe(recipe, asked)
        folder = Path("runs") / f"{loaded.name}-seed{loaded.seed}" if out is None else out
        if out is not None and seeds is not None:
            folder = out.with_name(f"{out.name}-seed{loaded.seed}")
        if resume and not (folder / "config.json").exists():
            say(f"There is no run in {folder} to go on with: it begins", messages)
        if resume:
            loaded = load_recipe(recipe, with_recorded_choices(folder, asked))
        jobs.append((asked, loaded, folder))
    if len(jobs) > 1:
        for _, loaded, folder in jobs:  # before hours go by
            existing_run(folder, loaded, resume)
    for asked, loaded, folder in jobs:
        again = ["fewstep", "train", recipe, *(word for setting in settings or [] for word in ("--set", setting))]
        again += ["--seed", str(loaded.seed)] if seeds is None else ["--seeds", seeds]
        again += [*(["--data", str(data)] if data else []), *(["--device", device] if device != "cpu" else [])]
        place = folder if seeds is None else out
        again += [*(["--out", str(place)] if place else []), "--resume"]
        train_one(loaded, folder, shlex.join(again), data, device, resume, recipe, asked)
        say(f"Trained {loaded.name}: {folder}")
        say(f"Next: fewstep evaluate {folder}")


def _seeds(text: str) -> list[int | None]:
    try:
        numbers: list[int | None] = [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--seeds must be whole numbers with commas between: got {text!r}.") from None
    if len(set(numbers)) < len(numbers):
        raise RecipeError(f"--seeds must differ from each other: got {text!r}.")
    return numbers


def tune(
    recipe: RecipeArgument,
    settings: SettingsOption = None,
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


def demo(out: Annotated[Path, typer.Option(help="Folder for the runs and figures.")] = Path("demo")) -> None:
    """Meta-train on sinusoids in about a minute, beside pretraining and the oracle."""
    from fewstep.demo import demo as run_demo

    run_demo(out, output, train=train_one)
