"""Many copies of one robot, stepped together by MuJoCo's own threads; what they show and cost, as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from fewstep.rl.envs import extras, robots
from fewstep.rl.envs.robots import VELOCITY_NOISE, Robot

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


@final
class Simulation:
    """Robots that are simulated side by side; axis `robots` below is `[tasks, trajectories]`, flattened.

    Whatever the number of threads, a robot moves exactly as it would alone.

    Args:
        robot: Which, in which physics.
        count: How many.
        threads: That step them; None takes as many as PyTorch uses.
    """

    def __init__(self, robot: Robot, count: int, threads: int | None) -> None:
        mujoco = extras.mujoco()
        self.robot = robot
        self.model = robots.model(robot)
        self.batch: Any = mujoco.batch.Batch(self.model, count, min(threads or torch.get_num_threads(), count))
        self._stage = {
            "none": mujoco.mjtStage.mjSTAGE_NONE,
            "vel": mujoco.mjtStage.mjSTAGE_VEL,
            "acc": mujoco.mjtStage.mjSTAGE_ACC,
        }[robot.stage].value
        self._duration = self.model.opt.timestep * robot.frame_skip
        low, high = self.model.actuator_ctrlrange.T
        self._middle, self._reach = (low + high) / 2, (high - low) / 2
        self._positions, self._velocities = self.batch.bind("qpos"), self.batch.bind("qvel")
        self._controls = self.batch.bind("ctrl")
        self._com_velocity = self.batch.bind("sensordata")[:, :3] if robot.center_of_mass else None
        self._parts, self._clipped = self._observed(count)
        kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        self._warnings = self.batch.warning[:, int(kinds[0]) : int(kinds[-1]) + 1, 1]
        self._before = np.zeros(count)

    @property
    def observation_size(self) -> int:
        """Features of one observation."""
        return sum(part.shape[1] for part in self._parts)

    def reset(self, generator: torch.Generator) -> None:
        """Put every robot at its start, with the noise that keeps two episodes apart."""
        robot, count = self.robot, len(self._positions)
        shape = (count, self.model.nq)
        if robot.uniform:
            noise = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
        else:
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        velocities = torch.randn((count, self.model.nv), generator=generator, dtype=torch.float64)
        start = self.model.numeric(robot.start).data if robot.start else self.model.qpos0
        self._positions[:] = start + robot.position_noise * noise.numpy()
        self._velocities[:] = VELOCITY_NOISE * velocities.numpy()
        self._controls[:] = 0.0
        self.batch.forward()

    def step(self, actions: Floats, going: npt.NDArray[np.bool_]) -> None:
        """Hold the actions `[robots, size]`, in [-1, 1], for one control step of the robots that are still `going`."""
        np.multiply(actions, self._reach, out=self._controls)
        self._controls += self._middle
        self._before[:] = self._positions[:, 0]
        ids = None if going.all() else np.flatnonzero(going)
        self.batch.step(ids, self.robot.frame_skip, self._stage)

    def observations(self) -> Floats:
        """What the robots perceive, `[robots, features]`, a new array."""
        observations = np.concatenate(self._parts, axis=1)
        for stretch, bound in self._clipped:
            np.clip(observations[:, stretch], -bound, bound, out=observations[:, stretch])
        return observations

    def forward_velocities(self) -> Floats:
        """Along x, in m/s, `[robots]`."""
        if self._com_velocity is not None:
            return self._com_velocity[:, 0]
        return (self._positions[:, 0] - self._before) / self._duration

    def contact_forces(self, observations: Floats) -> Floats:
        """The part of `observations` that is clipped forces and torques, `[robots, entries]`."""
        ((stretch, _),) = self._clipped
        return observations[:, stretch]

    def fallen(self) -> npt.NDArray[np.bool_]:
        """Which torsos are not between the heights where an episode goes on, `[robots]`."""
        if self.robot.heights is None:
            return np.zeros(len(self._positions), dtype=bool)
        low, high = self.robot.heights
        z = self._positions[:, 2]
        return ~((z >= low) & (z <= high))

    def broken(self, observations: Floats) -> npt.NDArray[np.bool_]:
        """Which simulations have ever left what numbers can express, `[robots]`.

        MuJoCo warns of positions, velocities and accelerations that are too large or no numbers, and begins anew from
        the model's own start: the state alone would not tell.
        """
        return self._warnings.any(axis=1) | ~np.isfinite(observations).all(axis=1)

    def states(self) -> Floats:
        """Positions and velocities, `[robots, nq + nv]`: all that a picture needs."""
        return np.concatenate([self._positions, self._velocities], axis=1)

    def _observed(self, count: int) -> tuple[list[npt.NDArray[Any]], list[tuple[slice, float]]]:
        """Live views `[robots, entries]` of what is observed, and which stretches of the whole are clipped."""
        parts, clipped, size = [], [], 0
        for observed in self.robot.observed:
            values = self.batch.bind(observed.field)
            values = values[:, observed.start :] if observed.only is None else values[:, observed.only]
            parts.append(values.reshape(count, -1))
            if not np.shares_memory(parts[-1], values):
                raise AssertionError(f"{observed.field} is no longer laid out so that a view can follow it")
            if observed.clip is not None:
                clipped.append((slice(size, size + parts[-1].shape[1]), observed.clip))
            size += parts[-1].shape[1]
        return parts, clipped
