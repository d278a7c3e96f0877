"""Two families of Gymnasium's own environments whose members are tasks: one with discrete actions, one with continuous.

    python examples/gymnasium_families.py

plays one episode each in ten tasks of both with random actions, in two worker processes.
"""

from __future__ import annotations

import gymnasium
import torch

from fewstep.core.rng import generator
from fewstep.rl.environment import Discrete
from fewstep.rl.envs.family import GymnasiumFamily


def make_cartpole(task):
    """A pole of another length, under another gravity: task = (half the length in m, gravity in m/s^2)."""
    environment = gymnasium.make("CartPole-v1")
    physics = environment.unwrapped
    physics.length, physics.gravity = task
    physics.polemass_length = physics.masspole * physics.length
    return environment


def sample_cartpoles(num_tasks, generator):
    """Half lengths of 0.25 to 1 m, gravities of 5 to 15 m/s^2, `[tasks, 2]`."""
    uniform = torch.rand(num_tasks, 2, generator=generator)
    return torch.tensor([0.25, 5.0]) + uniform * torch.tensor([0.75, 10.0])


def make_pendulum(_task):
    """Made once for each slot, since `set_pendulum` can give it another task."""
    return gymnasium.make("Pendulum-v1")


def set_pendulum(environment, task):
    """A pendulum of another mass: task = (mass in kg,)."""
    environment.unwrapped.m = task[0]


def sample_pendulums(num_tasks, generator):
    """Masses of 0.5 to 1.5 kg, `[tasks, 1]`."""
    return 0.5 + torch.rand(num_tasks, 1, generator=generator)


def cartpoles(workers=0):
    """CartPole, whose tasks are the pole's length and gravity; two discrete actions."""
    return GymnasiumFamily(make_cartpole, sample_cartpoles, horizon=200, workers=workers)


def pendulums(workers=0):
    """Pendulum, whose task is the mass; one continuous action, in [-1, 1] for [-2, 2] Nm."""
    return GymnasiumFamily(make_pendulum, sample_pendulums, horizon=200, set_task=set_pendulum, workers=workers)


def random_returns(family, num_tasks, seed=0):
    """The return of one episode in each task, with random actions, `[tasks]`."""
    stream = generator(seed, "random policy")
    tasks = family.sample_tasks(num_tasks, stream)
    episodes, _ = family.reset(tasks, 1, stream)
    total = torch.zeros(num_tasks, 1)
    for _ in range(family.horizon):
        if isinstance(family.actions, Discrete):
            actions = torch.randint(family.actions.count, (num_tasks, 1), generator=stream)
        else:
            actions = torch.rand(num_tasks, 1, family.actions.size, generator=stream) * 2 - 1
        total += episodes.step(actions).rewards
    return total.squeeze(1)


if __name__ == "__main__":  # workers import this file, and are not to start workers of their own
    for family in (cartpoles(workers=2), pendulums(workers=2)):
        with family:
            print(random_returns(family, num_tasks=10).tolist())
