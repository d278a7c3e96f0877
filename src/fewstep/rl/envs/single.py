"""One task of fewstep's environments as an ordinary Gymnasium environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from fewstep.core import rng
from fewstep.errors import FewstepError
from fewstep.rl.envs import extras, rendering
from fewstep.rl.envs.locomotion import LOCOMOTION

if TYPE_CHECKING:
    from fewstep.rl.envs.robots import Physics

gymnasium = extras.gymnasium()


@final
class SingleTask(gymnasium.Env):
    """A robot with one goal, for any code that speaks Gymnasium.

    Actions are in [-1, 1], as fewstep's policies act, and reach the motors' whole range. `info` has the `task`, and
    after a step the forward velocity `x_velocity` and whether the simulation broke down (`diverged`). At `reset`, the
    option `task` sets another goal: `env.reset(options={"task": 1.5})`.

    Args:
        name: fewstep's name of the environment, such as "cheetah-velocity".
        physics: "paper" or "gymnasium".
        task: The goal: a velocity in m/s, or -1 or +1. None draws one at every reset.
        render_mode: "rgb_array" for pictures.
        width: Of a picture, in pixels.
        height: Of a picture, in pixels.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (Gymnasium's own)

    def __init__(
        self,
        name: str,
        physics: Physics = "paper",
        task: float | None = None,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
    ) -> None:
        self._environment = LOCOMOTION[name](physics, threads=1)
        self._fixed = task
        self._size = (height, width)
        self._camera: rendering.Camera | None = None
        self.render_mode = render_mode
        self.metadata = self.metadata | {"render_fps": round(1 / self._environment.duration)}
        size, torques = self._environment.observation_size, self._environment.actions.size
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (torques,), np.float32)
        if task is not None:
            self._environment.check(torch.tensor([[float(task)]]))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see Gymnasium."""
        super().reset(seed=seed)
        stream = int(self.np_random.integers(2**62))
        task = (options or {}).get("task", self._fixed)
        if task is None:
            task = self._environment.sample_tasks(1, rng.generator(stream, "task")).item()
        return self._begin(task, stream), {"task": self._task}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act once; see Gymnasium.

        Raises:
            FewstepError: The action has another shape than the action space.
        """
        if np.shape(action) != self.action_space.shape:
            raise FewstepError(
                f"An action is an array of shape {list(self.action_space.shape or ())}, a number for each joint: got "
                f"{list(np.shape(action))}. Take it from `action_space`."
            )
        observations, rewards, terminated = self._episodes.act(np.asarray(action, dtype=np.float64)[None])
        info = {
            "task": self._task,
            "x_velocity": float(self._episodes.simulation.forward_velocities()[0]),
            "diverged": bool(self._episodes.diverged),
        }
        return observations[0], float(rewards[0]), bool(terminated[0]), False, info

    def render(self) -> np.ndarray | None:
        """What a camera sees that follows the robot, `[height, width, 3]`, or None without a render mode."""
        if self.render_mode is None:
            return None
        if self._camera is None:
            self._camera = rendering.Camera(self._environment.robot, self._size)
        return self._camera.picture(self._episodes.simulation.states()[0])

    def close(self) -> None:
        """Let go of the camera."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _begin(self, task: float, stream: int) -> np.ndarray:
        self._task = float(task)
        goals = torch.tensor([[self._task]], dtype=torch.float64)
        self._episodes, first = self._environment.reset(goals, 1, rng.generator(stream, "start"))
        return first[0, 0].numpy()
