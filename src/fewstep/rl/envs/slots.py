"""Gymnasium environments run side by side in one process: each slot holds one, and runs one episode at a time.

Worker processes import this module and no PyTorch.
"""

from __future__ import annotations

import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat, TypeAlias, final

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
        features: Of an observation, in every task.
    """

    def __init__(self, make: Make, set_task: SetTask | None, features: int) -> None:
        self._make, self._set_task, self._features = make, set_task, features
        self._environments: list[Any] = []
        self._inmost = set[int]()
        self._observations = np.zeros((0, 0))
        self._ended = np.zeros(0, dtype=bool)

    def reset(self, tasks: Floats, seeds: npt.NDArray[np.int64]) -> Floats:
        """Begin one episode per row of `tasks` `[slots, parameters]`; first observations `[slots, features]`."""
        if self._set_task is None:
            self.close()
        while len(self._environments) > len(tasks):
            self._end_last()
        self._ended = np.zeros(len(tasks), dtype=bool)
        first = [self._begin(slot, task, int(seed)) for slot, (task, seed) in enumerate(zip(tasks, seeds, strict=True))]
        self._observations = np.stack(first)
        return self._observations.copy()

    def step(self, actions: npt.NDArray[Any]) -> Stepped:
        """Act in every slot whose episode goes on, with actions in the environment's own terms, `[slots, ...]`."""
        rewards = np.zeros(len(self._environments))
        for slot in np.flatnonzero(~self._ended).tolist():
            stepped = guarded(slot, "step", partial(act, self._environments[slot], actions[slot]))
            self._observations[slot], rewards[slot], self._ended[slot] = stepped
        return Stepped(self._observations.copy(), rewards, self._ended.copy())

    def close(self) -> None:
        """Close all environments."""
        while self._environments:
            self._end_last()

    def _begin(self, slot: int, task: Floats, seed: int) -> Floats:
        if slot == len(self._environments):
            self._environments.append(guarded(slot, "make", partial(self._made, task)))
        environment = self._environments[slot]
        if self._set_task is not None:
            guarded(slot, "set_task", partial(self._set_task, environment, task))
        first = guarded(slot, "reset", partial(begin, environment, seed))
        if len(first) != self._features:
            what = f"{len(first)} numbers were observed, and {self._features} in the first task"
            raise SlotError(slot, "reset", what, "")
        return first

    def _made(self, task: Floats) -> Any:
        environment = self._make(task)
        inmost = _inmost(environment)
        if inmost in self._inmost:
            raise ValueError("it returned the environment of another episode: make a new one each time")
        self._inmost.add(inmost)
        return environment

    def _end_last(self) -> None:
        environment = self._environments.pop()
        self._inmost.discard(_inmost(environment))
        environment.close()


def _inmost(environment: Any) -> int:
    """Which environment it is, however wrapped, among those that exist."""
    return id(getattr(environment, "unwrapped", environment))


def begin(environment: Any, seed: int | None) -> Floats:
    """The first observation of an episode, flat; raises TypeError or ValueError where it is not as Gymnasium has it."""
    result = environment.reset(seed=seed)
    if not isinstance(result, tuple) or len(result) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise TypeError(f"Gymnasium's `reset` gives an observation and a dict of information: got {_named(result)}")
    return _flat(environment, result[0])


def act(environment: Any, action: Any) -> tuple[Floats, float, bool]:
    """What an action leads to: the observation, flat, the reward, whether the episode has ended; raises likewise."""
    result = environment.step(action)
    if not isinstance(result, tuple) or len(result) != 5:  # pyright: ignore[reportUnknownArgumentType]
        raise TypeError(
            "Gymnasium's `step` gives observation, reward, terminated, truncated and a dict of information: got "
            f"{_named(result)}"
        )
    observation, reward, terminated, truncated, _ = result
    return _flat(environment, observation), _number(reward), bool(terminated or truncated)


def _number(reward: Any) -> float:
    if not isinstance(reward, SupportsFloat) or np.ndim(reward):  # pyright: ignore[reportArgumentType]
        raise TypeError(f"Gymnasium's `step` gives a reward that is one number: got {_named(reward)}")
    return float(reward)


def _flat(environment: Any, observation: Any) -> Floats:
    values, space = np.asarray(observation, dtype=np.float64), environment.observation_space
    if values.shape != space.shape:
        raise ValueError(f"observations of {space} have the shape {space.shape}: got {values.shape}")
    return values.ravel()


def _named(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__


def guarded(slot: int, doing: str, call: Callable[[], Any]) -> Any:
    """The user's code, whose every exception is worth a message that says which task it was."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise SlotError(int(slot), doing, f"{type(error).__name__}: {error}", traceback.format_exc()) from error
