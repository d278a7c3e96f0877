"""How the map over tasks is executed. Where the library maps over tasks that share parameters.

An `OverTasks` turns `f(shared, task)` into `f(shared, tasks)`, whose outputs lead with a `tasks` axis. All of them
compute the same numbers to rounding; they differ in speed and memory, and in the modules that they can run.
"""

from __future__ import annotations

import logging
import traceback
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import distributed
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fewstep.core.context import vmapped
from fewstep.core.expect import expect_whole
from fewstep.core.rng import RandomStreams
from fewstep.core.running import Run, plain
from fewstep.core.trees import chunks, concatenate, index, leaves, length, part, stack, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewstep.core.types import OverTasks

    Mappable = Callable[[Any, Any], Any]

log = logging.getLogger(__name__)


def vectorized(chunk_size: int | None = None, run: Run = plain) -> OverTasks:
    """All tasks, or chunks of them, as one batched computation (`torch.vmap`). Needs a vmap rule for every operation.

    Args:
        chunk_size: Tasks computed together: bounds memory. None takes all.
        run: How the batched computation runs, for instance `traced`. Its results stay what they are when it runs on
            the next chunk: those of `captured` do not, which belongs to the learner.
    """
    if chunk_size is not None:
        expect_whole("chunk_size", chunk_size)

    @cache  # what was recorded or compiled for a function serves each time that it is mapped
    def over(function: Mappable) -> Mappable:
        batched = run(vmapped(function, shared=1))

        def mapped(shared: Any, tasks: Any) -> Any:
            return concatenate([batched(shared, chunk) for chunk in chunks(tasks, chunk_size)])

        return mapped

    return over


def sequential(run: Run = plain) -> OverTasks:
    """One task after the other: runs every module, and holds the graph of one task at a time.

    Args:
        run: How the computation for one task runs; as for `vectorized`, not `captured`.
    """

    @cache  # what was recorded or compiled for a function serves each time that it is mapped
    def over(function: Mappable) -> Mappable:
        single = run(function)

        def mapped(shared: Any, tasks: Any) -> Any:
            return stack([single(shared, index(tasks, i)) for i in range(length(tasks))])

        return mapped

    return over


_STREAMS = 8
"""Tasks that a GPU computes side by side at most."""


def side_by_side(run: Run = plain) -> OverTasks:
    """On a GPU, each task by itself and several at a time, each on a stream of its own; elsewhere `sequential`.

    For large images: convolutions whose filters differ from task to task are slow as one, and those of one task leave
    much of a GPU idle. It pays where all kernels are launched at once (`captured`), which Python cannot keep up with.

    Args:
        run: How the computation for one task runs.
    """

    @cache  # what was recorded or compiled for a function serves each time that it is mapped
    def over(function: Mappable) -> Mappable:
        single = run(function)
        streams: dict[torch.device, list[torch.cuda.Stream]] = {}

        def mapped(shared: Any, tasks: Any) -> Any:
            device = next((leaf.device for leaf in leaves(tasks) if leaf.is_cuda), None)
            if device is None:
                return stack([single(shared, index(tasks, i)) for i in range(length(tasks))])
            if device not in streams:
                streams[device] = [torch.cuda.Stream(device) for _ in range(_STREAMS)]
            here, results = torch.cuda.current_stream(device), list[Any]()
            for i in range(length(tasks)):
                stream = streams[device][i % _STREAMS]
                stream.wait_stream(here)
                with torch.cuda.stream(stream):
                    results.append(single(shared, index(tasks, i)))
            for stream in streams[device][: length(tasks)]:
                here.wait_stream(stream)
            return stack(results)

        return mapped

    return over


def sharded(over_tasks: OverTasks) -> OverTasks:
    """Each process its share of the tasks, and all of them the results of all (`torch.distributed`).

    Processes that begin at the same meta-parameters and draw the same meta-batches, from one seed, make the same
    meta-updates: nothing but these results is exchanged, and no learner need know of it. Modules that draw random
    numbers, for dropout say, draw them in each process for its own share.

    Args:
        over_tasks: How a process maps over its share. A `run` that records or compiles belongs here, not to the
            learner: `sharded(vectorized(run=compiled()))`.

    Returns:
        A map over tasks for the default process group, through which no derivative goes. It raises ValueError where
        processes differ in what they share or in their tasks, looked for once, and RuntimeError where it is recorded.
    """

    @cache  # what was recorded or compiled for a function serves each time that it is mapped
    def over(function: Mappable) -> Mappable:
        of_share = over_tasks(function)
        compared = False

        @torch.no_grad()
        def mapped(shared: Any, tasks: Any) -> Any:
            nonlocal compared
            if get_proxy_mode() is not None:
                raise RuntimeError(
                    "What processes exchange cannot be recorded: give the run to the map of a share, as in "
                    "sharded(vectorized(run=compiled()))."
                )
            if not compared:
                _compare(shared, tasks)
                compared = True
            rank, processes, count = distributed.get_rank(), distributed.get_world_size(), length(tasks)
            first, end = (count * i // processes for i in (rank, rank + 1))
            share = of_share(shared, part(tasks, first, max(end, first + 1)))  # one for nothing where there are few
            return tree_map(partial(_of_all, first=first, end=end, count=count), share)

        return mapped

    return over


def _of_all(share: Any, *, first: int, end: int, count: int) -> Any:
    """The results of all tasks, from every process its own."""
    if not isinstance(share, torch.Tensor):
        return share
    whole = share.new_zeros(count, *share.shape[1:])
    whole[first:end] = share[: end - first]
    cast("Any", distributed).all_reduce(whole)
    return whole


def _compare(shared: Any, tasks: Any) -> None:
    """See that all processes were given the same, by a sum that rounding on other hardware changes little."""
    lowest = torch.stack(
        [torch.stack([leaf.double().abs().sum() for leaf in leaves(tree)]).sum() for tree in (shared, tasks)]
    )
    highest = lowest.clone()
    cast("Any", distributed).all_reduce(lowest, op=distributed.ReduceOp.MIN)
    cast("Any", distributed).all_reduce(highest, op=distributed.ReduceOp.MAX)
    for what, low, high in zip(("meta-parameters", "tasks"), lowest, highest, strict=True):
        if not torch.isclose(low, high, rtol=1e-6, equal_nan=True):
            raise ValueError(f"All processes must begin with the same {what}: they differ. Set the same seed in each.")


LARGE_IMAGE = 64
"""Height and width from which one task's images fill the cores of a CPU, and those of all tasks its memory."""


def has_large_images(tasks: Any) -> bool:
    """Whether tasks hold images `[tasks, examples, channels, height, width]` that a CPU computes faster one by one."""
    return any(
        leaf.dim() >= 5 and min(leaf.shape[-2:]) >= LARGE_IMAGE and leaf.device.type == "cpu" for leaf in leaves(tasks)
    )


def auto(chunk_size: int | None = None, run: Run = plain) -> OverTasks:
    """Vectorized where every operation of a function has a vmap rule, else sequential; so are large images on a CPU.

    The choice follows from function and tasks alone, never from a timing: two runs with one seed execute alike.

    Args:
        chunk_size: Tasks computed together when vectorized.
        run: How the vectorized computation runs.
    """
    together, apart = vectorized(chunk_size, run), sequential()
    warn = cache(log.warning)  # once for each reason, not for each function

    @cache
    def over(function: Mappable) -> Mappable:
        vectorizes = True

        def mapped(shared: Any, tasks: Any) -> Any:
            nonlocal vectorizes
            if not vectorizes or has_large_images(tasks):
                return apart(function)(shared, tasks)
            drawn = RandomStreams((shared, tasks))
            try:
                return together(function)(shared, tasks)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                reason = _place(error) + str(error).strip().partition("\n")[0]
            drawn.restore()  # as if it had not been tried
            # If the fault was not vmap's, it comes again here, in terms of the function itself.
            result = apart(function)(shared, tasks)
            vectorizes = False
            warn("Tasks run one after the other, which is slower: all at once they cannot run (%s)", reason)
            return result

        return mapped

    return over


def _place(error: Exception) -> str:
    """Where an operation cannot be mapped: the innermost line of the user's own code or of PyTorch's layers."""
    inside = ("/fewstep/core/", "/fewstep/learners/", "/torch/")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = frame.filename.replace("\\", "/")
        if "/torch/nn/" in path or not any(part in path for part in inside):
            return f"in {frame.name}, {path.rpartition('/')[2]}:{frame.lineno}: "
    return ""
