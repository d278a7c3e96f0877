"""The fastest way to execute a recipe here, found by timing."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fewstep import cli
from fewstep.core import running
from fewstep.errors import RecipeError
from fewstep.experiments.tune_run import tune

TINY = ["model.hidden=[4]", "meta.batch_size=2", "meta.iterations=100"]


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    monkeypatch.setattr(running, "_compile", lambda function, **_: function)


def test_every_way_is_timed_and_the_soonest_comes_first():
    ways = tune("sinusoid-10shot", settings=[*TINY, "execution.threads=1"], rounded=True, seconds=0)
    assert {way.settings for way in ways} == {
        (f"execution.compile={compiled}", f"execution.precision={precision}")
        for compiled in ("false", "true")
        for precision in ("float32", "bf16")
    }
    assert [way.whole for way in ways] == sorted(way.whole for way in ways)
    for way in ways:
        assert way.whole == pytest.approx(way.first + 99 * way.later)
        assert way.later > 0


def test_results_are_not_rounded_unless_allowed():
    ways = tune("sinusoid-10shot", settings=TINY, seconds=0)
    assert not any("precision" in setting for way in ways for setting in way.settings)


def test_what_was_set_is_not_varied():
    ways = tune("sinusoid-10shot", settings=[*TINY, "execution.threads = 1", "execution.compile=false"], seconds=0)
    assert [way.settings for way in ways] == [()]


def test_reinforcement_learning_varies_threads_and_compiling():
    settings = ["tasks.horizon=3", "tasks.trajectories=2", "meta.batch_size=2", "model.hidden=[4]"]
    ways = tune("navigation", settings=[*settings, "execution.threads=1"], rounded=True, seconds=0)
    assert {way.settings for way in ways} == {("execution.compile=false",), ("execution.compile=true",)}


def test_what_comes_from_python_is_refused():
    recipe = {"tasks": {"kind": "custom"}, "model": {"kind": "custom"}, "loss": {"kind": "mse"}}
    with pytest.raises(RecipeError, match="Only what a recipe describes can be tuned"):
        tune(recipe | {"algorithm": {"kind": "maml"}})


def test_the_command_tells_how_to_train():
    settings = [word for setting in [*TINY, "execution.threads=1"] for word in ("--set", setting)]
    result = CliRunner().invoke(cli.app, ["tune", "sinusoid-10shot", *settings, "--seconds", "0"])
    assert result.exit_code == 0
    assert "then, ms" in result.output
    assert "Fastest: fewstep train sinusoid-10shot --set 'model.hidden=[4]'" in result.output
    assert result.output.rstrip().rpartition("--set ")[2] in ("execution.compile=true", "execution.compile=false")
