"""Tables with input columns that hold categories: from the recipe to predictions of new tasks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import fewstep
from fewstep import FewShotClassifier, FewShotRegressor, predict_table
from fewstep.core.rng import generator
from fewstep.errors import DataError, RecipeError
from fewstep.experiments.recipe_files import load_recipe
from fewstep.experiments.transfer import task_shape

from .written import write_table

if TYPE_CHECKING:
    from pathlib import Path

SALTS = ["NaCl", "KCl", "LiCl"]
RECIPE: dict[str, Any] = {
    "name": "melting",
    "tasks": {
        "kind": "table",
        "task": "lab",
        "inputs": ["salt", "dose"],
        "targets": ["heat"],
        "categories": {"salt": SALTS},
        "shots": 8,
        "queries": 8,
    },
    "model": {"kind": "mlp", "hidden": [16]},
    "algorithm": {"kind": "maml", "inner_lr": 0.1, "steps": 2},
    "meta": {"iterations": 200, "batch_size": 10, "lr": 0.01},
}


def rows_of(lab: int) -> list[list[str]]:
    """What a salt gives, the same in all labs, is most of it; each lab adds its own."""
    stream = generator(0, "lab", lab)
    own = torch.randn(1, generator=stream).item()
    rows: list[list[str]] = []
    for place in range(16):
        dose = torch.rand(1, generator=stream).item()
        rows.append([f"l{lab}", f"{dose:.4f}", SALTS[place % 3], f"{100 * (place % 3) + 10 * own + 5 * dose:.4f}"])
    return rows


def write(path: Path, labs: Any, drop: Any = ()) -> Path:
    rows = (row for lab in labs for row in rows_of(lab))
    return write_table(path, ["lab", "dose", "salt", "heat"], rows, drop)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("categories")
    tasks = RECIPE["tasks"] | {"path": str(write(folder / "labs.csv", range(40)))}
    return fewstep.train(RECIPE | {"tasks": tasks}, out=folder / "run").path


def test_what_a_category_gives_is_learned_and_predicted(run, tmp_path):
    support = write(tmp_path / "s.csv", [100], drop=range(8, 16))
    found = predict_table(run, support, support)
    assert found.known == {}
    truth = torch.tensor([float(row[3]) for row in rows_of(100)]).reshape(-1, 1)
    assert (found.targets - truth).square().mean().sqrt() < 25  # without the salt some 80
    assert found.inputs[0].tolist() == [1, 0, 0, float(rows_of(100)[0][1])]


def test_predictions_are_shown_with_the_names_of_categories(fewstep, run, tmp_path):
    support, queries = write(tmp_path / "s.csv", [100]), tmp_path / "q.csv"
    queries.write_text("lab,note,salt,dose\nl100,new,LiCl,0.5\n")
    code, out, _ = fewstep("adapt", run, "--support", support, "--predict", queries, "--out", tmp_path / "p.csv")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if "l100" in line and "LiCl" in line] == [
        ["l100", "LiCl", "0.5"]
    ]
    header, row = (tmp_path / "p.csv").read_text().splitlines()
    assert header == "lab,note,salt,dose,predicted_heat"
    assert row.startswith("l100,new,LiCl,0.5,")
    queries.write_text("lab,salt,dose\nl100,MgCl,0.5\n")
    code, _, err = fewstep("adapt", run, "--support", support, "--predict", queries)
    assert code == 2
    assert "'MgCl'" in err


def test_the_estimator_takes_indicators_and_says_which(run):
    rows = rows_of(100)
    X = np.array([[*(float(row[2] == salt) for salt in SALTS), float(row[1])] for row in rows])
    y = np.array([float(row[3]) for row in rows])
    assert FewShotRegressor.from_run(run).fit(X[:8], y[:8]).score(X[8:], y[8:]) > 0.8
    with pytest.raises(ValueError, match=r"4 in X .* in the order of the recipe: salt=NaCl, salt=KCl, salt=LiCl, dose"):
        FewShotRegressor.from_run(run).fit(X[:, 2:], y)
    for wrong in (X[:, ::-1], (X - X.mean(0)) / X.std(0), np.where(X == 1, 0, X)):
        with pytest.raises(
            ValueError, match=r"those of 'salt' are not\. Give the columns salt=NaCl, salt=KCl, salt=LiCl"
        ):
            FewShotRegressor.from_run(run).fit(wrong, y)


def test_tasks_of_other_categories_have_another_shape():
    def shape(inputs: list[str], **categories: list[str]) -> Any:
        tasks = RECIPE["tasks"] | {"path": "t.csv", "inputs": inputs, "categories": categories}
        return task_shape(load_recipe(RECIPE | {"tasks": tasks}))

    first = shape(["salt", "dose", "kind"], salt=SALTS, kind=["a", "b"])
    assert first["inputs"] == 6
    assert first == shape(["salt", "dose", "kind"], kind=["a", "b"], salt=SALTS)
    assert first != shape(["salt", "dose", "kind"], salt=SALTS[::-1], kind=["a", "b"])
    assert first != shape(["dose", "salt", "kind"], salt=SALTS, kind=["a", "b"])


@pytest.mark.parametrize(
    ("categories", "fault"),
    [
        ({"heat": ["a", "b"]}, r"tasks\.categories must be those of input columns, 'salt', 'dose': got 'heat'"),
        ({"salt": ["a", "a"]}, r"different and not empty: got \['a', 'a'\] for 'salt'"),
        ({"salt": ["a", " "]}, r"different and not empty: got \['a', ''\] for 'salt'"),
        ({"salt": ["a"]}, r"tasks\..*categories\.salt"),
    ],
)
def test_categories_that_cannot_be_are_refused(categories, fault):
    with pytest.raises(RecipeError, match=fault):
        load_recipe(RECIPE | {"tasks": RECIPE["tasks"] | {"path": "t.csv", "categories": categories}})


def test_settings_from_python_may_name_any_column():
    tasks = RECIPE["tasks"] | {"path": "t.csv", "inputs": ["temp. class", "a=b"], "categories": {}}
    categories = {"temp. class": ["low", "high"], "a=b": [True, False]}
    for settings in ({"tasks.categories": categories}, {"tasks": {"categories": categories}}):
        recipe = load_recipe(RECIPE | {"tasks": tasks}, settings)
        assert recipe.tasks.categories == {"temp. class": ["low", "high"], "a=b": ["True", "False"]}


def test_categories_that_training_never_sees_are_told(tmp_path, caplog):
    path, wider = write(tmp_path / "t.csv", range(10)), [*SALTS, "RbCl"]
    tasks = RECIPE["tasks"] | {"path": str(path), "categories": {"salt": wider}}
    fewstep.train(RECIPE | {"tasks": tasks, "meta": {"iterations": 1}}, out=tmp_path / "run")
    assert "No row for meta-training is of 'salt=RbCl': nothing is learned of it" in caplog.text
    assert "salt=KCl" not in caplog.text


def test_classes_and_categories_go_together(tmp_path):
    path = tmp_path / "t.csv"
    lines = (f"l{i % 8},{i % 7},{SALTS[i % 3]},{'hot' if i % 3 else 'cold'}\n" for i in range(160))
    path.write_text("lab,dose,salt,heat\n" + "".join(lines))
    tasks = RECIPE["tasks"] | {"path": str(path), "classes": ["hot", "cold"]}
    recipe = RECIPE | {"tasks": tasks, "meta": RECIPE["meta"] | {"batch_size": 4, "iterations": 50}}
    run = fewstep.train(recipe, out=tmp_path / "run").path
    found = predict_table(run, path, path, steps=5)
    assert found.labels[:6] == ["cold", "hot", "hot"] * 2
    X, y = found.inputs.numpy(), np.array(["cold", "hot", "hot"] * 54)[:160]
    assert FewShotClassifier.from_run(run).fit(X[:30], y[:30]).score(X, y) > 0.9


def test_a_run_from_before_there_were_categories_goes_on(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("lab,dose,heat\n" + "".join(f"l{i % 5},{i},{i}\n" for i in range(60)))
    tasks = RECIPE["tasks"] | {"path": str(path), "inputs": ["dose"], "categories": {}, "shots": 2, "queries": 2}
    run = fewstep.train(RECIPE | {"tasks": tasks, "meta": {"iterations": 2}}, out=tmp_path / "run").path
    stored = json.loads((run / "config.json").read_text())
    del stored["recipe"]["tasks"]["categories"]
    (run / "config.json").write_text(json.dumps(stored))
    settings = {"meta.iterations": 3}
    recipe = RECIPE | {"tasks": tasks, "meta": {"iterations": 2}}
    assert len(fewstep.train(recipe, out=run, settings=settings, resume=True).metrics()) > 0
    assert fewstep.evaluate(run)["iteration"] in (1, 2, 3)


def test_whole_numbers_may_be_categories(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("lab,dose,salt,heat\n" + "".join(f"l{i % 5},{i},{i % 2},{i}\n" for i in range(60)))
    tasks = RECIPE["tasks"] | {"path": str(path), "shots": 2, "queries": 2}
    one = RECIPE | {"meta": {"iterations": 1}}
    assert fewstep.train(one | {"tasks": tasks | {"categories": {"salt": [0, 1]}}}, out=tmp_path / "run").path.exists()
    with pytest.raises(DataError, match=r"cells of 'salt' .* '0', '2': got '1'"):
        fewstep.train(one | {"tasks": tasks | {"categories": {"salt": [0, 2]}}}, out=tmp_path / "other")
