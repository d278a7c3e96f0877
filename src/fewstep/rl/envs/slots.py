"""Gymnasium environments run side by side in one process: each slot holds one, and runs one episode at a time.

Worker processes import this module and no PyTorch.
"""

from __future__ import annotations

import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Make: TypeAlias = Callable[[Floats], Any]
    SetTask: TypeAlias = Callable[[Any, Floats], None]


class Stepped(NamedTuple):
    """What one action led to in every slot.

    Attributes:
        observations: `[slots, features]`; of an episode that has ended, its last.
        rewards: `[slots]`; 0 where the episode had ended before.
        ended: Terminated or truncated, `[slots]`, bool.
    """

    observations: Floats
    rewards: Floats
    ended: npt.NDArray[np.bool_]


class SlotError(Exception):
    """An environment raised.

    Args:
        slot: Which.
        doing: What it was asked for.
        what: The exception, in one line.
        trace: Where it came from.
    """

    def __init__(self, slot: int, doing: str, what: str, trace: str) -> None:
        super().__init__(slot, doing, what, trace)
        self.slot, self.doing, self.what, self.trace = slot, doing, what, trace


@final
class Slots:
    """Environments of one process.

    Args:
        make: The environment of a task.
        set_task: Gives an environment another task; None makes a new environment for each episode.
    """

    def __init__(self, make: Make, set_task: SetTask | None) -> None:
        self._make, self._set_task = make, set_task
        self._environments: list[Any] = []
        self._observations = np.zeros((0, 0))
        self._ended = np.zeros(0, dtype=bool)

    def reset(self, tasks: Floats, seeds: npt.NDArray[np.int64]) -> Floats:
        """Begin one episode per row of `tasks` `[slots, parameters]`; first observations `[slots, features]`."""
        if self._set_task is None:
            self.close()
        for environment in self._environments[len(tasks) :]:
            environment.close()
        del self._environments[len(tasks) :]
        self._ended = np.zeros(len(tasks), dtype=bool)
        self._observations = np.stack(
            [self._begin(slot, task, int(seed)) for slot, (task, seed) in enumerate(zip(tasks, seeds, strict=True))]
        )
        return self._observations.copy()

    def step(self, actions: npt.NDArray[Any]) -> Stepped:
        """Act in every slot whose episode goes on, with actions in the environment's own terms, `[slots, ...]`."""
        rewards = np.zeros(len(self._environments))
        for slot in np.flatnonzero(~self._ended).tolist():
            environment, action = self._environments[slot], actions[slot]
            stepped = _guarded(slot, "step", partial(environment.step, action))
            observation, reward, terminated, truncated, _ = stepped
            self._observations[slot] = np.ravel(observation)
            rewards[slot] = reward
            self._ended[slot] = terminated or truncated
        return Stepped(self._observations.copy(), rewards, self._ended.copy())

    def environment(self, slot: int) -> Any:
        """The environment of a slot."""
        return self._environments[slot]

    def close(self) -> None:
        """Close all environments."""
        while self._environments:
            self._environments.pop().close()

    def _begin(self, slot: int, task: Floats, seed: int) -> Floats:
        if slot == len(self._environments):
            self._environments.append(_guarded(slot, "make", partial(self._make, task)))
        environment = self._environments[slot]
        if self._set_task is not None:
            _guarded(slot, "set_task", partial(self._set_task, environment, task))
        observation, _ = _guarded(slot, "reset", partial(environment.reset, seed=seed))
        return np.ravel(observation).astype(np.float64)


def _guarded(slot: int, doing: str, call: Callable[[], Any]) -> Any:
    """The user's code, whose every exception is worth a message that says which task it was."""
    try:
        return call()
    except Exception as error:
        raise SlotError(int(slot), doing, f"{type(error).__name__}: {error}", traceback.format_exc()) from error
