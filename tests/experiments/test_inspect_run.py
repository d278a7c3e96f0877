"""`fewstep inspect`: the result of a run, and what cannot be inspected."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fewstep
from fewstep.errors import RecipeError, RunError
from fewstep.experiments.inspect_run import inspect
from fewstep.experiments.runs import READY
from fewstep.tasks.sinusoid import Sinusoid
from fewstep.training.evaluation import share_and_ci95

TINY = ["meta.batch_size=4", "meta.iterations=4", "validation.tasks=4", "evaluate.tasks=6", "evaluate.steps=2"]


def train(out, *settings, **how):
    recipe = how.pop("recipe", "sinusoid-10shot")
    return fewstep.train(recipe, settings=[*TINY, *settings], out=out, **how)


def points(curve):
    return [set(point) for point in curve] == [{"step", "mean", "ci95"}] * 3


def test_an_inspection_is_an_evaluation_of_the_same_tasks_and_more(tmp_path):
    run = train(tmp_path / "run", "model.hidden=[8]")
    result, evaluation = inspect(run), fewstep.evaluate(run)
    shared = evaluation.keys() - {"steps", "per_task"}
    assert {key: result[key] for key in shared} == {key: evaluation[key] for key in shared}
    for ours, theirs in zip(result["steps"], evaluation["steps"], strict=True):
        assert ours["mean"] == pytest.approx(theirs["mean"], rel=1e-5)
    assert result["head"] == {"pattern": None, "parameters": ["head.weight", "head.bias"]}
    assert [layer["layer"] for layer in result["layers"]] == ["body.0.linear", "head"]
    for layer in result["layers"]:
        assert layer["adapted"] == layer["parameters"]
        assert all(points(layer[key]) for key in ("relative_movement", "rms_movement", "gain", "untrained_gain"))
    for views in (result, result["untrained"]):
        assert set(views["parts"]) == {"everything", "head", "rest"}
        assert all(points(curve) for curve in (*views["parts"].values(), views["head_share"]))
    assert json.loads((run.path / "inspections" / "test-2steps-6tasks-best.json").read_text()) == result


def test_untrained_is_the_network_before_its_first_meta_update(tmp_path):
    run = train(tmp_path / "run", "model.hidden=[8]", "meta.iterations=0")
    result = inspect(run, checkpoint="final")
    assert result["untrained"] == {key: result[key] for key in ("parts", "head_share")}
    assert all(layer["gain"] == layer["untrained_gain"] for layer in result["layers"])


def test_a_layer_that_is_not_adapted_is_told_so(tmp_path):
    run = train(tmp_path / "run", "model.hidden=[8]", "algorithm.kind=anil")
    result = inspect(run)
    body, head = result["layers"]
    assert (body["adapted"], head["adapted"]) == (0, 9)
    assert body["gain"] is None
    assert body["untrained_gain"] is None
    assert [point["mean"] for point in body["relative_movement"]] == [0, 0, 0]
    assert result["parts"]["head"] == result["parts"]["everything"]


def test_a_module_and_tasks_of_ones_own_are_inspected_with_a_head_by_name(tmp_path):
    torch.manual_seed(0)
    own = {"model": nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv1d(1, 4, 1), nn.Conv1d(4, 1, 1), nn.Flatten())}
    as_rows = lambda out, targets: (out - targets).square().mean()  # noqa: E731
    how = {"task_distribution": Sinusoid(queries=10), "loss": as_rows}
    settings = ["model={kind='custom'}", "tasks={kind='custom'}", "loss={kind='custom'}", "algorithm.inner_lr=0.01"]
    run = train(tmp_path / "run", *settings, task_distribution=how["task_distribution"], loss=as_rows, **own)
    with pytest.raises(RecipeError, match=r"last linear layer: this model has none among 1.weight"):
        inspect(run, **own, **how)
    result = inspect(run, head="2.*", **own, **how)
    assert result["head"] == {"pattern": "2.*", "parameters": ["2.weight", "2.bias"]}
    assert (run.path / "inspections" / "test-2steps-6tasks-best-head2._.json").is_file()


def test_networks_to_average_are_no_initialisation_to_inspect(tmp_path):
    settings = ["tasks.pool=4", "meta.batch_size=4", "evaluate.tune_inner_lr=[]"]
    run = train(tmp_path / "run", *settings, recipe="sinusoid-averaging")
    with pytest.raises(RunError, match=r"trained with algorithm.kind = 'averaging'"):
        inspect(run)


def test_a_ready_initialisation_is_inspected_and_left_as_it_came():
    before = sorted((READY / "sinusoid-10shot").rglob("*"))
    result = inspect("sinusoid-10shot", steps=1)
    assert result["tasks"] == 200  # of the recipe's 600
    first = result["layers"][0]
    assert first["gain"][1]["mean"] > 10 * first["untrained_gain"][1]["mean"]
    assert sorted((READY / "sinusoid-10shot").rglob("*")) == before


def test_there_are_no_inspections_without_a_step():
    with pytest.raises(RecipeError, match="at least 1 inner step: got steps = 0"):
        inspect("sinusoid-10shot", steps=0)


def test_a_share_and_its_interval_are_those_of_a_ratio_of_means():
    whole = torch.tensor([1.0, 2.0, 3.0])
    assert share_and_ci95(whole / 2, whole) == (0.5, 0.0)
    share, half_width = share_and_ci95(torch.tensor([1.0, 0.0, 2.0]), whole)
    assert share == pytest.approx(0.5)
    assert half_width == pytest.approx(1.96 * 0.75**0.5 / 3**0.5 / 2)
