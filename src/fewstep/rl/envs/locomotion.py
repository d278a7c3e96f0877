"""Half-cheetahs and ants that are to run at some velocity, or in some direction (Finn et al. 2017, section 5.3).

Four families of tasks, each in two physics settings, stepped for all tasks and trajectories at once:

    cheetah_velocity()      cheetah_direction()      ant_velocity()      ant_direction()

With x-velocity v, action a in [-1, 1]^n after clipping, and contact forces f, each clipped to [-1, 1]:

    velocity g:       r = -|v - g| + b - c_a ||a||^2 - c_f ||f||^2
    direction d:      r =   d v    + b - c_a ||a||^2 - c_f ||f||^2          d = -1 (backward) or +1 (forward)

docs/environments.md has the constants, the observations and the differences from the original, setting by setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import numpy as np
import torch

from fewstep.errors import FewstepError
from fewstep.rl.environment import Continuous, Transition, check_actions
from fewstep.rl.envs import HORIZON, robots
from fewstep.rl.envs.robots import ROBOTS, Physics, Robot
from fewstep.rl.envs.simulation import Simulation

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Generator, Tensor

    Floats = npt.NDArray[np.float64]

Goal: TypeAlias = Literal["velocity", "direction"]


@final
@dataclass(frozen=True)
class Locomotion:
    """A robot whose tasks are goals of its movement along x.

    A task is one number: the velocity g ~ U[0, 2] m/s (half-cheetah) or U[0, 3] m/s (ant), or the direction, -1 or +1
    with equal chances.

    Attributes:
        robot: Which robot, in which physics.
        goal: What a task asks for.
        horizon: H, time steps.
        threads: That step the simulation; None takes as many as PyTorch uses. Trajectories do not depend on it.
    """

    robot: Robot
    goal: Goal
    horizon: int = HORIZON
    threads: int | None = None

    @property
    def observation_size(self) -> int:
        """Features of one observation."""
        return _observation_size(self.robot)

    @property
    def actions(self) -> Continuous:
        """One torque per actuated joint."""
        return Continuous(robots.model(self.robot).nu)

    @property
    def duration(self) -> float:
        """Of one time step, in seconds."""
        return robots.model(self.robot).opt.timestep * self.robot.frame_skip

    def sample_tasks(self, num_tasks: int, generator: Generator) -> Tensor:
        """Draw goals, `[tasks, 1]`."""
        uniform = torch.rand((num_tasks, 1), generator=generator)
        if self.goal == "velocity":
            return self.robot.fastest * uniform
        return torch.where(uniform < 0.5, -1.0, 1.0)

    def reset(self, tasks: Tensor, trajectories: int, generator: Generator) -> tuple[LocomotionEpisodes, Tensor]:
        """Begin episodes; see `Environment`. Observations and rewards have the tasks' dtype, or torch's default.

        Raises:
            FewstepError: The tasks are not goals of this environment.
        """
        self.check(tasks)
        goals = tasks.detach().double().numpy().repeat(trajectories, axis=0)[:, 0]
        simulation = Simulation(self.robot, len(goals), self.threads)
        simulation.reset(generator)
        dtype = tasks.dtype if tasks.is_floating_point() else torch.get_default_dtype()
        episodes = LocomotionEpisodes(self, goals, simulation, (len(tasks), trajectories), dtype)
        return episodes, episodes.tensor(simulation.observations())

    def progress(self, velocities: Floats, goals: Floats) -> Floats:
        """The part of the reward that differs between tasks: -|v - g|, or d v."""
        if self.goal == "velocity":
            return -np.abs(velocities - goals)
        return goals * velocities

    def check(self, tasks: Tensor) -> None:
        """See that these are tasks of this environment.

        Raises:
            FewstepError: They are not.
        """
        if tasks.ndim != 2 or tasks.shape[1] != 1 or not len(tasks) or not tasks.isfinite().all():
            raise FewstepError(
                f"Tasks of this environment are finite numbers [tasks, 1]: got {tuple(tasks.shape)}, {tasks.tolist()}. "
                "Draw them with sample_tasks, or give one number for each task."
            )
        if self.goal == "direction" and not (tasks.abs() == 1).all():
            raise FewstepError(
                f"A direction is -1 (backward) or +1 (forward): got {tasks.flatten().tolist()}. "
                "Draw tasks with sample_tasks, or give these values."
            )


@final
class LocomotionEpisodes:
    """Episodes of a `Locomotion`, all at the same time step.

    An episode whose simulation breaks down (MuJoCo warns of a state that is no number, or not a sensible one) is over:
    terminated, with reward 0 and an observation of zeros in that step, and marked in `diverged`.
    """

    def __init__(
        self,
        environment: Locomotion,
        goals: Floats,
        simulation: Simulation,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> None:
        self.simulation = simulation
        self._environment, self._goals, self._shape, self._dtype = environment, goals, shape, dtype
        self._time = 0
        self._ended = np.zeros(len(goals), dtype=bool)
        self._diverged = np.zeros(len(goals), dtype=bool)

    @property
    def diverged(self) -> Tensor:
        """Episodes that ended because their simulation broke down, `[tasks, trajectories]`, bool."""
        return torch.from_numpy(self._diverged.copy()).view(self._shape)

    def step(self, actions: Tensor) -> Transition:
        """Act once in every episode; see `Episodes`. Those that have terminated stay as they are, with reward 0.

        Raises:
            FewstepError: The actions are not those of all episodes.
            NonFiniteError: An action is no finite number.
        """
        shape = (*self._shape, self._environment.actions.size)
        if actions.shape != shape:
            raise FewstepError(
                f"Actions are [tasks, trajectories, size], here {shape}: got {tuple(actions.shape)}. "
                "Give one action for every episode, those that have terminated included."
            )
        flat = actions.detach().flatten(0, 1).double().numpy()
        observations, rewards, terminated = self.act(flat)
        return Transition(
            self.tensor(observations),
            torch.from_numpy(rewards).to(self._dtype).view(self._shape),
            torch.from_numpy(terminated).view(self._shape),
        )

    def act(self, actions: Floats) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """The same for arrays: actions `[episodes, size]` lead to observations, rewards and what is terminated."""
        check_actions(np.isfinite(actions), self._shape, self._time)
        robot, simulation = self._environment.robot, self.simulation
        actions = np.clip(actions, -1.0, 1.0)
        going = ~self._ended
        simulation.step(actions, going)
        observations = simulation.observations()
        broken = simulation.broken(observations)
        fallen = simulation.fallen()
        rewards = self._rewards(observations, actions, ~fallen | robot.last_step)
        self._time += 1
        self._diverged |= broken
        self._ended |= fallen | broken
        rewards[~going | broken] = 0.0
        observations[broken] = 0.0
        return observations, rewards, self._ended.copy()

    def tensor(self, observations: Floats) -> Tensor:
        """Observations `[episodes, features]` as `[tasks, trajectories, features]`."""
        return torch.from_numpy(observations).to(self._dtype).view(*self._shape, -1)

    def _rewards(self, observations: Floats, actions: Floats, surviving: npt.NDArray[np.bool_]) -> Floats:
        robot = self._environment.robot
        rewards = self._environment.progress(self.simulation.forward_velocities(), self._goals)
        rewards -= robot.control_cost * np.square(actions).sum(axis=1)
        rewards += robot.survival * surviving
        if robot.contact_cost:
            rewards -= robot.contact_cost * np.square(self.simulation.contact_forces(observations)).sum(axis=1)
        if self._environment.goal == "velocity":
            rewards += robot.velocity_bonus
        return rewards


@cache
def _observation_size(robot: Robot) -> int:
    return Simulation(robot, 1, 1).observation_size


def cheetah_velocity(physics: Physics = "paper", threads: int | None = None) -> Locomotion:
    """`cheetah-velocity`: a half-cheetah that is to run at g ~ U[0, 2] m/s."""
    return Locomotion(ROBOTS["cheetah", physics], "velocity", threads=threads)


def cheetah_direction(physics: Physics = "paper", threads: int | None = None) -> Locomotion:
    """`cheetah-direction`: a half-cheetah that is to run forward or backward, as fast as it can."""
    return Locomotion(ROBOTS["cheetah", physics], "direction", threads=threads)


def ant_velocity(physics: Physics = "paper", threads: int | None = None) -> Locomotion:
    """`ant-velocity`: an ant that is to run at g ~ U[0, 3] m/s."""
    return Locomotion(ROBOTS["ant", physics], "velocity", threads=threads)


def ant_direction(physics: Physics = "paper", threads: int | None = None) -> Locomotion:
    """`ant-direction`: an ant that is to run forward or backward, as fast as it can."""
    return Locomotion(ROBOTS["ant", physics], "direction", threads=threads)


LOCOMOTION = {
    "cheetah-velocity": cheetah_velocity,
    "cheetah-direction": cheetah_direction,
    "ant-velocity": ant_velocity,
    "ant-direction": ant_direction,
}
