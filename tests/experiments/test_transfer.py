"""A run, tested on the tasks of another recipe."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import fewstep
from fewstep.errors import RecipeError
from fewstep.experiments.evaluate_run import evaluate
from fewstep.experiments.transfer import transferred
from fewstep.reporting.groups import grouped_by_seed
from fewstep.reporting.published import published
from fewstep.reporting.tables import evaluation_table, plain

GLYPHS = {
    "name": "tiny-glyphs",
    "tasks": {"kind": "glyphs", "ways": 2, "queries": 2},
    "model": {"kind": "convnet", "filters": 2, "blocks": 2},
    "algorithm": {"kind": "fomaml", "inner_lr": 0.1},
    "meta": {"iterations": 1, "batch_size": 2},
    "evaluate": {"tasks": 3, "steps": 2},
    "execution": {"over_tasks": "sequential"},
}


@pytest.fixture
def drawings(tmp_path):
    """A recipe of the user's own drawings, in the shape of glyphs."""
    for number in range(9):
        place = tmp_path / "mine" / f"class {number}"
        place.mkdir(parents=True)
        for picture in range(3):
            image = Image.new("L", (12, 12), 255)
            image.paste(20 * number, (3, 3, 9, 5 + picture))
            image.save(place / f"{picture}.png")
    tasks = {"kind": "folder", "path": str(tmp_path / "mine"), "ways": 2, "shots": 1, "queries": 2}
    tasks |= {"channels": 1, "image_size": 28, "invert": "auto", "fractions": [0.4, 0.3, 0.3]}
    return GLYPHS | {
        "name": "my/drawings",
        "tasks": tasks,
        "evaluate": {"tasks": 4, "steps": 1, "tune_inner_lr": [0.1, 10.0]},
    }


@pytest.fixture
def run(few_scripts, tmp_path):
    return fewstep.train(GLYPHS, out=tmp_path / "run")


def test_a_run_is_evaluated_as_the_other_recipe_says_with_its_own_step_size(run, drawings):
    result = fewstep.evaluate(run, tasks_from=drawings)
    assert (result["recipe"], result["tasks_from"]) == ("tiny-glyphs", "my/drawings")
    assert (result["tasks"], len(result["steps"]), result["queries"]) == (4, 2, 2)
    assert result["inner_lr"] == 0.1  # which the other would tune
    own = fewstep.evaluate(run)
    assert "tasks_from" not in own
    assert own["fingerprint"] != result["fingerprint"]
    names = [path.name for path in (run.path / "evaluations").glob("*.json")]
    assert sorted(name.startswith("tasks-from-my_drawings-test-") for name in names) == [False, True]


def test_tables_keep_the_tasks_of_others_apart_from_the_runs_own(run, drawings):
    same = drawings | {"evaluate": {"tasks": 3, "steps": 2}}
    fewstep.evaluate(run)
    fewstep.evaluate(run, tasks_from=same)
    entries = grouped_by_seed([run])
    assert len(entries) == 2
    table = plain(evaluation_table(entries))
    assert "tasks of" in table
    assert "my/drawings" in table
    assert "the run" in table
    alone = plain(evaluation_table([e for e in entries if "tasks_from" in e[1]]))
    assert "of my/drawings, not the run's own" in " ".join(alone.split())


def test_the_papers_numbers_are_not_put_beside_tasks_of_another_recipe(run):
    own = fewstep.evaluate(run) | {"recipe": "omniglot-5way-1shot", "algorithm": "maml", "ways": 5}
    assert published(own)
    assert published(own | {"tasks_from": "omniglot-5way-1shot"}) is None


def test_on_the_command_line_the_table_says_whose_tasks_they_are(run, drawings, fewstep, tmp_path):
    lines = [f"name = {json.dumps('drawings')}"]
    for section in ("tasks", "model", "algorithm", "evaluate"):
        values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in drawings[section].items())
        lines.append(f"{section} = {{ {values} }}")
    (tmp_path / "drawings.toml").write_text("\n".join(lines))
    code, out, _ = fewstep("evaluate", run.path, "--tasks-from", "drawings.toml")
    assert code == 0
    assert "of drawings, not the run's own" in " ".join(out.split())
    code, _, err = fewstep("evaluate", run.path, "--tasks-from", "omniglot-5way-1shot")
    assert code == 2
    assert "trained with ways 2, omniglot-5way-1shot has ways 5" in " ".join(err.split())


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ({"kind": "miniimagenet", "ways": 2}, "channels 1, image_size 28, .* has channels 3, image_size 84"),
        ({"kind": "glyphs", "ways": 3}, "ways 2, .* has ways 3"),
        ({"kind": "custom"}, "passed from Python"),
    ],
)
def test_tasks_of_another_shape_are_refused(run, tasks, told):
    other = GLYPHS | {"name": "other", "tasks": tasks}
    if tasks["kind"] == "custom":
        other |= {"model": {"kind": "custom"}, "loss": {"kind": "cross_entropy"}}
    with pytest.raises(RecipeError, match=told):
        evaluate(run, tasks_from=other)


def test_a_regression_is_refused_classes_and_takes_other_curves():
    from fewstep.experiments.recipe_files import load_recipe

    sine = load_recipe("sinusoid-10shot")
    with pytest.raises(RecipeError, match=r"inputs 1, targets 1.*no inputs, no targets"):
        transferred(sine, "omniglot-5way-1shot")
    recipe, name = transferred(sine, "dose-response")
    assert (recipe.tasks.kind, recipe.algorithm, name) == ("table", sine.algorithm, "dose-response")


@pytest.mark.parametrize(("trained", "other"), [("averaging", "10shot"), ("10shot", "averaging")])
def test_what_training_drew_from_is_no_matter_of_the_test(trained, other, tmp_path):
    small = ["meta.iterations=1", "evaluate.tasks=4", "model.hidden=[4]"]
    small += ["tasks.pool=2", "meta.batch_size=2"] if trained == "averaging" else []
    run = fewstep.train(f"sinusoid-{trained}", out=tmp_path / "run", settings=small)
    result = fewstep.evaluate(run, tasks_from=f"sinusoid-{other}", tasks=4)
    assert result["tasks"] == 4
