"""fewstep's environments as Gymnasium's own, one task at a time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fewstep.core.rng import generator
from fewstep.errors import FewstepError
from fewstep.rl.envs import GYMNASIUM, register
from fewstep.rl.envs.locomotion import LOCOMOTION

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")


@pytest.mark.parametrize("physics", ["paper", "gymnasium"])
@pytest.mark.parametrize("name", sorted(GYMNASIUM))
def test_gymnasiums_own_checker_finds_nothing(name, physics):
    from gymnasium.utils.env_checker import check_env

    environment = gymnasium.make(f"fewstep.rl.envs:{name}", physics=physics).unwrapped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gymnasium.logger.warn", fail)
        check_env(environment, skip_render_check=True)


@pytest.mark.parametrize("shape", [(), (1,), (7,)])
def test_an_action_of_another_shape_is_refused_instead_of_broadcast(shape):
    environment = gymnasium.make("fewstep.rl.envs:fewstep/HalfCheetahVelocity-v0").unwrapped
    environment.reset(seed=0)
    with pytest.raises(FewstepError, match=r"shape \[6\]"):
        environment.step(np.zeros(shape))


def fail(message, *args, **_):
    if "infinity" not in message:  # sensors have no bounds
        pytest.fail(message % args if args else message)


@pytest.mark.parametrize("order", ["import gymnasium, fewstep.rl.envs", "import fewstep.rl.envs, gymnasium"])
def test_module_and_name_are_enough_whatever_was_imported_first(order):
    script = f"{order}; print(gymnasium.make('fewstep.rl.envs:fewstep/AntVelocity-v0').observation_space.shape)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "(125,)\n"


def test_registering_again_does_no_harm():
    register()
    assert set(GYMNASIUM) <= set(gymnasium.registry)


def test_it_is_the_environment_that_many_tasks_share():
    environment = gymnasium.make("fewstep/HalfCheetahVelocity-v0", task=1.25)
    _, info = environment.reset(seed=3)
    assert info == {"task": 1.25}
    episodes, _ = LOCOMOTION["cheetah-velocity"]().reset(torch.tensor([[1.25]]).double(), 1, generator(0))
    simulation = episodes.simulation.batch
    simulation.qpos[0], simulation.qvel[0] = environment.unwrapped._episodes.simulation.states()[0].reshape(2, 9)
    simulation.forward()
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 6)):
        observation, reward, terminated, truncated, info = environment.step(action.astype(np.float32))
        batched = episodes.step(torch.from_numpy(action.astype(np.float32)).double().view(1, 1, 6))
        np.testing.assert_array_equal(observation, batched.observations[0, 0])
        assert reward == batched.rewards.item()
        assert (terminated, truncated) == (False, False)
        assert set(info) == {"task", "x_velocity", "diverged"}


def test_an_episode_is_truncated_at_the_horizon_and_draws_its_task_from_the_seed():
    environment = gymnasium.make("fewstep/HalfCheetahDirection-v0")
    tasks = [environment.reset(seed=seed)[1]["task"] for seed in (0, *range(20))]
    assert tasks[0] == tasks[1]
    assert set(tasks) == {-1.0, 1.0}
    outcomes = [environment.step(environment.action_space.sample()) for _ in range(200)]
    assert [truncated for *_, truncated, _ in outcomes].index(True) == 199


def test_a_task_may_be_given_at_reset():
    environment = gymnasium.make("fewstep/AntVelocity-v0", task=1.0)
    assert environment.reset(options={"task": 2.5})[1] == {"task": 2.5}
    assert environment.reset()[1] == {"task": 1.0}


def test_a_task_that_is_none_is_refused_when_the_environment_is_made():
    with pytest.raises(FewstepError, match="direction is -1"):
        gymnasium.make("fewstep/AntDirection-v0", task=0.3)
