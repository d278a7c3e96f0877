"""Small Gymnasium environments, which workers can import without PyTorch."""

from __future__ import annotations

import os
import signal
import time

import gymnasium
import numpy as np


class Toy(gymnasium.Env):
    """Walks on a line: reward is the task times the position, which begins at random, in two equal rows of features."""

    action_space = gymnasium.spaces.Box(np.array([0.0, -4.0], np.float32), np.array([2.0, 4.0], np.float32))

    def __init__(self, task):
        self.observation_space = gymnasium.spaces.Box(-100.0, 100.0, (2, 2))
        self.task, self.actions = task, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.position = 0, self.np_random.normal()
        return self.observation(), {}

    def step(self, action):
        self.actions.append(action)
        self.time += 1
        self.position += action[0] + 0.1 * self.np_random.normal()
        kind = self.task[0]
        if kind == 13 and self.time == 3:
            raise ArithmeticError("thirteen")
        if kind == 14 and self.time == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 15 and self.time == 3:
            self.position = float("nan")
        terminated, truncated = kind == 2 and self.time == 4, kind == 3 and self.time == 5
        return self.observation(), float(kind * self.position), terminated, truncated, {}

    def observation(self):
        return np.full((2, 2), self.position, np.float32)

    def close(self):
        if marker := os.environ.get("FEWSTEP_TEST_MARKER"):
            with open(marker, "a", encoding="utf-8") as file:  # noqa: PTH123  (a worker's, at its end)
                file.write("closed\n")


def make_toy(task):
    if task[0] == 12:
        raise ValueError("no such toy")
    return Toy(task)


class Broken(Toy):
    """Breaks the protocol of Gymnasium in one way."""

    def __init__(self, task, fault):
        super().__init__(task)
        self.fault = fault

    @classmethod
    def making(cls, fault):
        return lambda task: cls(task, fault)

    def reset(self, *, seed=None, options=None):
        observation, about = super().reset(seed=seed)
        if self.fault in ("shape", "layout"):
            return observation.ravel()[:3] if self.fault == "shape" else observation.reshape(4, 1), about
        return observation if self.fault == "old reset" else (observation, about)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.fault == "rewards":
            reward = np.ones(2)
        return {"four": (observation, reward, False, {}), "nothing": None}.get(self.fault, (observation, reward, *rest))


def make_broken(task):
    return Broken(task, "four")


def make_wider(task):
    """Of task 2, more is observed than of the others."""
    toy = Toy(task)
    if task[0] == 2:
        toy.observation_space = gymnasium.spaces.Box(-100.0, 100.0, (2, 3))
        toy.observation = lambda: np.zeros((2, 3), np.float32)
    return toy


def retask(environment, task):
    environment.task = task


class Choosing(Toy):
    """The same with three choices, counted from 5."""

    action_space = gymnasium.spaces.Discrete(3, start=5)

    def step(self, action):
        return super().step(np.array([action]))


def make_choosing(task):
    return Choosing(task)


class Unbounded(Toy):
    """Any action goes."""

    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))


class Seeing(Toy):
    """Observes a choice."""

    def __init__(self, task):
        super().__init__(task)
        self.observation_space = gymnasium.spaces.Discrete(2)


def wait_until_gone(pids, seconds=10.0):
    """Whether all processes are gone within the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
