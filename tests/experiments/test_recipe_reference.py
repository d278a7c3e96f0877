from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.experiments.recipe_files import load_recipe
from fewstep.experiments.recipe_reference import reference


def rows():
    lines = [line for line in reference().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_of_the_documentation_says_what_the_command_says():
    page = Path(__file__).parents[2] / "docs" / "recipes.md"
    assert page.read_text(encoding="utf-8") == reference(), (
        "python -m fewstep.experiments.recipe_reference > docs/recipes.md"
    )


def test_every_key_has_values_and_a_meaning():
    assert len(rows()) > 90
    incomplete = [row[0] for row in rows() if len(row) != 4 or not row[1] or not row[3]]
    assert incomplete == []


@pytest.mark.parametrize("key", ["model.hidden", "model.init", "meta.iterations", "loss.scale", "evaluate.seed"])
def test_defaults_are_those_that_a_recipe_gets(key: str):
    (shown,) = {row[2].strip("`") for row in rows() if row[0] == f"`{key}`"}
    sine = {"tasks": {"kind": "sinusoid"}, "model": {"kind": "mlp"}, "algorithm": {"kind": "maml"}}
    assert load_recipe(sine, [f"{key}={shown}"]) == load_recipe(sine)


def test_the_command_prints_every_section(fewstep):
    code, out, _ = fewstep("recipes", "--keys")
    assert code == 0
    assert all(
        key in out for key in ("tasks.shots", "algorithm.inner_lr", "evaluate.tune_inner_lr", "execution.threads")
    )
