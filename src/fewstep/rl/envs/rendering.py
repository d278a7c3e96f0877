"""Pictures of robots, drawn by MuJoCo without a screen."""

from __future__ import annotations

import copy
import os
import sys
from contextlib import suppress
from ctypes.util import find_library
from importlib import import_module
from typing import TYPE_CHECKING, Any, final

import numpy as np
from PIL import Image

from fewstep.errors import FewstepError
from fewstep.rl.envs import extras, robots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch import Generator, Tensor

    from fewstep.rl.envs.locomotion import Locomotion
    from fewstep.rl.envs.robots import Robot

    Pictures = npt.NDArray[np.uint8]

SIZE = (360, 480)
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}


def episode(
    environment: Locomotion, task: Tensor, act: Callable[[Tensor], Tensor], generator: Generator
) -> npt.NDArray[np.float64]:
    """Let a policy act in one episode.

    Args:
        environment: What it acts in.
        task: One task, `[parameters]`.
        act: From observations `[1, 1, features]` to actions `[1, 1, size]`.
        generator: The stream of the initial state.

    Returns:
        All states, the first included, up to the episode's end, `[time, positions and velocities]`.
    """
    episodes, observations = environment.reset(task.unsqueeze(0), 1, generator)
    states = [episodes.simulation.states()[0]]
    for _ in range(environment.horizon):
        transition = episodes.step(act(observations))
        observations = transition.observations
        states.append(episodes.simulation.states()[0])
        if transition.terminated.all():
            break
    return np.stack(states)


def frames(
    environment: Locomotion, states: npt.NDArray[np.float64], size: tuple[int, int] = SIZE, every: int = 1
) -> Pictures:
    """Draw a film of states, such as those of `episode`.

    Args:
        environment: Whose they are.
        states: `[time, positions and velocities]`.
        size: Height and width in pixels.
        every: Draw each so-manieth state.

    Returns:
        RGB pictures, `[time, height, width, 3]`.

    Raises:
        FewstepError: Nothing on this machine draws without a screen.
    """
    camera = Camera(environment.robot, size)
    try:
        return np.stack([camera.picture(state) for state in states[::every]])
    finally:
        camera.close()


def write_gif(path: Path, pictures: Sequence[npt.NDArray[np.uint8]] | Pictures, seconds: float) -> None:
    """Write pictures as an animation that repeats, each shown for so many seconds (in steps of 0.01)."""
    first, *others = [Image.fromarray(picture).quantize(128) for picture in pictures]
    first.save(path, save_all=True, append_images=others, duration=round(1000 * seconds), loop=0)


@final
class Camera:
    """Draws states of one robot, following it from the side.

    Args:
        robot: Which.
        size: Of a picture: height and width in pixels.

    Raises:
        FewstepError: Nothing on this machine draws without a screen.
    """

    def __init__(self, robot: Robot, size: tuple[int, int] = SIZE) -> None:
        mujoco = self._mujoco = extras.mujoco()
        height, width = size
        self._context = _context(width, height)
        self._context.make_current()
        self._model = copy.copy(robots.model(robot))
        self._model.vis.global_.offheight, self._model.vis.global_.offwidth = height, width
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._renderer)
        self._scene = mujoco.MjvScene(self._model, maxgeom=200)
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._view.fixedcamid = self._model.camera("track").id
        self._rectangle = mujoco.MjrRect(0, 0, width, height)

    def picture(self, state: npt.NDArray[np.float64]) -> Pictures:
        """Draw positions and velocities: RGB, `[height, width, 3]`."""
        mujoco, data = self._mujoco, self._data
        data.qpos[:], data.qvel[:] = np.split(state, [self._model.nq])
        mujoco.mj_forward(self._model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, mujoco.MjvOption(), None, self._view, everything, self._scene)
        self._context.make_current()
        mujoco.mjr_render(self._rectangle, self._scene, self._renderer)
        pixels = np.empty((self._rectangle.height, self._rectangle.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rectangle, self._renderer)
        return pixels[::-1].copy()  # OpenGL counts rows from below

    def close(self) -> None:
        """Give the graphics memory back."""
        self._context.make_current()
        self._renderer.free()
        self._context.free()


def _context(width: int, height: int) -> Any:
    """Something for OpenGL to draw on.

    MuJoCo decides for one when it is imported, for a window if MUJOCO_GL is unset. Here a way without a screen is
    taken then, whoever imported MuJoCo first.
    """
    choice = os.environ.get("MUJOCO_GL", "").lower()
    if choice not in ("egl", "osmesa", "glfw", "cgl"):
        found = (name for name, library in _LIBRARIES.items() if find_library(library))
        choice = "cgl" if sys.platform == "darwin" else next(found, None)
    if choice is None:
        raise _nothing_draws("neither EGL nor OSMesa was found")
    try:
        return import_module(f"mujoco.{choice}").GLContext(width, height)
    except Exception as error:  # each backend and driver has errors of its own
        raise _nothing_draws(f"{choice} failed ({type(error).__name__}: {error})") from error


def _nothing_draws(what: str) -> FewstepError:
    with suppress(KeyError):
        what += f", with MUJOCO_GL={os.environ['MUJOCO_GL']}"
    return FewstepError(
        f"Drawing needs OpenGL without a screen, through EGL or OSMesa: {what}. Install libegl1 (with a driver, such "
        "as libgl1-mesa-dri) or libosmesa6, or set MUJOCO_GL to egl, osmesa, or glfw where there is a screen."
    )
