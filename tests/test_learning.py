"""What the documents claim, measured again. Minutes each: run with `make test-slow`."""

from __future__ import annotations

import os

import pytest

import fewstep

pytestmark = pytest.mark.slow


def means(evaluation):
    return [row["mean"] for row in evaluation["steps"]]


@pytest.fixture(scope="module")
def sinusoid(tmp_path_factory):
    return fewstep.train("sinusoid-10shot", out=tmp_path_factory.mktemp("runs") / "maml")


def test_sinusoid_maml_reaches_the_paper_at_5_shots(sinusoid):
    curve = means(fewstep.evaluate(sinusoid, shots=5))
    assert curve[1] <= 0.8
    assert curve[5] <= 0.5
    assert curve[10] <= 0.45


def test_more_data_and_more_steps_keep_improving_the_sinusoid(sinusoid):
    after_10 = [means(fewstep.evaluate(sinusoid, shots=shots))[10] for shots in (5, 10, 20)]
    assert after_10 == sorted(after_10, reverse=True)
    curve = means(fewstep.evaluate(sinusoid, shots=10))
    assert curve[1] > curve[3] > curve[10]


def test_the_pretrained_baseline_stays_far_behind(tmp_path):
    run = fewstep.train("sinusoid-pretrained", out=tmp_path / "run")
    assert min(means(fewstep.evaluate(run, shots=5))) > 1.5


def test_dose_response_curves_are_learned_better_than_by_pretraining(tmp_path):
    maml, joint = (
        means(fewstep.evaluate(fewstep.train(name, out=tmp_path / name)))
        for name in ("dose-response", "dose-response-pretrained")
    )
    assert maml[10] < 0.7 * min(joint)


def test_omniglot_is_learned_from_one_drawing_of_each_character(tmp_path):
    if not os.environ.get("FEWSTEP_DATA"):
        pytest.skip("set FEWSTEP_DATA to a folder that holds omniglot/")
    run = fewstep.train("omniglot-5way-1shot", out=tmp_path / "run", settings=["meta.iterations=1000"])
    assert means(fewstep.evaluate(run, split="val"))[3] > 0.88


@pytest.mark.parametrize(
    ("recipe", "iterations", "steps", "least"),
    [
        ("omniglot-5way-1shot-first-order", 1000, 3, 0.8),
        ("omniglot-5way-1shot-nonconv", 1000, 1, 0.7),
        ("omniglot-5way-1shot-context", 300, 3, 0.5),
    ],
)
def test_variants_learn_from_one_drawing_of_each_character(tmp_path, recipe, iterations, steps, least):
    if not os.environ.get("FEWSTEP_DATA"):
        pytest.skip("set FEWSTEP_DATA to a folder that holds omniglot/")
    run = fewstep.train(recipe, out=tmp_path / "run", settings=[f"meta.iterations={iterations}"])
    assert means(fewstep.evaluate(run, split="val", tasks=200))[steps] > least


def test_navigation_finds_a_goal_in_one_gradient_step(tmp_path):
    """A fifth of the recipe's iterations; the paper has -40 before adaptation and -12 after one step."""
    run = fewstep.train("navigation", out=tmp_path / "run", settings=["meta.iterations=20"])
    before, once, *_, last = means(fewstep.evaluate(run, split="val"))
    assert -50 < before < -30
    assert once > -15
    assert last > -8
