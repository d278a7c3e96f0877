"""Half-cheetah and ant beside an obvious loop over plain `mj_step`, and beside Gymnasium's own environments."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fewstep.core.rng import generator
from fewstep.errors import FewstepError, NonFiniteError
from fewstep.rl.envs.locomotion import LOCOMOTION

mujoco = pytest.importorskip("mujoco")
gymnasium = pytest.importorskip("gymnasium")

pytestmark = pytest.mark.filterwarnings("ignore:.*settotalmass")
PHYSICS = ("paper", "gymnasium")
NAMES = sorted(LOCOMOTION)
SETTINGS = [(name, physics) for name in NAMES for physics in PHYSICS]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log of warnings where it is


def begin(name, physics, tasks=3, trajectories=2, threads=1, seed=0):
    environment = LOCOMOTION[name](physics, threads=threads)
    goals = environment.sample_tasks(tasks, generator(seed, "tasks")).double()
    episodes, first = environment.reset(goals, trajectories, generator(seed, "start"))
    return environment, goals, episodes, first


def random_actions(environment, steps, tasks=3, trajectories=2, seed=0):
    shape = (steps, tasks, trajectories, environment.actions.size)
    return torch.randn(shape, generator=generator(seed, "actions"), dtype=torch.float64)


def plain_model(name, physics):
    """Written from the description in the documents: Gymnasium's files, changed by hand for the ant of the paper."""
    root = gymnasium.__path__[0] + "/envs/mujoco/assets/"
    if name.startswith("cheetah"):
        return mujoco.MjModel.from_xml_path(root + "half_cheetah.xml")
    model = mujoco.MjModel.from_xml_path(root + "ant.xml")
    if physics == "paper":
        model.opt.timestep = 0.02
        model.geom_solref[:] = (0.02, 1)
        model.geom_solimp[:, :3] = (0.8, 0.8, 0.01)
    return model


def com_velocity(model, data):
    """Of the whole robot, from the velocity of each body's centre of mass."""
    momentum = np.zeros(3)
    for body in range(1, model.nbody):
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
        momentum += model.body_mass[body] * velocity[3:]
    return momentum / model.body_mass[1:].sum()


def plain_observation(name, physics, model, data):
    forces = np.clip(data.cfrc_ext, -1, 1)
    com = (model.body_mass[:, None] * data.xipos).sum(0) / model.body_mass.sum()
    if name.startswith("cheetah"):
        return np.concatenate([data.qpos[1:], data.qvel, com if physics == "paper" else []])
    if physics == "paper":
        return np.concatenate([data.qpos, data.qvel, forces.ravel(), data.body("torso").xmat, com])
    return np.concatenate([data.qpos[2:], data.qvel, forces[1:].ravel()])


def plain_reward(name, physics, goal, moved, velocity, data, action):
    v = velocity[0] if physics == "paper" else moved / 0.05
    progress = -abs(v - goal) if name.endswith("velocity") else goal * v
    effort = np.sum(np.square(action))
    contact = np.sum(np.square(np.clip(data.cfrc_ext, -1, 1)))
    if name.startswith("cheetah"):
        return progress - (0.05 if physics == "paper" else 0.1) * effort
    if physics == "paper":
        bonus = 1.05 if name.endswith("velocity") else 0.05
        return progress + bonus - 0.005 * effort - 0.0005 * contact
    healthy = 0.2 <= data.qpos[2] <= 1.0
    return progress + healthy - 0.5 * effort - 0.0005 * contact


@pytest.mark.parametrize(("name", "physics"), SETTINGS)
def test_rewards_and_observations_are_those_of_a_plain_loop(name, physics):
    environment, goals, episodes, first = begin(name, physics)
    model = plain_model(name, physics)
    skip = 5 if physics == "gymnasium" else 1
    states = episodes.simulation.states().reshape(3, 2, -1)
    actions = random_actions(environment, 40)
    transitions = [episodes.step(action) for action in actions]
    touched = 0.0
    for task in range(3):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = np.split(states[task, 1], [model.nq])
        refresh(model, data)
        assert_close(first[task, 1], plain_observation(name, physics, model, data))
        for action, transition in zip(actions[:, task, 1].clamp(-1, 1).numpy(), transitions, strict=True):
            before = data.qpos[0]
            data.ctrl[:] = action
            for _ in range(skip):
                mujoco.mj_step(model, data)
            refresh(model, data)
            moved, velocity = data.qpos[0] - before, com_velocity(model, data)
            reward = plain_reward(name, physics, goals[task].item(), moved, velocity, data, action)
            assert_close(transition.rewards[task, 1], reward)
            assert_close(transition.observations[task, 1], plain_observation(name, physics, model, data))
            touched += np.abs(data.cfrc_ext).sum()
            if transition.terminated[task, 1]:
                break
    assert touched > 0


def refresh(model, data):
    """All that follows from the state, contact forces included; solving for them leaves no trace in the simulation."""
    warmstart = data.qacc_warmstart.copy()
    mujoco.mj_forward(model, data)
    mujoco.mj_rnePostConstraint(model, data)
    data.qacc_warmstart[:] = warmstart


def assert_close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_physics_is_that_of_gymnasiums_own_environment(name, monkeypatch):
    environment, goals, episodes, _ = begin(name, "gymnasium", trajectories=1)
    monkeypatch.setitem(sys.modules, "imageio", sys)  # Gymnasium's module imports it, to save what a window shows
    own = gymnasium.make("HalfCheetah-v5" if name.startswith("cheetah") else "Ant-v5").unwrapped
    own.reset(seed=0)
    own.set_state(*np.split(episodes.simulation.states()[0], [own.model.nq]))
    # Gymnasium's ant reports contact forces and the torso's place at the last stage of its Runge-Kutta step.
    same, tolerance = (slice(None), 1e-9) if name.startswith("cheetah") else (slice(0, 27), 0.03)
    for action in random_actions(environment, 60, trajectories=1):
        ours = episodes.step(action)
        observation, reward, terminated, _, info = own.step(action[0, 0].clamp(-1, 1).numpy())
        np.testing.assert_allclose(ours.observations[0, 0, same], observation[same], atol=1e-6)
        v, goal = info["x_velocity"], goals[0].item()
        progress = -abs(v - goal) if name.endswith("velocity") else goal * v
        expected = reward - info["reward_forward"] + progress
        np.testing.assert_allclose(ours.rewards[0, 0], expected, atol=tolerance)
        assert terminated == ours.terminated[0, 0]


@pytest.mark.parametrize(("name", "physics"), SETTINGS)
def test_one_seed_gives_one_set_of_trajectories_with_any_number_of_threads(name, physics):
    outcomes = []
    for threads in (1, 2, 5):
        environment, _, episodes, first = begin(name, physics, threads=threads)
        steps = [episodes.step(action) for action in random_actions(environment, 20)]
        outcomes.append([first, *(tensor for step in steps for tensor in step)])
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


def test_another_seed_gives_other_starts_and_no_two_episodes_begin_alike():
    *_, first = begin("ant-velocity", "paper", seed=0)
    *_, other = begin("ant-velocity", "paper", seed=1)
    starts = torch.cat([first, other]).flatten(0, 1)
    assert len(torch.unique(starts, dim=0)) == len(starts)


@pytest.mark.parametrize(("name", "low", "high"), [("cheetah-velocity", 0, 2), ("ant-velocity", 0, 3)])
def test_goal_velocities_are_uniform(name, low, high):
    goals = LOCOMOTION[name]().sample_tasks(20_000, generator(0, "goals")).flatten()
    assert low <= goals.min()
    assert goals.max() <= high
    counts = torch.histc(goals, 10, low, high) / 2000
    assert (counts - 1).abs().max() < 0.1


@pytest.mark.parametrize("name", ["cheetah-direction", "ant-direction"])
def test_directions_are_fair_coins(name):
    goals = LOCOMOTION[name]().sample_tasks(20_000, generator(0, "goals"))
    assert set(goals.flatten().tolist()) == {-1.0, 1.0}
    assert goals.mean().abs() < 0.03


def test_an_ant_that_leaves_the_heights_ends_its_episode_and_stays_as_it_is():
    _, _, episodes, _ = begin("ant-velocity", "paper")
    episodes.simulation.batch.qpos[1, 2] = 1.5
    still = torch.zeros(3, 2, 8)
    step = episodes.step(still)
    assert step.terminated.tolist() == [[False, True], [False, False], [False, False]]
    assert step.rewards[0, 1] != 0
    later = episodes.step(still)
    assert later.terminated.equal(step.terminated)
    assert later.rewards[0, 1] == 0
    assert later.observations[0, 1].equal(step.observations[0, 1])
    assert not later.observations[0, 0].equal(step.observations[0, 0])
    assert not episodes.diverged.any()


@pytest.mark.parametrize(("name", "physics"), SETTINGS)
def test_a_simulation_that_breaks_down_ends_its_episode_alone_and_is_counted(name, physics):
    environment, _, episodes, _ = begin(name, physics)
    episodes.simulation.batch.qvel[3] = 1e12
    action = torch.zeros(3, 2, environment.actions.size)
    for _ in range(2):
        step = episodes.step(action)
        assert episodes.diverged.tolist() == [[False, False], [False, True], [False, False]]
        assert step.terminated[1, 1]
        assert step.rewards[1, 1] == 0
        assert not step.observations[1, 1].any()
        assert all(tensor.isfinite().all() for tensor in (step.observations, step.rewards))


def test_an_action_that_is_no_number_is_an_error_that_says_where():
    _, _, episodes, _ = begin("cheetah-velocity", "paper")
    actions = torch.zeros(3, 2, 6)
    episodes.step(actions)
    actions[2, 1, 4] = float("nan")
    with pytest.raises(NonFiniteError, match="task 2, trajectory 1, at time 1"):
        episodes.step(actions)


def test_actions_of_another_shape_are_refused():
    _, _, episodes, _ = begin("cheetah-velocity", "paper")
    with pytest.raises(FewstepError, match=r"3, 2, 6.*got.*3, 1, 12"):
        episodes.step(torch.zeros(3, 1, 12))


def test_actions_are_clipped_and_reach_the_motors_whole_range():
    environment, _, episodes, _ = begin("ant-velocity", "paper")
    episodes.step(torch.full((3, 2, environment.actions.size), -7.0))
    assert (episodes.simulation.batch.ctrl == -150.0).all()


def test_observations_have_the_tasks_dtype_and_the_promised_size():
    for (name, physics), size in zip(SETTINGS, [125, 105, 125, 105, 20, 17, 20, 17], strict=True):
        environment = LOCOMOTION[name](physics)
        _, first = environment.reset(environment.sample_tasks(2, generator(0)), 1, generator(0))
        assert environment.observation_size == size
        assert first.shape == (2, 1, size)
        assert first.dtype == torch.float32


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (torch.zeros(2), r"\[tasks, 1\]"),
        (torch.tensor([[0.5]]), "-1 .backward. or"),
        (torch.tensor([[torch.nan]]), "fin"),
    ],
)
def test_tasks_that_are_none_of_this_environment_are_refused(tasks, message):
    with pytest.raises(FewstepError, match=message):
        LOCOMOTION["ant-direction"]().reset(tasks, 1, generator(0))


def test_directions_may_be_whole_numbers():
    environment = LOCOMOTION["cheetah-direction"]()
    rewards = []
    for tasks in (torch.tensor([[1]]), torch.tensor([[1.0]])):
        episodes, first = environment.reset(tasks, 1, generator(0))
        assert first.dtype == torch.float32
        rewards.append(episodes.step(torch.full((1, 1, 6), 0.5)).rewards)
    assert torch.equal(*rewards)
    assert rewards[0].any()
