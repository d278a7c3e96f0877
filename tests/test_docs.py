"""The documents' Python runs as it stands, and their commands and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from fewstep import cli
from fewstep.experiments.recipe_files import bundled_recipes, load_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    if page.name == "README.md":
        import torch

        error = names["adapted"](torch.tensor([[0.5]])) - 3 * torch.sin(torch.tensor(-0.5))
        assert error.abs() < 1.0
        assert names["curves"]["loss"].shape == (200, 4)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_of_a_page_is_one_that_exists(page):
    commands = typer.main.get_command(cli.app)
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["fewstep"]:
                continue
            command = commands.commands[words[1]]
            options = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, line
            if words[1] == "train" and not words[2].endswith(".toml"):
                settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
                assert load_recipe(words[2], settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_recipes_are_ones_that_can_run(tmp_path):
    for text, kind in zip(blocks(ROOT / "README.md", "toml"), ("table", "folder"), strict=True):
        (tmp_path / "mine.toml").write_text(text)
        assert load_recipe(tmp_path / "mine.toml").tasks.kind == kind


def test_results_name_recipes_that_exist():
    for page in PAGES:
        for name in re.findall(r"fewstep train ([\w-]+)", page.read_text(encoding="utf-8")):
            assert name in (*bundled_recipes(), "mine", "pictures", "RECIPE", "NAME"), name
