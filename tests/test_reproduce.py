"""The paper's tables, measured again: only what is missing is done."""

from __future__ import annotations

import pytest

from fewstep.errors import RecipeError
from fewstep.experiments.recipe_files import bundled_recipes, load_recipe
from fewstep.experiments.train_run import train as train_run
from fewstep.reporting.reproduction import reproduction_table, returns_figure
from fewstep.reporting.tables import plain
from fewstep.reproduce import TABLES, reproduce

SMALL = ["evaluate.tasks=5", "validation={every=10, tasks=4}", "evaluate.tune_inner_lr=[]"]


class Trainer:
    """Trains small versions; counts what it is asked for."""

    def __init__(self):
        self.iterations = []

    def __call__(self, recipe, folder):
        self.iterations.append(recipe.meta.iterations)
        train_run(recipe, out=folder, settings=SMALL, resume=True)


def rows(tmp_path, train, **options):
    return list(reproduce("table2", tmp_path, train, only="sinusoid-[1p]*", **options))


def test_every_row_has_a_recipe_that_tests_the_steps_that_are_told():
    for row in (row for table in TABLES.values() for row in table):
        recipe = load_recipe(row.recipe, row.settings)
        assert max(row.steps) <= recipe.evaluate.steps
        assert row.recipe in bundled_recipes()


def test_runs_are_trained_evaluated_and_told_beside_the_paper(tmp_path):
    maml, pretrained = rows(tmp_path, Trainer(), iterations=20)
    table = plain(reproduction_table("Table 2", [maml, pretrained]))
    assert "0.67 / 0.38 / 0.35" in table
    assert "2.41 / 2.23 / 2.19" in table
    assert {path.name for path in tmp_path.iterdir()} == {"sinusoid-10shot-seed0", "sinusoid-pretrained-seed0"}
    assert [row.iterations for row in (maml, pretrained)] == [20, 20]
    assert len(maml.evaluations[0]["steps"]) == 11


def test_what_would_be_trained_is_listed_and_nothing_trained(fewstep, tmp_path):
    rows(tmp_path / "runs", Trainer(), iterations=20)
    code, out, _ = fewstep("reproduce", "table2", "--list", "--only", "sinusoid-*")
    lines = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line.lstrip().startswith("sinusoid-")}
    assert code == 0
    assert lines["sinusoid-10shot"] == ["20", "70,000"]
    assert lines["sinusoid-averaging"][0] == "0"
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert "must be one of figure4, figure5, table1" in fewstep("reproduce", "table9", "--list")[2]


def test_returns_are_told_beside_the_papers_figures(tmp_path):
    train = Trainer()
    first, again = (list(reproduce("figure4", tmp_path, train, only="navigation-random")) for _ in range(2))
    lines = plain(reproduction_table("Figure 4", first)).splitlines()
    rows = [line.split("random")[-1].split()[:2] for line in lines if line.split() and "-" in line and "." in line]
    assert rows == [["0", "-82.66"], ["1", "-57.96"], ["2", "-53.84"], ["3", "-46.81"], ["4", "-42.91"]]
    assert first == again
    returns_figure("Figure 4", first, tmp_path / "figure4.png")
    assert (tmp_path / "figure4.png").read_bytes().startswith(b"\x89PNG")
    assert first[0].evaluations[0]["trajectories"] == 40
    assert len(list(tmp_path.rglob("evaluations/*.json"))) == 1


def test_what_is_there_is_used_and_longer_runs_go_on(tmp_path):
    train = Trainer()
    first = rows(tmp_path, train, iterations=20)
    again = rows(tmp_path, train, iterations=10)  # less than there is: left as it is
    assert train.iterations == [20, 20, 20, 20]
    assert [row.evaluations for row in again] == [row.evaluations for row in first]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("evaluations/*.json")}
    rows(tmp_path, train, iterations=20)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("evaluations/*.json")}
    longer = rows(tmp_path, train, iterations=30)
    assert [row.iterations for row in longer] == [30, 30]


@pytest.mark.parametrize(("table", "only", "names"), [("table9", "*", "table2"), ("table2", "nothing", "averaging")])
def test_an_unknown_table_or_recipe_is_refused_with_those_there_are(tmp_path, table, only, names):
    with pytest.raises(RecipeError, match=names):
        list(reproduce(table, tmp_path, Trainer(), only=only))


def test_nothing_to_reproduce_is_an_error(fewstep):
    code, _, err = fewstep("reproduce", "")
    assert code == 2
    assert "What to reproduce must be one of" in err
