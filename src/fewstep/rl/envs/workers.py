"""Slots spread over worker processes, which are started afresh (spawn) and hold nothing but environments.

The policy stays in the parent, which sends actions and gets arrays back. A worker ends by itself when its pipe does,
however the parent went; the parent notices at once when a worker is gone.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

import numpy as np

from fewstep.errors import EpisodeError, FewstepError
from fewstep.rl.envs.slots import SlotError, Slots, Stepped

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    import numpy.typing as npt

    from fewstep.rl.envs.slots import Floats, Make, SetTask

_GRACE = 3.0
"""Seconds that a worker has to close its environments."""


@final
class Workers:
    """The interface of `Slots`, with the slots divided among processes in stretches of equal size.

    Args:
        make: See `Slots`; importable by name, since workers are started afresh.
        set_task: Likewise.
        features: Likewise.
        count: Processes.

    Raises:
        FewstepError: One of the functions cannot be sent to a worker.
    """

    def __init__(self, make: Make, set_task: SetTask | None, features: int, count: int) -> None:
        try:
            pickle.dumps((make, set_task))
        except Exception as error:  # pickle raises whatever an object's own code does
            raise FewstepError(
                f"Workers are given `make` and `set_task` by name: got {make!r} and {set_task!r}, of which one has "
                f"none that can be imported ({error}). Define both at the top level of a module, or set workers=0."
            ) from error
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []  # connections, of a type that depends on the system
        self._processes: list[SpawnProcess] = []
        self._bounds = [0]
        self._stop = weakref.finalize(self, _stop, self._pipes, self._processes)
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make, set_task, features), daemon=True)
            process.start()
            theirs.close()  # so that the pipe ends when the worker does
            self._pipes.append(ours)
            self._processes.append(process)

    def reset(self, tasks: Floats, seeds: npt.NDArray[np.int64]) -> Floats:
        """See `Slots.reset`."""
        count = len(self._processes)
        self._bounds = [len(tasks) * worker // count for worker in range(count + 1)]
        return np.concatenate(self._ask([("reset", *part) for part in self._parts(tasks, seeds)]))

    def step(self, actions: npt.NDArray[Any]) -> Stepped:
        """See `Slots.step`."""
        replies = self._ask([("step", *part) for part in self._parts(actions)])
        return Stepped(*map(np.concatenate, zip(*replies, strict=True)))

    def close(self) -> None:
        """End the processes."""
        self._stop()

    def _parts(self, *arrays: npt.NDArray[Any]) -> list[tuple[npt.NDArray[Any], ...]]:
        bounds = zip(self._bounds, self._bounds[1:], strict=False)
        return [tuple(array[low:high] for array in arrays) for low, high in bounds]

    def _ask(self, requests: list[tuple[Any, ...]]) -> list[Any]:
        """Send each worker its request, then collect the replies of those that have slots."""
        busy = [worker for worker, request in enumerate(requests) if len(request[1])]
        for worker in busy:
            with suppress(BrokenPipeError):  # a worker that is gone has no reply either
                self._pipes[worker].send(requests[worker])
        return [self._reply(worker) for worker in busy]

    def _reply(self, worker: int) -> Any:
        try:
            reply = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):
            raise self._gone(worker) from None
        if isinstance(reply, SlotError):
            raise SlotError(reply.slot + self._bounds[worker], reply.doing, reply.what, reply.trace)
        return reply

    def _gone(self, worker: int) -> EpisodeError:
        process = self._processes[worker]
        process.join(_GRACE)
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        low, high = self._bounds[worker], self._bounds[worker + 1] - 1
        return EpisodeError(
            f"Workers run until they are closed: worker {worker}, with episodes {low} to {high}, {how}. See above for "
            "what it wrote, and whether memory ran out; a script that starts workers does so under "
            "`if __name__ == '__main__':`."
        )


def _serve(pipe: Connection, make: Make, set_task: SetTask | None, features: int) -> None:
    """What a worker does: answer requests until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    slots = Slots(make, set_task, features)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while (request := pipe.recv()) is not None:
            method, *arrays = request
            try:
                reply = getattr(slots, method)(*arrays)
            except SlotError as error:
                reply = error
            pipe.send(reply)
    slots.close()


def _stop(pipes: list[Any], processes: list[SpawnProcess]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join(_GRACE)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
