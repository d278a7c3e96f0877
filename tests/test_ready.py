"""Ready initialisations: what comes with the package works without training."""

from __future__ import annotations

import json
import os

import pytest
import torch

import fewstep
from fewstep.core.rng import generator
from fewstep.experiments.runs import READY
from fewstep.tasks.sinusoid import Sinusoid


def test_the_ready_initialisations_are_the_documented_ones():
    assert fewstep.ready() == ["glyphs-5way-1shot", "omniglot-5way-1shot", "sinusoid-10shot"]


@pytest.mark.parametrize("name", fewstep.ready())
def test_a_ready_initialisation_is_small_and_says_where_it_comes_from(name):
    assert (READY / name / "params.safetensors").stat().st_size < 500_000
    versions = json.loads((READY / name / "versions.json").read_text())
    assert {"fewstep", "torch", "processor"} <= set(versions)
    assert "command" not in versions
    assert list((READY / name / "evaluations").glob("*.json"))


def test_the_ready_sinusoid_fits_ten_points_in_five_steps():
    learner = fewstep.load("sinusoid-10shot")
    tasks = Sinusoid().sample(50, generator(0, "ready"))
    curve = learner.evaluate(tasks, 5)["loss"].mean(0)
    assert curve[0] > 2.0
    assert curve[5] < 0.35


def test_a_ready_initialisation_is_evaluated_and_left_as_it_came():
    before = sorted((READY / "sinusoid-10shot").rglob("*"))
    result = fewstep.evaluate("sinusoid-10shot", shots=10, tasks=20)
    assert result["steps"][10]["mean"] < 0.5
    assert sorted((READY / "sinusoid-10shot").rglob("*")) == before


def test_the_ready_omniglot_tells_new_classes_apart_by_shape():
    shapes = torch.zeros(5, 1, 28, 28)
    shapes[0, 0, 4:24, 13:15] = 1  # a stroke
    shapes[1, 0, 6:22, 6:22] = 1  # a block
    shapes[1, 0, 9:19, 9:19] = 0
    shapes[2, 0].fill_diagonal_(1)  # a slope
    shapes[3, 0, 13:15, 4:24] = shapes[3, 0, 4:24, 13:15] = 1  # a cross
    shapes[4, 0, 20:22, 4:24] = shapes[4, 0, 4:22, 4:6] = 1  # an angle
    support = fewstep.Batch(shapes, torch.arange(5))
    moved = torch.roll(shapes, (1, -1), dims=(-2, -1))
    adapted = fewstep.load("omniglot-5way-1shot").adapt(support, steps=3)
    assert (adapted(moved).argmax(1) == torch.arange(5)).float().mean() >= 0.8


def test_the_ready_omniglot_is_as_good_as_documented_on_real_images():
    if not os.environ.get("FEWSTEP_DATA"):
        pytest.skip("set FEWSTEP_DATA to a folder that holds omniglot/")
    result = fewstep.evaluate("omniglot-5way-1shot", tasks=200)
    assert result["steps"][3]["mean"] > 0.95
