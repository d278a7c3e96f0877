"""One pretraining run, two ways to evaluate it."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from fewstep.errors import RecipeError
from fewstep.experiments import evaluate_run
from fewstep.experiments.evaluate_run import _candidates
from fewstep.experiments.recipe_files import evaluation_plan, load_recipe
from fewstep.experiments.sections import Pretrained
from fewstep.reporting.reading import evaluations

RECIPE = {
    "name": "pretrained",
    "tasks": {"kind": "omniglot"},
    "model": {"kind": "convnet", "filters": 4},
    "algorithm": {"kind": "pretrained", "classes": 1100, "steps": 2},
    "meta": {"batch_size": 8, "iterations": 4},
    "validation": {"every": 2, "tasks": 3},
    "evaluate": {"tasks": 4, "steps": 3},
    "execution": {"over_tasks": "vectorized"},  # a recording takes longer than these few tasks
}
needs_data = pytest.mark.skipif(
    not os.environ.get("FEWSTEP_DATA"), reason="set FEWSTEP_DATA to a folder that holds omniglot/"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fewstep.train(RECIPE, out=tmp_path_factory.mktemp("pretrained") / "run")


@needs_data
def test_one_run_serves_both_methods_and_both_are_kept(run):
    finetuned = fewstep.evaluate(run)
    nearest = fewstep.evaluate(run, method="nearest_neighbour")
    assert [finetuned["algorithm"], nearest["algorithm"]] == ["finetune", "nearest_neighbour"]
    assert [len(finetuned["steps"]), len(nearest["steps"])] == [4, 1]
    assert finetuned["fingerprint"] == nearest["fingerprint"]
    assert [finetuned["inner_lr"], nearest["inner_lr"]] == [0.01, None]
    assert {e["algorithm"] for e in evaluations(run)} >= {"finetune", "nearest_neighbour"}


@needs_data
def test_both_methods_follow_the_policies_of_normalisation(run):
    for method in ("finetune", "nearest_neighbour"):
        scores = [
            fewstep.evaluate(run, method=method, normalization=policy, queries=5)
            for policy in ("transductive", "support")
        ]
        assert scores[0]["fingerprint"] == scores[1]["fingerprint"]
        assert [score["normalization"] for score in scores] == ["transductive", "support"]
        assert scores[0]["steps"] != scores[1]["steps"]


@needs_data
def test_two_pretrainings_with_one_seed_are_equal_and_so_is_a_resumed_one(run, tmp_path):
    again = fewstep.train(RECIPE, out=tmp_path / "again")
    fewstep.train(RECIPE, out=tmp_path / "parts", settings=["meta.iterations=2"])
    parts = fewstep.train(RECIPE, out=tmp_path / "parts", settings=["meta.iterations=4"], resume=True)
    first, *others = (load_file(one.path / "params.safetensors") for one in (run, again, parts))
    for other in others:
        assert all(torch.equal(value, other[name]) for name, value in first.items())


@needs_data
def test_a_wrong_number_of_classes_is_refused_with_the_right_one(tmp_path):
    with pytest.raises(RecipeError, match=r"expected 1100, got 64\. Set algorithm\.classes = 1100"):
        fewstep.train(RECIPE, out=tmp_path / "run", settings=["algorithm.classes=64"])


def test_rates_are_tuned_for_fine_tuning_and_distances_for_neighbours():
    tuned = ["evaluate.tune_inner_lr=[0.1, 0.2]", 'evaluate.tune_distance=["euclidean", "cosine"]']
    recipe = load_recipe(RECIPE, tuned)

    def candidates(**asked):
        found = [c.algorithm for c in _candidates(recipe, evaluation_plan(recipe, asked))]
        assert all(isinstance(algorithm, Pretrained) for algorithm in found)
        return [(a.method, a.inner_lr, a.distance) for a in found]

    assert candidates() == [("finetune", 0.1, "euclidean"), ("finetune", 0.2, "euclidean")]
    assert candidates(method="nearest_neighbour") == [
        ("nearest_neighbour", 0.01, "euclidean"),
        ("nearest_neighbour", 0.01, "cosine"),
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["tasks={kind='sinusoid'}", "model={kind='mlp'}", "loss={}"], "needs tasks of images"),
        (["algorithm={kind='maml'}", "evaluate.method=finetune"], "go with algorithm.kind = 'pretrained'"),
        (["algorithm={kind='maml'}", "evaluate.variants=[{method='finetune'}]"], "go with algorithm.kind"),
        (["algorithm={kind='pretrained'}"], "algorithm.classes: missing"),
        (["algorithm.method=prototype"], "algorithm.method"),
    ],
)
def test_what_pretraining_cannot_do_is_refused(settings, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(RECIPE, settings)
    assert words in str(caught.value)


def test_several_ways_to_evaluate_are_tuned_once_on_as_many_tasks_as_the_recipe_says(tmp_path, monkeypatch):
    settings = ["meta.iterations=2", "model.hidden=[4]", "evaluate.tune_tasks=3"]
    settings += ["evaluate.tune_inner_lr=[0.1, 0.2]", "evaluate.tasks=5", "validation.tasks=2"]
    trained = fewstep.train("sinusoid-5shot", out=tmp_path / "run", settings=settings)
    drawn: list[tuple[str, int]] = []
    measured = evaluate_run.measured

    def counting(*args, split, tasks, **how):
        drawn.append((split, tasks))
        return measured(*args, split=split, tasks=tasks, **how)

    monkeypatch.setattr(evaluate_run, "measured", counting)
    ways = evaluate_run.evaluate_each(trained, [{}, {"queries": 3}, {"shots": 2}])
    assert drawn == [*[("val", 3)] * 2, ("test", 5), ("test", 5), *[("val", 3)] * 2, ("test", 5)]
    assert ways[1] == fewstep.evaluate(trained, queries=3)
