"""Runs of reinforcement learning: trained, resumed, evaluated, plotted, refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.core.problems import assert_same
from torch import nn

import fewstep as library
from fewstep.core import running
from fewstep.errors import EpisodeError, FewstepError, NonFiniteError, RecipeError, RunError
from fewstep.experiments.recipe_files import load_recipe
from fewstep.rl.environment import Continuous, Transition
from fewstep.rl.episodes import Episode

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SMALL = [
    "tasks.trajectories=4",
    "tasks.horizon=6",
    "model.hidden=[8]",
    "meta.batch_size=3",
    "meta.iterations=4",
    "validation.every=2",
    "validation.tasks=3",
    "evaluate.tasks=5",
    "evaluate.steps=2",
    "evaluate.trajectories=5",
    "execution.over_tasks=vectorized",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return library.train("navigation", out=tmp_path_factory.mktemp("runs") / "whole", settings=SMALL)


def metrics(run: Any) -> list[dict[str, Any]]:
    """All that was recorded, but for the time that it took."""
    return [{k: v for k, v in record.items() if not k.startswith(("seconds", "peak"))} for record in run.metrics()]


def test_the_same_seed_gives_the_same_numbers(run: Any, tmp_path: Path) -> None:
    again = library.train("navigation", out=tmp_path / "again", settings=SMALL)
    assert metrics(again) == metrics(run)
    assert_same(library.load(again, checkpoint="final").meta, library.load(run, checkpoint="final").meta, 0, 0)
    other = library.train("navigation", out=tmp_path / "other", settings=[*SMALL, "seed=1"])
    assert metrics(other) != metrics(run)


def test_a_resumed_run_ends_bit_for_bit_where_a_whole_one_does(run: Any, tmp_path: Path) -> None:
    library.train("navigation", out=tmp_path / "half", settings=[*SMALL, "meta.iterations=2"])
    resumed = library.train("navigation", out=tmp_path / "half", settings=SMALL, resume=True)
    assert metrics(resumed) == metrics(run)
    assert_same(library.load(resumed, checkpoint="final").meta, library.load(run, checkpoint="final").meta, 0, 0)


def test_every_iteration_records_returns_and_where_time_went(run: Any) -> None:
    records = [record for record in run.metrics() if record["split"] == "train"]
    assert [record["iteration"] for record in records] == [1, 2, 3, 4]
    for record in records:
        assert record["return_before"] < 0
        assert record["accepted"] in (0, 1)
        assert {"seconds_sampling", "seconds_adaptation", "seconds_baseline", "seconds_trust_region"} <= record.keys()


def test_validation_keeps_the_highest_return(run: Any) -> None:
    checks = [record for record in run.metrics() if record["split"] == "val"]
    assert all(record["score"] == -record["return"] for record in checks)
    best = max(checks, key=lambda record: record["return"])["iteration"]
    assert library.load(run).iteration == best


def test_evaluation_has_fresh_tasks_and_its_own_number_of_trajectories(run: Any) -> None:
    result = library.evaluate(run)
    assert (result["metric"], result["tasks"], result["trajectories"]) == ("return", 5, 5)
    assert (result["shots"], result["queries"], result["normalization"]) == (None, None, None)
    assert [point["step"] for point in result["steps"]] == [0, 1, 2]
    assert library.evaluate(run) == result
    more = library.evaluate(run, trajectories=7, steps=1)
    assert (more["trajectories"], len(more["steps"]), more["fingerprint"]) == (7, 2, result["fingerprint"])
    assert len(list((run.path / "evaluations").glob("*.json"))) == 2


def test_a_loaded_run_adapts_to_a_task(run: Any) -> None:
    policy = library.load(run).adapt(torch.tensor([0.2, 0.3]), steps=2)
    assert policy(torch.zeros(4, 2)).mean.shape == (4, 2)


def test_commands_work_as_for_other_tasks(fewstep: Any, tmp_path: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    for name in ("navigation", "navigation-oracle"):
        code, out, err = fewstep("train", name, "--out", name, *settings)
        assert (code, "Trained" in out) == (0, True), err
        assert fewstep("evaluate", name)[0] == 0
    _, out, _ = fewstep("evaluate", "navigation", "--json")
    assert json.loads(out)["metric"] == "return"
    code, out, _ = fewstep("evaluate", "navigation", "--trajectories", 3)
    assert "Average return, meta-test, 5 tasks, 3 trajectories" in out
    assert "-40.41" not in out  # the paper's, of episodes of 100 steps
    whole = ["--set", "tasks.horizon=100", "--set", "meta.iterations=1"]
    assert fewstep("train", "navigation", "--out", "whole", *settings, *whole)[0] == 0
    assert "-40.41" in fewstep("evaluate", "whole", "--trajectories", 3)[1]
    code, _, err = fewstep("compare", "navigation", "navigation-oracle", "--out", "both.png")
    assert code == 0, err
    for figure in ("training", "steps", "adaptation"):
        path = tmp_path / f"{figure}.png"
        code, _, err = fewstep("plot", "navigation", "navigation-oracle", "--figure", figure, "--out", path)
        assert (code, path.stat().st_size > 10_000) == (0, True), err


def test_commands_that_mean_nothing_here_say_so(run: Any, fewstep: Any) -> None:
    assert "trajectories, steps and tasks" in fewstep("evaluate", run.path, "--shots", 3)[2]
    assert "on examples" in fewstep("inspect", run.path)[2]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("meta.optimizer=adam", "meta.optimizer = 'trpo' goes with loss.kind = 'reinforce'"),
        ("loss.kind=mse", "loss.discount: unknown key"),
        ("algorithm.kind=reptile", "algorithm.kind = 'reptile' has no meaning"),
        ("meta.lr=0.1", "meta.lr has no meaning"),
        ("meta.clip_norm=1.0", "meta.clip_norm has no meaning"),
        ("evaluate.shots=3", "evaluate.shots has no meaning"),
        ("model.norm=batch", "model.norm has no meaning"),
        ("loss.discount=1.5", "loss.discount"),
        ("tasks.trajectories=0", "tasks.trajectories"),
        ("meta.max_kl=0.0", "meta.max_kl"),
        ("model.init_std=0.1", "exclude each other"),
    ],
)
def test_impossible_recipes_are_refused(setting: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("navigation", [setting])


@pytest.mark.parametrize(
    "setting", ["meta.max_kl=0.1", "meta.cg_iterations=20", "evaluate.trajectories=3", "evaluate.later_steps=0.5"]
)
def test_what_belongs_to_reinforcement_is_refused_elsewhere(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"goes with loss\.kind = 'reinforce'"):
        load_recipe("sinusoid-10shot", [setting])


def test_the_meta_update_is_compiled_where_that_is_asked_for(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions: list[Any] = []
    monkeypatch.setattr(running, "_compile", lambda function, **_: functions.append(function) or function)
    settings = [*SMALL, "execution.over_tasks=auto", "execution.compile=true", "execution.chunk_size=3"]
    compiled = library.train("navigation", out=tmp_path / "compiled", settings=settings)
    assert len(functions) == 4  # gradient, what products keep, products, and the values of the line search
    last, expected = (each.metrics()[-1]["return"] for each in (compiled, run))
    assert last == pytest.approx(expected, rel=1e-3)


def test_more_products_with_the_curvature_find_another_step(tmp_path: Path) -> None:
    def step(iterations: int) -> float:
        settings = [*SMALL, "meta.iterations=2", f"meta.cg_iterations={iterations}"]
        return metrics(library.train("navigation", out=tmp_path / str(iterations), settings=settings))[0]["objective"]

    assert step(10) < step(1)  # the surrogate loss falls further


@dataclass(frozen=True)
class Push:
    """A number to be held near the task's; optionally something goes wrong."""

    broken: bool = False
    horizon: int = 5

    @property
    def observation_size(self) -> int:
        return 1

    @property
    def actions(self) -> Continuous:
        return Continuous(1)

    def sample_tasks(self, num_tasks: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num_tasks, 1, generator=generator)

    def reset(self, tasks: Tensor, trajectories: int, generator: torch.Generator) -> tuple[Pushing, Tensor]:
        start = torch.randn(len(tasks), trajectories, 1, generator=generator)
        return Pushing(tasks, start, self.broken), start


class Pushing:
    def __init__(self, goals: Tensor, places: Tensor, broken: bool) -> None:
        self.goals, self.places, self.broken = goals[:, None], places, broken

    def step(self, actions: Tensor) -> Transition:
        self.places = self.places + actions
        rewards = -(self.places - self.goals).square().squeeze(-1)
        return Transition(self.places, rewards / (0 if self.broken else 1), rewards > 1)


CUSTOM: dict[str, Any] = {
    "tasks": {"kind": "custom", "trajectories": 3},
    "model": {"kind": "mlp", "hidden": [4]},
    "loss": {"kind": "reinforce"},
    "algorithm": {"kind": "fomaml", "inner_lr": 0.1},
    "meta": {"batch_size": 2, "iterations": 2},
    "validation": {"every": 1, "tasks": 2},
    "evaluate": {"tasks": 2, "steps": 1},
    "execution": {"over_tasks": "vectorized"},
}


def test_an_environment_and_a_network_of_your_own(tmp_path: Path) -> None:
    with_module = CUSTOM | {"model": {"kind": "custom"}}
    for name, recipe, model in (("mlp", CUSTOM, None), ("module", with_module, nn.Linear(1, 1))):
        run = library.train(recipe, out=tmp_path / name, task_distribution=Push(), model=model)
        result = library.evaluate(run, task_distribution=Push(), model=model)
        assert result["metric"] == "return"
        policy = library.load(run, task_distribution=Push(), model=model).adapt(torch.tensor([0.5]))
        assert policy(torch.zeros(1, 1)).mean.shape == (1, 1)


def test_a_policy_is_loaded_without_its_environment_and_adapts_to_episodes(tmp_path: Path) -> None:
    def record(policy: nn.Module) -> list[Episode]:
        observations = torch.rand(4, 2)
        return [Episode(observations, policy(observations).sample(), torch.rand(4))] * 3

    recipe = CUSTOM | {"tasks": {"kind": "custom", "trajectories": 3, "reveal": True}}
    run = library.train(recipe, out=tmp_path / "run", task_distribution=Push())
    learner = library.load(run)
    assert learner.environment.horizon == Push.horizon
    policy = learner.adapt(record)
    assert policy(torch.zeros(2)).mean.shape == (1,)
    with pytest.raises(FewstepError, match=r"only its spaces are known .* task_distribution="):
        learner.adapt(torch.tensor([0.3]))
    with pytest.raises(RecipeError, match="pass them as `task_distribution=`"):
        library.evaluate(run)


def test_the_oracle_of_an_environment_of_your_own_sees_the_task(tmp_path: Path) -> None:
    recipe = CUSTOM | {"tasks": {"kind": "custom", "trajectories": 3, "reveal": True}}
    run = library.train(recipe, out=tmp_path / "oracle", task_distribution=Push())
    assert library.load(run, task_distribution=Push()).environment.observation_size == 2


def test_what_is_no_environment_is_refused(tmp_path: Path) -> None:
    endless = Push(horizon=0)
    for tasks, words in (
        (object(), "object has no 'observation_size'"),
        (None, r"tasks come from Python: pass them as `task_distribution=`, to `fewstep.train`"),
        (Push, "the class Push was passed, not one made of it"),
        (endless, "its horizon must be a whole number of at least 1, and is 0"),
    ):
        with pytest.raises(RecipeError, match=words):
            library.train(CUSTOM, out=tmp_path / "none", task_distribution=tasks)


def test_an_environment_with_other_actions_than_the_runs_is_told_so(tmp_path: Path) -> None:
    class Wider(Push):
        @property
        def actions(self) -> Continuous:
            return Continuous(2)

    run = library.train(CUSTOM, out=tmp_path / "run", task_distribution=Push())
    for opened in (library.load, library.evaluate):
        with pytest.raises(RunError, match=r"observations and actions .*: actions expected .*1.*got .*2.*run's own"):
            opened(run, task_distribution=Wider())


def test_an_environment_that_breaks_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"rewards before adaptation .* Nothing was updated"):
        library.train(CUSTOM, out=tmp_path / "broken", task_distribution=Push(broken=True))


def test_figures_show_runs_of_one_kind(run: Any, tmp_path: Path) -> None:
    from fewstep.reporting.report import plot_runs

    other = library.train(
        "sinusoid-10shot",
        out=tmp_path / "sine",
        settings=["meta.iterations=2", "validation.tasks=2", "evaluate.tasks=2"],
    )
    library.evaluate(other)
    library.evaluate(run)
    for figure, words in (("training", "one measure"), ("adaptation", "one kind"), ("steps", "one metric")):
        with pytest.raises(RunError, match=words):
            plot_runs([run.path, other.path], tmp_path / "figure.png", figure)  # type: ignore[arg-type]


def test_the_tasks_of_another_recipe_are_stored_beside_the_runs_own(run: Any, tmp_path: Path) -> None:
    copied = shutil.copytree(run.path, tmp_path / "copied")
    library.evaluate(copied)
    own = {path.name: path.read_text() for path in (copied / "evaluations").iterdir()}
    library.evaluate(copied, tasks_from="navigation", tasks=5, steps=2, trajectories=5)
    after = {path.name: path.read_text() for path in (copied / "evaluations").iterdir()}
    assert own.items() <= after.items()
    assert [name.startswith("tasks-from-navigation-test-") for name in after.keys() - own.keys()] == [True, True]


@pytest.mark.parametrize("other", ["navigation-oracle", "cheetah-velocity"])
def test_the_tasks_of_another_kind_or_with_the_task_in_sight_are_refused(run: Any, other: str) -> None:
    with pytest.raises(RecipeError, match="must name tasks of the same shape"):
        library.evaluate(run, tasks_from=other)


def test_a_step_size_that_diverges_is_not_chosen(tmp_path: Path) -> None:
    tuning = [*SMALL, "meta.iterations=0", "evaluate.tune_inner_lr=[1e38, 0.5]"]
    run = library.train("navigation-pretrained", out=tmp_path / "run", settings=tuning)
    assert library.evaluate(run)["inner_lr"] == 0.5


@pytest.mark.parametrize("kind", ["anil", "boil"])
def test_the_head_of_a_policy_is_found(kind: str, tmp_path: Path) -> None:
    run = library.train("navigation", out=tmp_path / kind, settings=[*SMALL, f"algorithm.kind={kind}"])
    learner, task = library.load(run), torch.tensor([0.3, -0.2])
    before, after = learner.meta.model, dict(learner.adapt(task, 1).named_parameters())
    moved = {name for name, value in before.items() if not value.equal(after[name])}
    heads = {"network.head.weight", "network.head.bias"}
    assert moved == (heads if kind == "anil" else set(before) - heads)


@pytest.mark.parametrize("every", [6, 2])  # while it trains, or is validated
@pytest.mark.parametrize("fault", [EpisodeError, ConnectionError])
def test_what_was_learned_before_an_environment_fails_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, every: int, fault: type[Exception]
) -> None:
    resets: list[int] = []

    class Failing(Push):
        def reset(self, tasks: Tensor, trajectories: int, generator: torch.Generator) -> tuple[Pushing, Tensor]:
            resets.append(trajectories)
            if len(resets) > 5:
                raise fault("a wire came off")
            return super().reset(tasks, trajectories, generator)

    recipe = CUSTOM | {"meta": {"batch_size": 2, "iterations": 6}, "validation": {"every": every, "tasks": 2}}
    with pytest.raises(EpisodeError, match="a wire came off"):
        library.train(recipe, out=tmp_path / "run", task_distribution=Failing())
    assert "Stopped after iteration 2 of 6; saved" in caplog.text
    run = library.train(recipe, out=tmp_path / "run", task_distribution=Push(), resume=True)
    assert "begins again" not in caplog.text
    whole = library.train(recipe, out=tmp_path / "whole", task_distribution=Push())
    assert metrics(run) == metrics(whole)
