"""From a recipe's images to tasks, and what a run remembers of them."""

from __future__ import annotations

import csv
import json
import shutil
import statistics

import pytest
from PIL import Image

import fewstep
from fewstep.core.rng import generator
from fewstep.errors import DataError, RecipeError
from fewstep.experiments.build import build_model
from fewstep.experiments.data import load_data
from fewstep.experiments.recipe_files import load_recipe
from fewstep.reporting.reading import with_errors

TINY = ["meta.iterations=2", "meta.batch_size=2", "execution.over_tasks=sequential", "evaluate={tasks=2, steps=1}"]
RECIPE = """
tasks.kind = "folder"
tasks.path = "mine"
tasks.image_size = 8
tasks.channels = 1
tasks.invert = "auto"
tasks.ways = 2
tasks.fractions = [0.4, 0.3, 0.3]
model = { kind = "convnet", filters = 2, blocks = 2 }
algorithm = { kind = "fomaml", inner_lr = 0.1 }
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe beside a folder of ten classes with 2, 3, 4, ... pictures."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    for number in range(10):
        place = tmp_path / "mine" / f"class {number}"
        place.mkdir(parents=True)
        for picture in range(2 + number):
            image = Image.new("L", (12, 12), 255)
            image.paste(20 * number, (3, 3, 9, 5 + picture % 4))
            image.save(place / f"{picture}.png")
    (tmp_path / "mine.toml").write_text(RECIPE)
    return tmp_path / "mine.toml"


def test_a_folder_of_pictures_trains_resumes_and_evaluates(recipe, tmp_path):
    run = fewstep.train(recipe, out=tmp_path / "run", settings=TINY)
    record = json.loads((run.path / "data.json").read_text())
    assert record["counts"]["train"]["classes"] == 4
    assert sum(split["pictures"] for split in record["counts"].values()) == 65
    assert {split: len(names) for split, names in record["splits"].items()} == {"train": 4, "val": 3, "test": 3}
    assert record["preparation"]["invert"] == "auto"
    assert record["folder"] == str((tmp_path / "mine").resolve())
    fewstep.train(recipe, out=tmp_path / "run", settings=[*TINY, "meta.iterations=3"], resume=True)
    assert fewstep.evaluate(run)["tasks"] == 2


def test_pictures_that_moved_are_found_where_they_are_now(recipe, tmp_path):
    run = fewstep.train(recipe, out=tmp_path / "run", settings=TINY)
    before = fewstep.evaluate(run)
    (tmp_path / "mine").rename(tmp_path / "theirs")
    with pytest.raises(DataError, match="--data"):
        fewstep.evaluate(run)
    assert fewstep.evaluate(run, data=tmp_path / "theirs") == before


def test_a_table_that_moved_is_found_where_it_is_now(tmp_path, monkeypatch):
    rows = [f"{task},{x},{task * x}" for task in range(12) for x in range(8)]
    (tmp_path / "mine.csv").write_text("\n".join(["task,x,y", *rows]))
    recipe = {"tasks": {"kind": "table", "path": str(tmp_path / "mine.csv"), "task": "task", "inputs": ["x"]}}
    recipe["tasks"] |= {"targets": ["y"], "shots": 2, "queries": 2}
    recipe |= {"model": {"kind": "mlp", "hidden": [4]}, "algorithm": {"kind": "maml"}, "meta": {"iterations": 1}}
    run = fewstep.train(recipe, out=tmp_path / "run")
    before = fewstep.evaluate(run)
    (tmp_path / "mine.csv").rename(tmp_path / "theirs.csv")
    with pytest.raises(DataError, match="--data"):
        fewstep.evaluate(run)
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert fewstep.evaluate(run, data="theirs.csv") == before
    fewstep.train(recipe, out=run.path, data="theirs.csv", resume=True, settings=["meta.iterations=2"])


def test_a_recipe_trains_on_the_table_that_it_is_given(tmp_path):
    rows = [f"{task},{x},{task * x}" for task in range(12) for x in range(8)]
    for name, header in (("recipes.csv", "task,x,z"), ("given.csv", "task,x,y")):
        (tmp_path / name).write_text("\n".join([header, *rows]))
    recipe = {"tasks": {"kind": "table", "path": str(tmp_path / "recipes.csv"), "task": "task", "inputs": ["x"]}}
    recipe["tasks"] |= {"targets": ["y"], "shots": 2, "queries": 2}
    recipe |= {"model": {"kind": "mlp", "hidden": [4]}, "algorithm": {"kind": "maml"}, "meta": {"iterations": 1}}
    run = fewstep.train(recipe, out=tmp_path / "run", data=tmp_path / "given.csv")
    assert fewstep.evaluate(run) == fewstep.evaluate(run, data=tmp_path / "given.csv")  # it remembers


def test_tasks_of_many_sizes_are_known(tmp_path):
    rows = [f"{task},{x},{task * x}" for task in range(12) for x in range(8 + task)]
    (tmp_path / "mine.csv").write_text("\n".join(["task,x,y", *rows]))
    recipe = {"tasks": {"kind": "table", "path": str(tmp_path / "mine.csv"), "task": "task", "inputs": ["x"]}}
    recipe["tasks"] |= {"targets": ["y"], "shots": 2}
    recipe |= {"model": {"kind": "mlp", "hidden": [4]}, "algorithm": {"kind": "maml"}}
    for queries, ragged in ((6, False), (9, True), (None, True)):
        asked = [] if queries is None else [f"tasks.queries={queries}"]
        assert load_data(load_recipe(recipe, asked)).ragged is ragged


@pytest.mark.parametrize("name", ["sinusoid-10shot", "dose-response"])
def test_a_place_of_data_that_nothing_comes_from_is_refused(name, tmp_path):
    with pytest.raises(RecipeError, match=rf"{name} has none.*Leave it out"):
        fewstep.train(name, out=tmp_path / "run", data=tmp_path)


def test_pictures_that_changed_end_a_run(recipe, tmp_path):
    run = fewstep.train(recipe, out=tmp_path / "run", settings=TINY)
    shutil.copy(tmp_path / "mine" / "class 0" / "0.png", tmp_path / "mine" / "class 0" / "2.png")
    with pytest.raises(DataError, match="goes on with the data it was trained with"):
        fewstep.evaluate(run)


def test_the_stored_split_is_used_again_whatever_the_recipe_says(recipe):
    loaded = load_recipe(recipe)
    record = load_data(loaded).record
    moved = record | {"splits": {"train": record["splits"]["test"], "val": [], "test": record["splits"]["train"]}}
    assert load_data(loaded, stored=moved).record["splits"] == moved["splits"]


def test_classes_with_too_few_pictures_are_listed_by_name(recipe):
    data = load_data(load_recipe(recipe))
    [split] = [split for split, names in data.record["splits"].items() if "class 0" in names]
    with pytest.raises(
        RecipeError, match=rf"Split '{split}' is too small for such tasks.*fewer than 4: .*class 0 has 2.*Lower"
    ):
        data.distribution(split, 2, 2)


def test_the_data_of_miniimagenet_are_told_in_the_record(small_miniimagenet, shared_cache, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(shared_cache))
    data = load_data(load_recipe("miniimagenet-5way-1shot"), small_miniimagenet)
    assert data.record["counts"]["val"] == {"classes": 16, "pictures": 320, "fewest": 20, "most": 20}
    assert data.record["preparation"]["fit"] == "stretch"
    assert data.at_once == 5  # 50 tasks of such images fill a machine's memory
    tasks = data.distribution("test", 1, 2).sample(3, generator(0))
    assert tasks.query.inputs.shape == (3, 10, 3, 84, 84)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tasks.invert=true", None),
        ("tasks.channels=3", "tasks.invert goes with tasks.channels = 1"),
        ("tasks.channels=2", "tasks.channels"),
        ("tasks.image_size=0", "tasks.image_size"),
        (
            "tasks.size=8",
            "unknown key. Valid keys here: ways, shots, queries, rotate, kind, path, image_size, channels",
        ),
        ("tasks.fractions=[0.5, 0.5, 0.5]", "must sum to 1"),
        ("model.blocks=4", "model.blocks = 4 halve an image of 8 pixels to nothing: at most 3 leave one"),
        ("loss.kind=mse", "does not fit tasks.kind = 'folder'"),
    ],
)
def test_settings_of_a_folder_are_checked(recipe, setting, words):
    if words is None:
        assert load_recipe(recipe, [setting])
        return
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, [setting])
    assert words in str(error.value)


def test_more_pixels_allow_more_blocks():
    for pixels, blocks in ((84, 6), (28, 4), (8, 3)):
        for downsample in ("stride", "max_pool"):
            values = {
                "tasks": {"kind": "folder", "path": "x", "image_size": pixels},
                "model": {
                    "kind": "convnet",
                    "filters": 2,
                    "blocks": blocks,
                    "downsample": downsample,
                    "pool": "flatten",
                },
                "algorithm": {"kind": "maml"},
            }
            assert build_model(load_recipe(values)).head.in_features >= 2
            with pytest.raises(RecipeError, match="to nothing"):
                load_recipe(values, [f"model.blocks={blocks + 1}"])


def test_errors_of_a_table_are_told_for_each_target_in_its_own_unit(tmp_path):
    rows = [f"{t},{x},{t * x},{-1e6 * t * x**2}" for t in range(1, 13) for x in range(8)]
    (tmp_path / "t.csv").write_text("\n".join(["t,x,small,large", *rows]))
    columns = {"task": "t", "inputs": ["x"], "targets": ["small", "large"], "shots": 4}
    recipe = {
        "tasks": {"kind": "table", "path": str(tmp_path / "t.csv"), **columns},
        "model": {"kind": "mlp", "hidden": [8]},
        "loss": {"kind": "mse"},
        "algorithm": {"kind": "maml", "inner_lr": 0.01, "steps": 1},
        "meta": {"batch_size": 2, "iterations": 2},
        "evaluate": {"steps": 2},
    }
    run = fewstep.train(recipe, out=tmp_path / "run")
    found = fewstep.evaluate(run)
    assert found["tasks"] > 1  # pooled over them: the squared error is the mean of the targets'
    units = fewstep.standardization(run).target_std.tolist()
    for step, point in enumerate(found["steps"]):
        errors = [
            found["rmse"][name][step]["mean"] / unit for name, unit in zip(["small", "large"], units, strict=True)
        ]
        assert sum(error**2 for error in errors) / 2 == pytest.approx(point["mean"], rel=1e-5)
    assert found["rmse"]["large"][0]["mean"] > 1e4 * found["rmse"]["small"][0]["mean"]
    assert {"mse of small", "mse of large"}.isdisjoint(run.metrics()[-1])
    shown = [(each["metric"], each["steps"]) for _, each in with_errors("run", found)]
    assert [metric for metric, _ in shown] == ["standardised_mse", "rmse of small", "rmse of large"]
    assert shown[2][1] == found["rmse"]["large"]
    assert found["normalization"] is None  # there is none in the network
    (path,) = (run.path / "evaluations").glob("*.csv")
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert {line["task"] for line in lines} == set(json.loads((run.path / "data.json").read_text())["splits"]["test"])
    last = [float(line["rmse of large"]) for line in lines if line["step"] == "2"]
    assert statistics.fmean(error**2 for error in last) ** 0.5 == pytest.approx(
        found["rmse"]["large"][2]["mean"], rel=1e-5
    )


def table_recipe(path, rows, **tasks):
    path.write_text("\n".join(["t,x,y", *rows]))
    return {
        "tasks": {"kind": "table", "path": str(path), "task": "t", "inputs": ["x"], "targets": ["y"], **tasks},
        "model": {"kind": "mlp", "hidden": [4]},
        "loss": {"kind": "mse"},
        "algorithm": {"kind": "maml", "inner_lr": 0.01, "steps": 1},
        "meta": {"batch_size": 2, "iterations": 1},
        "evaluate": {"steps": 1},
    }


def test_the_half_width_of_a_root_is_that_of_the_mean_under_it(tmp_path):
    rows = [f"{t},{x},{t * x**2}" for t in range(24) for x in range(6)]
    found = fewstep.evaluate(fewstep.train(table_recipe(tmp_path / "t.csv", rows, shots=3), out=tmp_path / "run"))
    for root, square in zip(found["rmse"]["y"], found["steps"], strict=True):
        assert root["ci95"] / root["mean"] == pytest.approx(square["ci95"] / square["mean"] / 2, rel=1e-4)


def test_a_table_with_fewer_tasks_than_asked_for_says_so(tmp_path, caplog):
    rows = [f"{t},{x},{t * x}" for t in range(6) for x in range(6)]
    run = fewstep.train(table_recipe(tmp_path / "t.csv", rows, shots=3), out=tmp_path / "run")
    assert fewstep.evaluate(run, tasks=50)["tasks"] < 6
    assert "of 50 asked for" in caplog.text


def test_too_few_tasks_with_enough_rows_name_the_shots(tmp_path):
    rows = [f"{t},{x},{t * x}" for t in range(6) for x in range(6 if t < 2 else 3)]
    recipe = table_recipe(tmp_path / "t.csv", rows, shots=5, incomplete="drop")
    with pytest.raises(DataError, match=r"at least 3 tasks with 6 rows or more, tasks.shots \+ 1: got 2 of 6"):
        fewstep.train(recipe, out=tmp_path / "run")


def test_an_inner_rate_at_the_edge_of_those_tried_is_told_of(tmp_path, caplog):
    rows = [f"{t},{x},{x}" for t in range(12) for x in range(6)]
    recipe = table_recipe(tmp_path / "t.csv", rows, shots=3)
    recipe["evaluate"]["tune_inner_lr"] = [1e-8]
    fewstep.evaluate(fewstep.train(recipe, out=tmp_path / "run"))
    assert "is at the edge" not in caplog.text
    recipe["evaluate"]["tune_inner_lr"] = [1e-8, 1e-2, 1e4]
    fewstep.evaluate(fewstep.train(recipe, out=tmp_path / "cut"))
    assert "The best inner rate, 1e-08, is at the edge of evaluate.tune_inner_lr" in caplog.text


def test_an_evaluation_that_diverges_leaves_no_example_to_draw(tmp_path):
    rows = [f"{t},{x},{t * x}" for t in range(6) for x in range(6)]
    recipe = table_recipe(tmp_path / "t.csv", rows, shots=3)
    run = fewstep.train(recipe, out=tmp_path / "run")
    fewstep.evaluate(run, steps=1)
    assert (run.path / "illustration.json").exists()
    recipe["algorithm"]["inner_lr"] = 1e30
    recipe["meta"]["iterations"] = 0
    recipe["evaluate"]["steps"] = 4
    diverging = fewstep.train(recipe, out=tmp_path / "diverging")
    assert fewstep.evaluate(diverging)["steps"][-1]["mean"] is None
    assert not (diverging.path / "illustration.json").exists()


@pytest.mark.parametrize(
    "how", [{"steps": 2}, {"split": "val"}, {"tasks": 1}, {"checkpoint": "final"}, {"shots": 2}], ids=str
)
def test_an_evaluation_in_another_way_leaves_the_example_to_draw(tmp_path, how):
    rows = [f"{t},{x},{t * x}" for t in range(6) for x in range(6)]
    run = fewstep.train(table_recipe(tmp_path / "t.csv", rows, shots=3), out=tmp_path / "run")
    fewstep.evaluate(run)
    path = run.path / "illustration.json"
    marked = json.loads(path.read_text())
    marked[0]["left"] = True
    path.write_text(json.dumps(marked))
    fewstep.evaluate(run, **how)
    assert json.loads(path.read_text()) == marked
    marked[0]["iteration"] -= 1  # training has gone on since
    path.write_text(json.dumps(marked))
    fewstep.evaluate(run, **how)
    assert ("left" in json.loads(path.read_text())[0]) == ("checkpoint" in how)
    path.unlink()
    fewstep.evaluate(run, **how)
    assert path.exists()


def test_rows_of_a_table_are_divided_anew_and_averaged(tmp_path):
    rows = [f"{task},{x},{task * x}" for task in range(12) for x in range(8)]
    (tmp_path / "mine.csv").write_text("\n".join(["task,x,y", *rows]))
    recipe = {"tasks": {"kind": "table", "path": str(tmp_path / "mine.csv"), "task": "task", "inputs": ["x"]}}
    recipe["tasks"] |= {"targets": ["y"], "shots": 2, "queries": 2}
    recipe |= {"model": {"kind": "mlp", "hidden": [4]}, "algorithm": {"kind": "maml"}, "meta": {"iterations": 3}}
    recipe |= {"evaluate": {"steps": 1}}
    run = fewstep.train(recipe, out=tmp_path / "run")
    once, often = fewstep.evaluate(run), fewstep.evaluate(run, repeats=3)
    assert often["repeats"] == 3
    assert often["fingerprint"] != once["fingerprint"]
    assert often["steps"] != once["steps"]
    names = {repeats: fewstep.evaluate(run, repeats=repeats)["per_task"] for repeats in (1, 3)}
    tables = {
        repeats: list(csv.DictReader((run.path / "evaluations" / name).read_text().splitlines()))
        for repeats, name in names.items()
    }
    assert [row["task"] for row in tables[1]] == [row["task"] for row in tables[3]]
    mean = statistics.fmean(float(row["standardised_mse"]) for row in tables[3] if row["step"] == "1")
    assert often["steps"][1]["mean"] == pytest.approx(mean, rel=1e-5)
    with pytest.raises(RecipeError, match=r"it has \d, and evaluate\.tasks \(--tasks\) asks for 1"):
        fewstep.evaluate(run, tasks=1, repeats=8)
    sine = fewstep.train("sinusoid-10shot", out=tmp_path / "sine", settings=["meta.iterations=1"])
    with pytest.raises(RecipeError, match=r"raise evaluate\.tasks"):
        fewstep.evaluate(sine, repeats=2)


def test_a_resume_that_names_another_table_is_compared_with_that(tmp_path):
    for name, factor in (("one", 1), ("copy", 1), ("two", 2)):
        rows = [f"{task},{x},{factor * task * x}" for task in range(12) for x in range(8)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["task,x,y", *rows]))
    recipe = {"tasks": {"kind": "table", "path": str(tmp_path / "one.csv"), "task": "task", "inputs": ["x"]}}
    recipe["tasks"] |= {"targets": ["y"], "shots": 2, "queries": 2}
    recipe |= {"model": {"kind": "mlp", "hidden": [4]}, "algorithm": {"kind": "maml"}, "meta": {"iterations": 2}}
    fewstep.train(recipe, out=tmp_path / "run")
    for more in ("2", "4"):
        settings = {"tasks.path": str(tmp_path / "two.csv"), "meta.iterations": int(more)}
        with pytest.raises(DataError, match=r"two\.csv holds others"):
            fewstep.train(recipe, out=tmp_path / "run", settings=settings, resume=True)
    settings = {"tasks.path": str(tmp_path / "copy.csv"), "meta.iterations": 4}
    assert fewstep.train(recipe, out=tmp_path / "run", settings=settings, resume=True).is_finished
