"""Runs compared task by task."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from fewstep.errors import RunError
from fewstep.reporting.differences import differences
from fewstep.reporting.groups import grouped_by_seed
from fewstep.reporting.report import compared_values
from fewstep.reporting.tables import difference_table, plain

from .runs import evaluation, make_run


def per_task(*of_tasks):
    """A table of the errors of each task before and after a step."""
    lines = [[f"t{i}", step, value] for i, values in enumerate(of_tasks) for step, value in enumerate(values)]
    return [["task", "step", "mse"], *lines]


def run(folder, *of_tasks, recipe="maml", **changes):
    seed = changes.pop("seed", 0)
    means = [statistics.fmean(values) for values in zip(*of_tasks, strict=True)]
    return make_run(folder, evaluation(means, **changes), seed=seed, per_task=per_task(*of_tasks), name=recipe)


def test_differences_are_taken_on_each_task_from_the_first_run(tmp_path):
    first = run(tmp_path / "maml", [5.0, 1.0], [9.0, 4.0], [2.0, 0.5])
    other = run(tmp_path / "plain", [5.5, 2.0], [9.0, 5.0], [2.0, 1.8], recipe="plain")
    ((label, found),) = differences(grouped_by_seed([first, other]))
    assert label == "plain - maml"
    assert [row["mean"] for row in found["steps"]] == pytest.approx([0.5 / 3, 1.1])
    of_tasks = [1.0, 1.0, 1.3]  # the errors themselves differ much more from task to task
    assert found["steps"][1]["ci95"] == pytest.approx(1.96 * statistics.stdev(of_tasks) / 3**0.5)
    text = " ".join(plain(difference_table([(label, found)])).split())
    assert "Differences: mean squared error, meta-test" in text
    assert "1.10 ± 0.20" in text


def test_a_difference_as_plain_values_is_nothing_but_the_difference(tmp_path):
    of_run = {"metrics": {"mae": evaluation([7.0])["steps"]}, "rmse": {"dose": evaluation([7.0])["steps"]}}
    first = run(tmp_path / "maml", [1.0], [2.0], **of_run)
    other = run(tmp_path / "plain", [2.0], [float("nan")], recipe="plain", **of_run)
    values = compared_values([first.path, other.path])
    json.dumps(values, allow_nan=False)
    (difference,) = values["differences"]
    assert difference["label"] == "plain - maml"
    assert difference["steps"] == [{"step": 0, "mean": None, "ci95": None}]
    assert not {"metrics", "rmse", "per_task", "inner_lr"} & difference.keys()
    assert [Path(file).is_file() for each in values["evaluations"] for file in each["per_task"]] == [True, True]


def test_seeds_are_averaged_on_each_task(tmp_path):
    first = run(tmp_path / "maml", [1.0], [2.0])
    seeds = [run(tmp_path / f"s{s}", [2.0 + s], [3.0 - s], recipe="plain", seed=s) for s in (0, 1)]
    ((label, found),) = differences(grouped_by_seed([first, *seeds]))
    assert label == "plain - maml"
    assert found["steps"][0]["mean"] == pytest.approx(1.0)
    assert found["steps"][0]["ci95"] == pytest.approx(1.96 * statistics.stdev([1.5, 0.5]) / 2**0.5)


@pytest.mark.parametrize(
    "changes", [{"fingerprint": "another"}, {"normalization": "support"}, {"physics": "gymnasium"}, {"horizon": 50}]
)
def test_what_was_measured_otherwise_has_no_difference(tmp_path, changes):
    first = run(tmp_path / "maml", [1.0], [2.0])
    other = run(tmp_path / "plain", [2.0], [3.0], recipe="plain", **changes)
    assert differences(grouped_by_seed([first, other])) == []


def test_returns_in_different_environments_have_no_difference_even_from_earlier_versions(tmp_path):
    acting = {"loss": {"kind": "reinforce"}}
    robots = [
        make_run(
            tmp_path / kind,
            evaluation([1.5]),
            per_task=per_task([1.0], [2.0]),
            name=kind,
            tasks={"kind": kind},
            **acting,
        )
        for kind in ("ant-velocity", "cheetah-velocity")
    ]
    assert differences(grouped_by_seed(robots)) == []


def test_evaluations_without_their_tasks_are_passed_over(tmp_path):
    first = run(tmp_path / "maml", [1.0], [2.0])
    other = make_run(tmp_path / "plain", evaluation([2.0], per_task="lost.csv"), name="plain")
    assert differences(grouped_by_seed([first, other])) == []
    assert differences(grouped_by_seed([other, first])) == []


def test_a_task_on_which_a_run_diverged_leaves_no_difference_to_tell(tmp_path):
    first = run(tmp_path / "maml", [1.0, 1.0], [2.0, float("nan")])
    other = run(tmp_path / "plain", [2.0, float("inf")], [3.0, float("inf")], recipe="plain")
    ((_, found),) = differences(grouped_by_seed([first, other]))
    text = plain(difference_table([("plain - maml", found)]))
    assert "1 ± 0  not finite" in text


def test_a_table_that_was_sorted_is_not_paired_by_place(tmp_path):
    first = run(tmp_path / "maml", [1.0, 0.5], [2.0, 0.25])
    path = first.path / "evaluations" / "test-0.csv"
    header, *lines = path.read_text().splitlines()
    for order in (lines[2:] + lines[:2], sorted(lines, key=lambda line: line.split(",")[1])):
        path.write_text("\n".join([header, *order]))
        other = run(tmp_path / f"plain{order[0]}", [2.0, 0.5], [3.0, 0.5], recipe="plain")
        with pytest.raises(RunError, match="order"):
            differences(grouped_by_seed([other, first]))


def test_methods_of_one_run_are_told_apart(tmp_path):
    first = run(tmp_path / "a", [1.0], [2.0])
    entries = grouped_by_seed([first])
    other = {**entries[0][1], "algorithm": "nearest_neighbour"}
    ((label, found),) = differences([*entries, ("a", other)])
    assert label == "a (nearest_neighbour) - a (maml)"
    assert found["steps"][0]["mean"] == 0


def test_policies_for_normalisation_are_told_apart(tmp_path):
    entries = [("b - a", evaluation([1.0], normalization=policy)) for policy in ("support", "transductive")]
    assert "normalized" in plain(difference_table(entries))


def test_a_damaged_table_of_tasks_is_named(tmp_path):
    first = run(tmp_path / "maml", [1.0], [2.0])
    (first.path / "evaluations" / "test-0.csv").write_text("task,step\nt0,0\n")
    with pytest.raises(RunError, match=r"must have the columns task, step and mse.*test-0.csv"):
        differences(grouped_by_seed([first]))
