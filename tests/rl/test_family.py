"""Gymnasium environments of the user's own, in this process and in workers."""

from __future__ import annotations

import gc
import multiprocessing
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep
from fewstep.core.rng import generator
from fewstep.errors import EpisodeError, FewstepError, NonFiniteError
from fewstep.rl.environment import Continuous, Discrete
from fewstep.rl.envs.family import GymnasiumFamily
from fewstep.rl.envs.slots import SlotError, guarded
from fewstep.rl.envs.spaces import Spaces

gymnasium = pytest.importorskip("gymnasium")

from . import toys  # noqa: E402  (needs Gymnasium)

EXAMPLES = Path(__file__).parents[2] / "examples"


def sample(num_tasks, stream):
    return torch.rand(num_tasks, 1, generator=stream)


def family(make=toys.make_toy, **options):
    return GymnasiumFamily(make, sample, 10, **options)


def play(environment, tasks, trajectories=2, steps=6, seed=0):
    episodes, first = environment.reset(torch.tensor(tasks).unsqueeze(1), trajectories, generator(seed, "start"))
    stream = generator(seed, "actions")
    shape = (len(tasks), trajectories, 2)
    return [(first,), *(tuple(episodes.step(torch.randn(shape, generator=stream))) for _ in range(steps))]


def same(one, other):
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.fixture(scope="module")
def two_workers():
    with family(workers=2) as environment:
        yield environment


def test_spaces_become_features_and_actions():
    environment = family()
    assert environment.observation_size == 4
    assert environment.actions == Continuous(2)
    assert family(toys.make_choosing).actions == Discrete(3)


def test_one_seed_gives_one_set_of_trajectories_with_any_number_of_workers(two_workers):
    tasks = [0.5, 1.0, 1.5]
    alone = play(family(), tasks)
    assert alone[0][0].shape == (3, 2, 4)
    assert same(alone, play(two_workers, tasks))
    assert same(alone, play(two_workers, tasks))
    assert not same(alone, play(two_workers, tasks, seed=1))
    assert same(play(family(), [0.5], trajectories=1), play(two_workers, [0.5], trajectories=1))  # fewer than workers


def test_environments_that_are_given_tasks_do_as_new_ones_do():
    made = []

    def make(task):
        made.append(task)
        return toys.Toy(task)

    environment = family(make, set_task=toys.retask)
    for tasks in ([0.5, 1.0], [1.5], [0.1, 0.2, 0.3]):
        assert same(play(environment, tasks), play(family(), tasks))
    assert len(made) == 1 + 4 + 2 + 2  # to look at spaces; then only those that were missing


def test_actions_are_mapped_to_the_environments_range_and_clipped():
    environment = family()
    episodes, _ = environment.reset(torch.ones(1, 1), 1, generator(0))
    for action in ([-1.0, -1.0], [0.0, 0.5], [9.0, 1.0]):
        episodes.step(torch.tensor(action).view(1, 1, 2))
    taken = environment._runner._environments[0].actions
    assert [action.tolist() for action in taken] == [[0.0, -4.0], [1.0, 2.0], [2.0, 4.0]]
    assert environment.native(torch.tensor([0.0, 0.5])).tolist() == [1.0, 2.0]  # of one observation


@pytest.mark.parametrize(("low", "high"), [(-128, 127), (0, 3)])
def test_whole_numbers_of_a_range_are_all_within_reach(low, high):
    class Whole(toys.Toy):
        action_space = gymnasium.spaces.Box(low, high, (1,), np.int8)

    spaces = Spaces(Whole([1.0]))
    assert spaces.native(torch.tensor([[-1.0], [0.98], [1.0]])).ravel().tolist() == [
        low,
        round(low + 0.99 * (high - low)),
        high,
    ]


def test_choices_count_from_the_environments_own_start():
    environment = family(toys.make_choosing)
    episodes, _ = environment.reset(torch.ones(2, 1), 1, generator(0))
    episodes.step(torch.tensor([[0], [2]]))
    assert [environment._runner._environments[slot].actions[0].item() for slot in (0, 1)] == [5, 7]


def test_termination_and_truncation_both_end_an_episode_and_nothing_more_is_paid(two_workers):
    for environment in (family(), two_workers):
        steps = play(environment, [2.0, 3.0, 1.0], trajectories=1)[1:]
        ended = torch.stack([terminated for *_, terminated in steps]).squeeze(-1)
        assert ended.int().argmax(0).tolist() == [3, 4, 0]
        assert ended.any(0).tolist() == [True, True, False]
        assert steps[3][1][0] != 0
        assert not any(step[1][0] for step in steps[4:])
        assert steps[5][0][0].equal(steps[3][0][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_environment_that_raises_is_named_with_its_task_and_where(workers, two_workers):
    environment = two_workers if workers else family()
    with pytest.raises(EpisodeError, match=r"`step` .* task \[13.0\] raised ArithmeticError: thirteen") as caught:
        play(environment, [1.0, 13.0])
    assert "in step" in "".join(caught.value.__notes__)
    assert len(play(environment, [1.0, 1.0])) == 7  # and the family starts anew
    with pytest.raises(EpisodeError, match=r"`make` .* task \[12.0\] raised ValueError: no such toy"):
        play(environment, [1.0, 12.0])


@pytest.mark.parametrize("workers", [0, 2])
def test_observations_of_another_size_are_named_with_their_task(workers):
    raised = pytest.raises(EpisodeError, match=r"task \[2.0\] raised 6 numbers were observed, and 4 in the first task")
    with family(toys.make_wider, workers=workers) as environment, raised:
        play(environment, [1.0, 2.0])


@pytest.mark.parametrize("wrapped", [False, True])
def test_one_environment_for_several_episodes_is_refused(wrapped):
    toy = toys.Toy([1.0])
    make = (lambda _: gymnasium.wrappers.TimeLimit(toy, 5)) if wrapped else (lambda _: toy)
    with pytest.raises(EpisodeError, match="returned the environment of another episode: make a new one each time"):
        play(family(make), [1.0, 2.0])


def test_an_environment_that_exits_is_named_too():
    with pytest.raises(SlotError, match="SystemExit: 3"):
        guarded(0, "step", lambda: sys.exit(3))


def test_a_worker_that_dies_is_an_error_at_once_and_leaves_no_process_behind():
    with family(workers=2) as environment:
        play(environment, [1.0, 1.0], steps=1)
        pids = [process.pid for process in environment._runner._processes]
        with pytest.raises(EpisodeError, match="worker 1, with episodes 2 to 3, was killed by SIGKILL"):
            play(environment, [1.0, 14.0])
        assert toys.wait_until_gone(pids)


def test_workers_close_their_environments_and_end_with_the_family(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_TEST_MARKER", str(tmp_path / "closed"))
    environment = family(workers=1)
    (tmp_path / "closed").unlink()  # the one that was made to look at its spaces
    play(environment, [1.0, 1.0], steps=1)
    pids = [process.pid for process in environment._runner._processes]
    del environment
    gc.collect()
    assert toys.wait_until_gone(pids)
    assert (tmp_path / "closed").read_text() == "closed\n" * 4
    assert not set(pids) & {process.pid for process in multiprocessing.active_children()}


def test_an_observation_that_is_no_number_is_an_error_that_names_the_task():
    with pytest.raises(NonFiniteError, match=r"Observations .* after 3 steps, in task 1 .\[15.0\].*trajectory 0"):
        play(family(), [1.0, 15.0])


def test_an_action_that_is_no_number_is_an_error_that_says_where():
    episodes, _ = family().reset(torch.ones(2, 1), 2, generator(0))
    actions = torch.zeros(2, 2, 2)
    actions[1, 0, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="task 1, trajectory 0, at time 0"):
        episodes.step(actions)


def test_tasks_that_are_whole_numbers_leave_observations_and_rewards_as_they_are():
    environment = GymnasiumFamily(toys.make_toy, lambda n, g: torch.randint(1, 2, (n, 1), generator=g), 10)
    tasks = environment.sample_tasks(2, generator(0))
    episodes, first = environment.reset(tasks, 2, generator(0))
    transition = episodes.step(torch.zeros(2, 2, 2))
    assert {first.dtype, transition.observations.dtype, transition.rewards.dtype} == {torch.get_default_dtype()}
    assert (transition.rewards != transition.rewards.round()).all()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("four", "`step` gives observation, reward, terminated, truncated and a dict of information: got 4 values"),
        ("nothing", "got NoneType"),
        ("old reset", "`reset` gives an observation and a dict of information: got ndarray"),
        ("rewards", "gives a reward that is one number: got ndarray"),
        ("shape", "have the shape (2, 2): got (3,)"),
        ("layout", "have the shape (2, 2): got (4, 1)"),
    ],
)
def test_an_environment_that_breaks_gymnasiums_protocol_is_told_what_it_is(fault, words):
    environment = family(toys.Broken.making(fault))
    with pytest.raises(EpisodeError, match=re.escape(words)):
        play(environment, [1.0])


def test_the_full_stop_of_an_environments_own_error_is_not_doubled():
    def make(_):
        raise ValueError("No such toy.")

    with pytest.raises(EpisodeError, match=r"No such toy\. Try the environment of this task"):
        family(make)


def test_in_workers_too():
    with family(toys.make_broken, workers=1) as environment, pytest.raises(EpisodeError, match="got 4 values"):
        play(environment, [1.0])


@pytest.mark.parametrize("drawn", [torch.ones(1), [[1.0]], None])
def test_a_sampler_that_gives_no_rows_is_an_error_at_once(drawn):
    with pytest.raises(EpisodeError, match=r"one row of parameters for each task, \[1, parameters\]"):
        GymnasiumFamily(toys.make_toy, lambda *_: drawn, 10)


def test_tasks_that_are_not_finite_are_the_samplers_fault():
    with pytest.raises(EpisodeError, match=r"`sample_tasks` must give finite numbers: got \[\[nan\]\]"):
        GymnasiumFamily(toys.make_toy, lambda *_: torch.tensor([[torch.nan]]), 10)


@pytest.mark.parametrize(
    "options", [{"horizon": 0}, {"horizon": 2.5}, {"horizon": 10, "workers": -1}, {"horizon": 10, "workers": 1.5}]
)
def test_impossible_numbers_are_refused(options):
    with pytest.raises(ValueError, match=r"`(horizon|workers)` must be a whole number, at least \d: got"):
        GymnasiumFamily(toys.make_toy, sample, **options)


def test_what_cannot_be_sent_to_workers_is_refused_with_what_to_do():
    with pytest.raises(FewstepError, match="top level of a module, or set workers=0"):
        play(family(lambda task: toys.Toy(task), workers=1), [1.0])


@pytest.mark.parametrize(("make", "what"), [(toys.Unbounded, "ActionWrapper"), (toys.Seeing, "FlattenObservation")])
def test_other_spaces_are_refused_with_the_wrapper_to_use(make, what):
    with pytest.raises(FewstepError, match=what):
        family(make)


def test_a_function_that_makes_nothing_is_named():
    with pytest.raises(FewstepError, match="must return a Gymnasium environment for a task: got None"):
        family(lambda task: None)


def test_a_single_environment_is_no_family():
    recipe = {"tasks": {"kind": "custom"}, "model": {"kind": "mlp"}, "loss": {"kind": "reinforce"}}
    with pytest.raises(FewstepError, match="GymnasiumFamily makes tasks of them"):
        fewstep.train(recipe | {"algorithm": {"kind": "maml"}}, out="nowhere", task_distribution=toys.Toy(1.0))


def test_wrong_actions_and_old_episodes_are_refused():
    environment = family(toys.make_choosing)
    old, _ = environment.reset(torch.ones(1, 1), 1, generator(0))
    with pytest.raises(FewstepError, match="below 3"):
        old.step(torch.tensor([[3]]))
    with pytest.raises(FewstepError, match=r"\(1, 1\): got \(1, 1, 1\)"):
        old.step(torch.tensor([[[0]]]))
    environment.reset(torch.ones(1, 1), 1, generator(0))
    with pytest.raises(FewstepError, match="one set at a time"):
        old.step(torch.tensor([[0]]))


def test_the_examples_tasks_differ_and_their_returns_do_not_depend_on_workers(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    examples = runpy.run_path(str(EXAMPLES / "gymnasium_families.py"))
    for kind in ("cartpoles", "pendulums"):
        first, again = (examples["random_returns"](examples[kind](), 4) for _ in range(2))
        assert first.equal(again)
        assert len(first.unique()) > 1
    cartpole = examples["make_cartpole"]([0.8, 5.0]).unwrapped
    assert (cartpole.length, cartpole.gravity, cartpole.polemass_length) == (0.8, 5.0, pytest.approx(0.08))
    assert examples["pendulums"]().actions == Continuous(1)


@pytest.mark.slow
def test_the_example_runs_as_a_script_with_workers():
    import subprocess

    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "gymnasium_families.py")], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 2
