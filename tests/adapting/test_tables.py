from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

import fewstep
from fewstep import predict_table
from fewstep.errors import DataError, NonFiniteError, RecipeError
from fewstep.experiments.train_run import train

SUPPORT = "log_dose,compound,response,note\n-8,new,5,a\n-7,new,20,b\n-5,new,88,c\n-8,other,90,d\n"
QUERIES = "compound,log_dose\nnew,-6\nother,-5\nnew,-7.5\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = ["meta.iterations=20", "model.hidden=[8]", "validation.tasks=4"]
    return fewstep.train("dose-response", out=tmp_path_factory.mktemp("table") / "run", settings=settings).path


@pytest.fixture
def files(tmp_path):
    (tmp_path / "support.csv").write_text(SUPPORT)
    (tmp_path / "queries.csv").write_text(QUERIES)
    return tmp_path / "support.csv", tmp_path / "queries.csv"


def test_each_task_of_a_table_is_adapted_to_by_itself(run, files):
    found = fewstep.predict_table(run, *files, steps=3)
    learner, scale = fewstep.load(run), fewstep.standardization(run)
    rows = {"new": [(-8, 5), (-7, 20), (-5, 88)], "other": [(-8, 90)]}
    for task, x, predicted in zip(found.tasks, found.inputs, found.targets, strict=True):
        inputs, targets = torch.tensor(rows[task], dtype=torch.float64).split(1, dim=1)
        adapted = learner.adapt(scale.standardize(fewstep.Batch(inputs, targets)), 3)
        expected = scale.restore(adapted(scale.inputs(x.unsqueeze(0))))
        assert torch.allclose(predicted, expected[0], rtol=1e-5)
    assert found.tasks == ["new", "other", "new"]
    assert found.support == {"new": 3, "other": 1}


def test_rows_are_predicted_as_the_estimator_does(run, files):
    found = fewstep.predict_table(run, *files)
    estimator = fewstep.FewShotRegressor.from_run(run).fit(
        np.array([[-8.0], [-7.0], [-5.0]]), np.array([5.0, 20.0, 88.0])
    )
    assert found.targets[[0, 2], 0].tolist() == pytest.approx(estimator.predict(np.array([[-6.0], [-7.5]])), rel=1e-5)


def test_adapt_writes_predictions_beside_the_rows_asked_for(fewstep, run, files, tmp_path):
    support, queries = files
    code, out, _ = fewstep(
        "adapt", run, "--support", support, "--predict", queries, "--out", tmp_path / "new" / "p.csv"
    )
    assert code == 0
    assert "Adapted to new (3), other (1); steps 10." in out
    rows = list(csv.DictReader((tmp_path / "new" / "p.csv").read_text().splitlines()))
    assert [(row["compound"], float(row["log_dose"])) for row in rows] == [("new", -6), ("other", -5), ("new", -7.5)]
    assert all(np.isfinite(float(row["predicted_response"])) for row in rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_predictions_of_before_are_written_over_in_any_encoding(fewstep, run, files, tmp_path, encoding):
    for file in files:
        file.write_text(file.read_text(), encoding)
    for _ in range(2):
        code, _, err = fewstep("adapt", run, "--support", files[0], "--predict", files[1], "--out", "p.csv")
        assert code == 0, err
    assert "predicted_response" in (tmp_path / "p.csv").read_text(encoding)
    mine = tmp_path / "mine.csv"
    mine.write_text("name,value\npredicted_ value,my predicted_ value\n", encoding)
    for file in (files[0], mine):
        code, _, err = fewstep("adapt", run, "--support", files[0], "--predict", files[1], "--out", file)
        assert code == 2
        assert "holds something else" in err


@pytest.mark.parametrize(
    ("support", "queries", "said"),
    [
        (SUPPORT, QUERIES + "third,-6\n", "none of 'third'"),
        (SUPPORT.replace("response", "answer"), QUERIES, "lacks 'response'"),
        (SUPPORT, QUERIES.replace("-7.5", "high"), "line 4, 'log_dose': 'high'"),
        ("compound,log_dose,response\n", QUERIES, "column names only"),
    ],
)
def test_faults_of_the_users_files_are_named(run, tmp_path, support, queries, said):
    (tmp_path / "support.csv").write_text(support)
    (tmp_path / "queries.csv").write_text(queries)
    with pytest.raises(DataError, match=said):
        fewstep.predict_table(run, tmp_path / "support.csv", tmp_path / "queries.csv")


def test_inputs_in_another_unit_are_told_of(run, files, caplog):
    fewstep.predict_table(run, *files)
    assert not caplog.records
    files[1].write_text(QUERIES.replace("-7.5", "1000"))
    fewstep.predict_table(run, *files)
    assert "log_dose (" in caplog.text


def test_targets_in_another_unit_are_told_of_and_what_diverges_names_its_task(run, files, caplog):
    support, queries = files
    support.write_text(SUPPORT.replace(",90,", ",90000,"))
    fewstep.predict_table(run, support, queries)
    assert (
        "Targets lie far from those that the run was trained with, in standard deviations of these: respo"
        in caplog.text
    )
    support.write_text(SUPPORT.replace(",90,", ",1e40,"))
    with pytest.raises(NonFiniteError, match=r"Task 'other' of `.*`: Adaptation must stay finite"):
        fewstep.predict_table(run, support, queries)


def test_what_goes_with_pictures_alone_is_refused(fewstep, run, files, tmp_path):
    support, queries = files
    for options, said in (
        (["--predict", queries, "--head", "zero"], "--head"),
        ([], "--predict"),
        (["--predict", queries, "--out", tmp_path], "must be a CSV file"),
    ):
        code, _, err = fewstep("adapt", run, "--support", support, *options)
        assert code == 2
        assert said in err


def test_a_run_on_something_else_takes_no_table(files):
    with pytest.raises(RecipeError, match="trained on sinusoid tasks"):
        fewstep.predict_table("sinusoid-10shot", *files)


def test_a_table_of_ones_own_is_learned_from_and_adapted_to(fewstep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{machine},{x},{machine * x}" for machine in range(12) for x in range(6)]
    (tmp_path / "slopes.csv").write_text("\n".join(["machine,x,y", *rows]))
    (tmp_path / "new.csv").write_text("machine,x,y\nmine,1,2\nmine,2,4\n")
    recipe = {"tasks": {"kind": "table", "path": "slopes.csv", "task": "machine", "inputs": ["x"], "targets": ["y"]}}
    recipe |= {"model": {"kind": "mlp"}, "algorithm": {"kind": "maml"}, "meta": {"iterations": 2}}
    train(recipe, out="run", settings=["tasks.shots=3", "tasks.queries=3"])
    (tmp_path / "others.csv").write_text("machine,x,y\nmine,3,6\n")
    code, out, _ = fewstep("adapt", "run", "--support", "new.csv", "--predict", "others.csv")
    assert code == 0
    assert "Root mean squared error, in your units: y " in out
    assert "Wrote adapted/others-predicted.csv" in out
    assert (tmp_path / "adapted" / "others-predicted.csv").read_text().startswith("machine,x,y,predicted_y\nmine,3,6,")


def test_a_file_of_the_users_is_never_written_over(fewstep, run, files):
    for file in files:
        before = file.read_text()
        code, _, err = fewstep("adapt", run, "--support", files[0], "--predict", files[1], "--out", file)
        assert code == 2
        assert "holds something else" in err
        assert file.read_text() == before


def test_columns_that_were_not_asked_for_stay_with_their_rows(run, files):
    for line, ending in (("", ",id"), ("new,-6", ",7"), ("other,-5", ",x"), ("new,-7.5", ",")):
        text = files[1].read_text()
        files[1].write_text(
            text.replace(line + "\n", line + ending + "\n") if line else text.replace("\n", ending + "\n", 1)
        )
    rows = list(csv.DictReader(fewstep.predict_table(run, *files).to_csv().splitlines()))
    assert [row["id"] for row in rows] == ["7", "x", ""]
    assert [row["log_dose"] for row in rows] == ["-6", "-5", "-7.5"]


def test_a_loss_of_ones_own_adapts_as_it_has_trained(files, tmp_path):
    loss = torch.nn.functional.huber_loss
    settings = ["meta.iterations=5", "model.hidden=[8]", "validation.tasks=4", "loss.kind=custom"]
    run = train("dose-response", out=tmp_path / "run", settings=settings, loss=loss)
    found = fewstep.predict_table(run, *files, steps=3, loss=loss)
    learner, scale = fewstep.load(run, loss=loss), fewstep.standardization(run)
    other = scale.standardize(fewstep.Batch(torch.tensor([[-8.0]]), torch.tensor([[90.0]])))
    expected = scale.restore(learner.adapt(other, 3)(scale.inputs(torch.tensor([[-5.0]]))))
    assert torch.allclose(found.targets[1], expected[0], rtol=1e-5)
    with pytest.raises(RecipeError, match="pass it as `loss=`"):
        fewstep.predict_table(run, *files)


def test_rows_that_are_still_to_be_measured_may_stand_beside_those_that_are(fewstep, run, tmp_path, caplog):
    both = SUPPORT + "-7,new,,\n-4,other,n/a,\n"
    (tmp_path / "both.csv").write_text(both)
    found = predict_table(run, tmp_path / "both.csv", tmp_path / "both.csv")
    assert "left out 2 of 6 rows" in caplog.text
    assert (found.support, found.errors) == ({"new": 3, "other": 1}, {})  # an error on rows adapted to tells nothing
    (tmp_path / "others.csv").write_text("compound,log_dose,response\nnew,-6,30\nother,-5,?\n")
    assert predict_table(run, tmp_path / "both.csv", tmp_path / "others.csv").known == {"response": 1}
    code, out, _ = fewstep("adapt", run, "--support", tmp_path / "both.csv", "--predict", tmp_path / "others.csv")
    assert code == 0
    assert "(of 1 of 2 rows)" in out


def test_predictions_are_written_as_their_file_is(fewstep, run, files, tmp_path):
    files[1].write_bytes(QUERIES.replace("\n", "\r\n").encode("utf-8-sig"))
    assert fewstep("adapt", run, "--support", files[0], "--predict", files[1], "--out", tmp_path / "o.csv")[0] == 0
    written = (tmp_path / "o.csv").read_bytes()
    assert written.startswith(b"\xef\xbb\xbfcompound,log_dose,predicted_response\r\nnew,-6,")
    assert fewstep("adapt", run, "--support", files[0], "--predict", files[1], "--out", tmp_path / "o.csv")[0] == 0


@pytest.mark.parametrize("mark", ["|", ":"])
def test_predictions_tell_their_separator_where_nobody_would_look_for_it(fewstep, run, files, tmp_path, mark):
    files[1].write_text(f"sep={mark}\n" + QUERIES.replace(",", mark))
    for _ in range(2):  # they may be written over
        code, _, err = fewstep("adapt", run, "--support", files[0], "--predict", files[1], "--out", "o.csv")
        assert code == 0, err
    written = (tmp_path / "o.csv").read_text()
    assert written.startswith(f"sep={mark}\ncompound{mark}log_dose{mark}predicted_response\nnew{mark}-6{mark}")
    assert predict_table(run, files[0], tmp_path / "o.csv").to_csv() == written


def test_a_file_with_decimal_commas_is_answered_in_kind(run, files):
    files[1].write_text("compound;log_dose\nnew;-7,5\n")
    header, row = fewstep.predict_table(run, *files).to_csv().splitlines()
    assert header == "compound;log_dose;predicted_response"
    assert row.startswith("new;-7,5;")
    assert "." not in row
    files[1].write_text("compound;log_dose;response\nnew;-7;2,5\nnew;-6;1.500\n")  # the targets tell
    found = fewstep.predict_table(run, *files)
    assert found.file.further == {"response": [2.5, 1500]}
    assert "." not in found.to_csv().replace("1.500", "")


def test_predictions_are_in_utf_8_where_the_files_encoding_lacks_a_sign(run, files):
    files[1].write_bytes("compound,log_dose,caf\u00e9\nnew,-7,1\n".encode("cp1252"))
    found = fewstep.predict_table(run, *files)
    assert found.encoded().decode("cp1252").startswith("compound,log_dose,caf\u00e9")
    task, inputs, _ = found.columns
    assert found._replace(columns=(task, inputs, ("\u0394",))).encoded().decode("utf-8-sig").count("\u0394") == 1


def test_a_scaler_before_a_run_on_a_table_is_told_of(run, caplog):
    pytest.importorskip("sklearn")
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    doses, responses = np.array([[-8.0], [-7.0], [-6.0], [-5.0]]), np.array([5.0, 20.0, 60.0, 88.0])
    regressor = fewstep.FewShotRegressor.from_run(run)
    regressor.fit(doses, responses)
    assert not caplog.text
    make_pipeline(StandardScaler(), regressor).fit(doses, responses)
    assert "Inputs have a mean of 0 and a deviation of 1 as they come" in caplog.text
    TransformedTargetRegressor(regressor, transformer=StandardScaler()).fit(doses, responses)
    assert "Targets have a mean of 0" in caplog.text
    caplog.clear()
    regressor.fit(doses, responses * 1000)
    assert "Targets lie far from those that the run was trained with" in caplog.text


def test_rows_that_were_adapted_to_are_not_judged_by_one_of_several_targets_either(tmp_path):
    lines = [f"t{task},{x},{task * x},{task - x}" for task in range(1, 8) for x in range(6)]
    (tmp_path / "t.csv").write_text("\n".join(["task,x,y,z", *lines]))
    tasks = {"kind": "table", "path": str(tmp_path / "t.csv"), "task": "task", "inputs": ["x"], "targets": ["y", "z"]}
    recipe = {"tasks": tasks | {"shots": 3}, "model": {"kind": "mlp", "hidden": [4]}, "algorithm": {"kind": "maml"}}
    run = fewstep.train(recipe, out=tmp_path / "run", settings=["meta.iterations=1"])
    (tmp_path / "fewer.csv").write_text("\n".join(["task,x,y", *(line.rpartition(",")[0] for line in lines)]))
    assert predict_table(run, tmp_path / "t.csv", tmp_path / "fewer.csv").known == {}
    (tmp_path / "more.csv").write_text((tmp_path / "fewer.csv").read_text() + "\nt1,9,9\n")
    assert predict_table(run, tmp_path / "t.csv", tmp_path / "more.csv").known == {"y": 1}
