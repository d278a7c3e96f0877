"""How the map over tasks is executed. Where the library maps over tasks that share parameters.

An `OverTasks` turns `f(shared, task)` into `f(shared, tasks)`, whose outputs lead with a `tasks` axis. All of them
compute the same numbers to rounding; they differ in speed and memory, and in the modules that they can run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import torch

from fewstep.core.tracing import record
from fewstep.core.trees import index, leaves, length, signature, stack

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewstep.core.types import OverTasks

    Mappable = Callable[[Any, Any], Any]

_RECORDINGS = 16
"""Sizes of inputs to record; further ones run as they are. Ragged tasks come in any number of sizes."""

log = logging.getLogger(__name__)


def vectorized(chunk_size: int | None = None) -> OverTasks:
    """All tasks, or chunks of them, as one batched computation (`torch.vmap`). Needs a vmap rule for every operation.

    Args:
        chunk_size: Tasks computed together: bounds memory. None takes all.
    """

    def over(function: Mappable) -> Mappable:
        return torch.vmap(function, in_dims=(None, 0), chunk_size=chunk_size, randomness="different")

    return over


def sequential() -> OverTasks:
    """One task after the other: runs every module, and holds the graph of one task at a time."""

    def over(function: Mappable) -> Mappable:
        def mapped(shared: Any, tasks: Any) -> Any:
            return stack([function(shared, index(tasks, i)) for i in range(length(tasks))])

        return mapped

    return over


def traced(over: OverTasks) -> OverTasks:
    """Records the tensor operations of the first call for each structure of inputs, then replays them.

    The replay runs the same operations, bit for bit, without the cost of Python, `torch.func` and the module's own
    code around each: for small networks that cost is most of the time. It repeats what the first call did, so it is
    only for functions that depend on nothing but their arguments: no counters, schedules or branches on Python state.

    Args:
        over: How the recorded call maps over tasks.
    """
    recorded: dict[Any, Mappable] = {}

    def traced_over(function: Mappable) -> Mappable:
        mapped = over(function)

        def replay(shared: Any, tasks: Any) -> Any:
            key = (function, signature((shared, tasks)))
            if key not in recorded and len(recorded) == _RECORDINGS:
                return mapped(shared, tasks)
            if key not in recorded:
                devices = {leaf.device for leaf in leaves((shared, tasks)) if leaf.is_cuda}
                with cast("Any", torch.random).fork_rng(
                    devices
                ):  # the replay draws the random numbers, not the recording
                    recorded[key] = record(mapped, shared, tasks)
            return recorded[key](shared, tasks)

        return replay

    return traced_over


class _Auto:
    """Vectorized until a function turns out to have no vmap rule; from then on sequential."""

    def __init__(self, over: OverTasks) -> None:
        self._over = over
        self._vectorizes = True

    def __call__(self, function: Mappable) -> Mappable:
        def mapped(shared: Any, tasks: Any) -> Any:
            try:
                return self._over(function)(shared, tasks)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                if not self._vectorizes:
                    raise
                reason = str(error).strip().partition("\n")[0]
            # If the fault was not vmap's, it comes again here, in terms of the function itself.
            result = sequential()(function)(shared, tasks)
            self._over, self._vectorizes = sequential(), False
            log.info("Tasks run one after the other: this model has no vmap rule (%s)", reason)
            return result

        return mapped


def auto(chunk_size: int | None = None, *, trace: bool = False) -> OverTasks:
    """Vectorized where every operation of the model has a vmap rule, else sequential (LSTM and GRU have none).

    The choice follows from the model alone, never from a timing: two runs with one seed execute alike.

    Args:
        chunk_size: Tasks computed together when vectorized.
        trace: Whether to replay the vectorized computation, see `traced`.
    """
    over = vectorized(chunk_size)
    return _Auto(traced(over) if trace else over)
