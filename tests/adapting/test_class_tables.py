"""Tables whose target is a class: from the recipe to predictions of new tasks."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import fewstep
from fewstep import FewShotClassifier, FewShotRegressor, predict_table
from fewstep.core.rng import generator
from fewstep.errors import DataError, RecipeError
from fewstep.experiments.recipe_files import load_recipe

from .written import write_table

RECIPE = {
    "name": "machines",
    "tasks": {
        "kind": "table",
        "task": "machine",
        "inputs": ["load", "heat"],
        "targets": ["fault"],
        "classes": ["yes", "no"],
        "shots": 6,
        "queries": 6,
    },
    "model": {"kind": "mlp", "hidden": [16]},
    "algorithm": {"kind": "maml", "inner_lr": 0.3, "steps": 2},
    "meta": {"iterations": 100, "batch_size": 10, "lr": 0.01},
}


def rows_of(machine: int) -> list[list[str]]:
    """A machine fails under more load than is usual for it, the less the warmer it is."""
    stream = generator(0, "machine", machine)
    usual, noise = 3 * torch.randn(1, generator=stream).item(), torch.randn(16, 2, generator=stream)
    return [
        [f"m{machine}", f"{usual + load:.3f}", f"{heat:.3f}", "yes" if 2 * load > heat else "no"]
        for load, heat in noise.tolist()
    ]


def write(path, machines, drop=()):
    rows = (row for machine in machines for row in rows_of(machine))
    return write_table(path, ["machine", "load", "heat", "fault"], rows, drop)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    tasks = RECIPE["tasks"] | {"path": str(write(folder / "machines.csv", range(40)))}
    return fewstep.train(RECIPE | {"tasks": tasks}, out=folder / "run").path


def test_a_run_on_classes_is_told_in_accuracy_and_adapts(run):
    result = fewstep.evaluate(run, repeats=5)
    before, *_, after = (row["mean"] for row in result["steps"])
    assert result["metric"] == "accuracy"
    assert after > before + 0.05
    assert after > 0.65
    (table,) = (run / "evaluations").glob("*.csv")
    assert table.read_text().splitlines()[0] == "task,step,accuracy"


def test_each_task_is_adapted_to_and_its_rows_get_a_class_with_probabilities(run, tmp_path):
    unmeasured = [*range(8), *range(16, 24)]
    support = write(tmp_path / "s.csv", [100, 101], drop=unmeasured)
    queries = write(tmp_path / "q.csv", [101, 100], drop=[3])
    found = predict_table(run, support, queries, steps=3)
    assert found.classes == ("yes", "no")
    assert found.targets.sum(1).tolist() == pytest.approx([1.0] * 32)
    assert found.labels == [found.classes[place] for place in found.targets.argmax(1)]
    truth = [row[3] for machine in (101, 100) for row in rows_of(machine)]
    told = [place for place in unmeasured if place != 3]
    wrong = sum(found.labels[place] != truth[place] for place in told)
    assert found.errors == {"fault": pytest.approx(wrong / 15)}
    assert found.known == {"fault": 15}
    learner, scale = fewstep.load(run), fewstep.standardization(run)
    known = fewstep.Batch(
        torch.tensor([[float(x) for x in row[1:3]] for row in rows_of(101)[8:]], dtype=torch.float64),
        torch.tensor([int(row[3] == "no") for row in rows_of(101)[8:]]),
    )
    adapted = learner.adapt(scale.standardize(known), 3)
    expected = adapted(scale.inputs(known.inputs)).softmax(1).double()
    assert torch.allclose(found.targets[8:16], expected, atol=1e-5)


def test_predictions_of_classes_are_written_beside_the_rows(fewstep, run, tmp_path):
    support, queries = write(tmp_path / "s.csv", [100]), tmp_path / "q.csv"
    queries.write_text("machine;load;heat;fault\nm100;1,5;0,5;\nm100;-9,5;0,5;no\n")
    code, out, _ = fewstep("adapt", run, "--support", support, "--predict", queries, "--out", tmp_path / "p.csv")
    assert code == 0
    assert "fault: 1 of 1 are right." in out
    header, first, second = (tmp_path / "p.csv").read_text().splitlines()
    assert header == "machine;load;heat;fault;predicted_fault;probability_yes;probability_no"
    assert first.startswith("m100;1,5;0,5;;")
    label, *probabilities = second.split(";")[4:]
    assert label == "no"
    assert float(probabilities[1].replace(",", ".")) > 0.5
    assert (
        fewstep("adapt", run, "--support", support, "--predict", tmp_path / "p.csv", "--out", tmp_path / "p.csv")[0]
        == 0
    )
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == header


def test_a_task_with_examples_of_one_class_is_adapted_to_as_well(run, tmp_path):
    support = tmp_path / "s.csv"
    support.write_text("machine,load,heat,fault\nm,0,0,yes\nm,0.1,0,yes\n")
    found = predict_table(run, support, support)
    assert found.labels == ["yes", "yes"]
    assert found.errors == {}


def arrays(machine):
    rows = rows_of(machine)
    return np.array([[float(x) for x in row[1:3]] for row in rows]), np.array([row[3] for row in rows])


def test_the_estimator_keeps_the_classes_of_the_run(run, tmp_path):
    X, y = arrays(100)
    classifier = FewShotClassifier.from_run(run).fit(X, y)
    assert classifier.classes_.tolist() == ["no", "yes"]
    path = write(tmp_path / "s.csv", [100])
    assert classifier.predict_proba(X) == pytest.approx(
        predict_table(run, path, path).targets.flip(1).numpy(), abs=1e-5
    )
    of_one = FewShotClassifier.from_run(run).fit(X[y == "yes"], y[y == "yes"])
    assert of_one.predict_proba(X).shape == (16, 2)
    in_parts = FewShotClassifier.from_run(run).partial_fit(X[:5], y[:5]).partial_fit(X[5:], y[5:])
    assert in_parts.predict_proba(X) == pytest.approx(classifier.predict_proba(X))
    with pytest.raises(ValueError, match=r"of the run, \['no', 'yes'\]: got \['maybe'\]"):
        FewShotClassifier.from_run(run).fit(X[:1], ["maybe"])
    with pytest.raises(RecipeError, match="whose classes are always no, yes"):
        FewShotClassifier.from_run(run, head="zero").fit(X, y)
    with pytest.raises(RecipeError, match=r"learned an initialisation by loss.kind = 'mse'"):
        FewShotRegressor.from_run(run)


@pytest.mark.parametrize("kind", [int, float, np.uint8])
def test_classes_that_are_numbers_may_come_as_numbers(tmp_path, kind):
    lines = [row for machine in range(12) for row in rows_of(machine)]
    text = [",".join([*row[:3], "10" if row[3] == "yes" else "9"]) for row in lines]
    (tmp_path / "t.csv").write_text("\n".join(["machine,load,heat,fault", *text]))
    tasks = RECIPE["tasks"] | {"path": str(tmp_path / "t.csv"), "classes": ["10", "9"]}
    numbered = fewstep.train(RECIPE | {"tasks": tasks, "meta": {"iterations": 5}}, out=tmp_path / "run")
    X, y = arrays(100)
    y = np.where(y == "yes", kind(10), kind(9))
    classifier = FewShotClassifier.from_run(numbered).fit(X, y)
    assert classifier.classes_.tolist() == [9, 10]
    assert classifier.predict(X).dtype == y.dtype
    assert 0 <= classifier.score(X, y) <= 1


@pytest.mark.parametrize(
    ("names", "labels", "known"),
    [
        (["-1", "1"], np.array([1, 1], np.uint8), [-1, 1]),
        (["01", "02"], np.array(["01", "02"]), ["01", "02"]),
        (["10", "9"], np.array([9, 10], np.float32), [9, 10]),
    ],
)
def test_classes_come_in_a_type_that_holds_them(tmp_path, names, labels, known):
    lines = [",".join([*row[:3], names[row[3] == "yes"]]) for machine in range(12) for row in rows_of(machine)]
    (tmp_path / "t.csv").write_text("\n".join(["machine,load,heat,fault", *lines]))
    tasks = RECIPE["tasks"] | {"path": str(tmp_path / "t.csv"), "classes": names}
    odd = fewstep.train(RECIPE | {"tasks": tasks, "meta": {"iterations": 1}}, out=tmp_path / "run")
    classifier = FewShotClassifier.from_run(odd).fit(np.zeros((2, 2)), labels)
    assert classifier.classes_.tolist() == known
    with pytest.raises(ValueError, match="Labels must be among the classes"):
        FewShotClassifier.from_run(odd).fit(np.zeros((2, 2)), np.array([3, 3]))


def test_other_classes_at_the_first_part_are_refused(run):
    X, y = arrays(100)
    with pytest.raises(ValueError, match=r"classes of the run are \['no', 'yes'\]: got \['x', 'y'\]"):
        FewShotClassifier.from_run(run).partial_fit(X, y, classes=["x", "y"])
    FewShotClassifier.from_run(run).partial_fit(X, y, classes=["yes", "no"])


def test_what_is_no_class_is_not_judged(run, tmp_path, caplog):
    queries = tmp_path / "q.csv"
    queries.write_text("machine,load,heat,fault\nm100,9,0,yes\nm100,9,0,NA\nm100,9,0,\nm100,9,0,maybe\n")
    found = predict_table(run, write(tmp_path / "s.csv", [100]), queries)
    assert found.known == {"fault": 1}
    assert "none of the run's classes are not judged: maybe" in caplog.text


def test_rows_that_were_adapted_to_are_not_judged(run, tmp_path):
    support = write(tmp_path / "s.csv", [100])
    both = tmp_path / "both.csv"
    both.write_text(support.read_text() + "m100,9.25,0.125,no\n" + ",".join(rows_of(100)[0]) + "\n")  # one once more
    found = predict_table(run, support, both)
    assert found.known == {"fault": 2}
    alike = tmp_path / "alike.csv"  # a single row that is as one of the measured ones is another measurement
    alike.write_text("machine,load,heat,fault\n" + ",".join(rows_of(100)[0]) + "\n")
    assert predict_table(run, support, alike).known == {"fault": 1}


def test_an_input_that_is_called_as_a_prediction_is_kept(tmp_path):
    table = tmp_path / "t.csv"
    text = write(table, range(12)).read_text().replace("heat", "probability_no")
    table.write_text(text)
    tasks = RECIPE["tasks"] | {"path": str(table), "inputs": ["load", "probability_no"]}
    odd = fewstep.train(RECIPE | {"tasks": tasks, "meta": {"iterations": 2}}, out=tmp_path / "run")
    header, first, *_ = predict_table(odd, table, table).to_csv().splitlines()
    assert header == "machine,load,probability_no,fault,predicted_fault,probability_yes,probability_no"
    assert first.startswith(text.splitlines()[1])


def test_tasks_of_other_classes_are_of_another_shape(run, tmp_path):
    tasks = RECIPE["tasks"] | {"path": str(write(tmp_path / "t.csv", range(5))), "classes": ["no", "yes", "perhaps"]}
    with pytest.raises(RecipeError, match=r"trained with classes \['yes', 'no'\]"):
        fewstep.evaluate(run, tasks_from=RECIPE | {"tasks": tasks})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tasks.targets=['a','b']", "tasks.classes are those of one target column: tasks.targets has 2"),
        ("tasks.classes=['a',' a']", r"tasks.classes must be different and not empty: got \['a', 'a'\]"),
        ("tasks.classes=['', 'a']", "tasks.classes must be different and not empty"),
        ("tasks.classes=['a']", "tasks.classes"),
        ("loss.kind=mse", "loss.kind = 'mse' does not fit tasks.kind = 'table', with classes"),
    ],
)
def test_recipes_of_classes_that_cannot_be_are_refused(setting, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(RECIPE | {"tasks": RECIPE["tasks"] | {"path": "t.csv"}}, [setting])


def test_whole_numbers_are_names_of_classes_too():
    tasks = RECIPE["tasks"] | {"path": "t.csv", "classes": [1, 0]}
    assert load_recipe(RECIPE | {"tasks": tasks}).tasks.classes == ["1", "0"]


def test_the_rows_of_each_class_are_told_and_one_without_any(tmp_path, caplog):
    caplog.set_level("INFO")
    tasks = RECIPE["tasks"] | {"path": str(write(tmp_path / "t.csv", range(12))), "classes": ["yes", "perhaps", "no"]}
    fewstep.train(RECIPE | {"tasks": tasks, "meta": {"iterations": 1}}, out=tmp_path / "run")
    assert re.search(r"Rows for meta-training: \d+ of 'yes', 0 of 'perhaps', \d+ of 'no'", caplog.text)
    assert "No row for meta-training is of 'perhaps': nothing is learned of it" in caplog.text


def test_support_rows_without_any_class_are_an_error(run, tmp_path):
    support = write(tmp_path / "s.csv", [100], drop=range(16))
    with pytest.raises(
        DataError, match="must have rows that are complete: all 16 lack something, line 2, 'fault': empty"
    ):
        predict_table(run, support, support)


def test_classes_have_no_scale(run):
    with pytest.raises(ValueError, match=r"Classes have no scale.* in the order of tasks\.classes"):
        fewstep.standardization(run).restore(torch.zeros(3, 2))


def test_numbers_are_no_classes():
    with pytest.raises(RecipeError, match=r"whose targets are numbers: classes come with tasks.classes"):
        load_recipe("dose-response", ["loss.kind=cross_entropy"])
