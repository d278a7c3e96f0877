"""The demonstration: sinusoids learned from few points in few steps, beside the paper's baselines."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from fewstep.experiments.config import Recipe

ITERATIONS = 6_000
RECIPES = {"MAML": "sinusoid-10shot", "pretrained": "sinusoid-pretrained", "oracle": "sinusoid-oracle"}


def demo(out: Path, console: Console, train: Callable[..., None]) -> None:
    """Train MAML, the pretrained baseline and the oracle briefly; evaluate all on the same 600 unseen tasks.

    Args:
        out: Folder for runs and figures; runs that are there already are used.
        console: Where the table goes.
        train: Trains one recipe into a folder, with progress.
    """
    from fewstep.experiments.evaluate_run import evaluate
    from fewstep.experiments.recipe_files import load_recipe
    from fewstep.reporting.plots import adaptation_figure, learning_curve_figure
    from fewstep.reporting.reading import illustrations
    from fewstep.reporting.tables import evaluation_table
    from fewstep.training.records import RunFolder

    settings = [f"meta.iterations={ITERATIONS}", f"validation.every={ITERATIONS // 4}", "evaluate.shots=10"]
    folders: dict[str, Path] = {}
    for label, name in RECIPES.items():
        recipe: Recipe = load_recipe(name, settings)
        folders[label] = out / name
        train(recipe, folders[label], shlex.join(["fewstep", "demo", "--out", str(out)]), None, "cpu", True)
    entries = [(label, evaluate(folder)) for label, folder in folders.items()]
    console.print(evaluation_table(entries, steps=[0, 1, 5, 10]))
    runs = {label: RunFolder(folder) for label, folder in folders.items() if label != "oracle"}
    adaptation_figure({label: illustrations(run)[0] for label, run in runs.items()}, out / "adaptation.png")
    learning_curve_figure(entries, out / "steps.png")
    for what, name in (
        ("Predictions before and after adaptation", "adaptation.png"),
        ("Error against gradient steps", "steps.png"),
    ):
        console.print(f"{what}: {out / name}", highlight=False, soft_wrap=True)
