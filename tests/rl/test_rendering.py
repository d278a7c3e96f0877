"""Pictures without a screen, where the machine can draw some."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.core.rng import generator
from fewstep.errors import FewstepError
from fewstep.rl.envs.locomotion import LOCOMOTION
from fewstep.rl.envs.rendering import Camera, episode, frames, write_gif

pytest.importorskip("mujoco")
gymnasium = pytest.importorskip("gymnasium")


def standing(observations):
    return torch.zeros(1, 1, 8 if observations.shape[-1] > 50 else 6)


def jumping(observations):
    return torch.sign(torch.randn(1, 1, 8, generator=generator(int(observations.sum() * 1e6))))


def test_a_recorded_episode_has_a_state_per_time_step_and_stops_where_it_ends():
    cheetah = LOCOMOTION["cheetah-velocity"]()
    assert episode(cheetah, torch.tensor([1.0]), standing, generator(0)).shape == (201, 18)
    ant = LOCOMOTION["ant-direction"]()
    states = episode(ant, torch.tensor([1.0]), jumping, generator(0))
    assert len(states) < 201
    heights = states[:, 2]
    assert ((heights[:-1] >= 0.2) & (heights[:-1] <= 1)).all()
    assert not 0.2 <= heights[-1] <= 1


@pytest.mark.parametrize("name", ["cheetah-velocity", "ant-direction"])
def test_frames_show_a_robot_that_moves(name, screenless):
    environment = LOCOMOTION[name]()
    states = episode(environment, torch.tensor([1.0]), standing, generator(0))
    pictures = frames(environment, states, size=(96, 700), every=50)
    assert pictures.shape == (5, 96, 700, 3)
    assert pictures.dtype == np.uint8
    assert pictures[0].std() > 10
    assert (pictures[0] != pictures[-1]).any()


def test_a_state_always_looks_the_same(screenless):
    environment = LOCOMOTION["ant-velocity"]()
    states = episode(environment, torch.tensor([1.0]), standing, generator(0))[:2]
    np.testing.assert_array_equal(frames(environment, states), frames(environment, states))


def test_gymnasium_renders_the_same_robot(screenless):
    environment = gymnasium.make("fewstep/AntVelocity-v0", render_mode="rgb_array", width=64, height=48)
    environment.reset(seed=0)
    picture = environment.render()
    assert picture.shape == (48, 64, 3)
    states = environment.unwrapped._episodes.simulation.states()
    np.testing.assert_array_equal(picture, frames(LOCOMOTION["ant-velocity"](), states, size=(48, 64))[0])
    environment.close()


def test_an_animation_keeps_its_pictures_and_its_pace(tmp_path):
    pictures = np.stack([np.full((8, 10, 3), shade, np.uint8) for shade in (0, 90, 200)])
    write_gif(tmp_path / "a.gif", pictures, 0.05)
    with Image.open(tmp_path / "a.gif") as animation:
        assert (animation.n_frames, animation.size, animation.info["duration"]) == (3, (10, 8), 50)
        animation.seek(2)
        assert np.asarray(animation.convert("RGB")).min() == 200


def test_where_nothing_draws_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("fewstep.rl.envs.rendering.find_library", lambda _: None)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(FewstepError, match=r"neither EGL nor OSMesa was found.*libosmesa6"):
        Camera(LOCOMOTION["ant-velocity"]().robot)


def test_a_backend_that_fails_is_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr("fewstep.rl.envs.rendering.import_module", lambda _: 1 / 0)
    with pytest.raises(FewstepError, match=r"egl failed .ZeroDivisionError.*MUJOCO_GL=egl"):
        Camera(LOCOMOTION["ant-velocity"]().robot)
