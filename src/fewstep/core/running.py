"""How a function of tensors runs: as it is, replayed from a recording, or compiled.

A `Run` takes a function of trees of tensors and gives one with the same results. Recordings repeat what the first
call did, so they are only for functions that depend on nothing but their arguments: no counters, schedules or branches
on Python state.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from fewstep.core.context import allows_tensor_float, exactly
from fewstep.core.tracing import draws_random_numbers, record
from fewstep.core.trees import leaves, signature, tree_map

if TYPE_CHECKING:
    from torch.fx import GraphModule

Function: TypeAlias = Callable[..., Any]
Run: TypeAlias = Callable[[Function], Function]

RECORDINGS = 16
"""Sizes of inputs to record; further ones run as they are. Ragged tasks come in any number of sizes."""

_TOLERANCE = 5e-3
"""Relative error that a compiled function may have beside eager, over all of its results together, on one of
`_ATTEMPTS` inputs.

Rounding flips a ReLU or a maximum here and there, which can make two correct float32 runs part at 1e-2, but not on
every input; the miscompiled convolutions that this guards against are off by 1e-2 and more on all of them.
"""
_ATTEMPTS = 5
_MOST = 0.95
"""Relative error beside the exact result that no compiled function may have, whatever rounding alone does: less than
that of a result of zeros."""
_SLOWER = "it runs as it is, which is slower and otherwise the same"
_REPLAYED = "its operations are replayed, which is slower and otherwise the same"

_compile: Any = cast("Any", torch).compile

log = logging.getLogger(__name__)


def plain(function: Function) -> Function:
    """As it is."""
    return function


def traced(function: Function) -> Function:
    """Records the tensor operations of the first call for each structure of inputs, then replays them.

    The replay runs the same operations, bit for bit, without the cost of Python, `torch.func` and the module's own
    code around each: for small networks that cost is most of the time.
    """

    def prepared(*args: Any) -> Function:
        return record(function, *args)

    return _prepared_once(function, prepared)


def compiled() -> Run:
    """Records like `traced`, and compiles the recording: the passes over memory between the products are fused.

    Compiling takes seconds to a minute for each structure of inputs, once for each machine: torch keeps what it
    compiled. Each compiled function is compared with the function itself on its first inputs; where they disagree the
    function runs as it is, and where there is no compiler its recording, with one line in the log.

    Returns:
        A `Run` that compiles recordings of the same operations once: steps that do the same share one.
    """
    known: dict[Any, tuple[GraphModule, Function]] = {}
    warn = cache(log.warning)  # once for each reason, not for each part

    def run(function: Function) -> Function:
        def prepared(*args: Any) -> Function:
            try:
                recording = record(function, *args, for_compiler=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as failure:  # a branch on a tensor, say; a fault of the function's own comes again
                warn("The meta-gradient is not compiled (%s): %s", _first_line(failure), _SLOWER)
                return function
            if draws_random_numbers(recording):
                warn("The meta-gradient is not compiled (it draws random numbers, as a compiler does not): %s", _SLOWER)
                return recording
            # Code may name no sizes, but each of them is compiled, and compared, anew.
            key = (signature(args), recording.code, *map(id, recording.buffers()), *map(id, recording.parameters()))
            if key not in known:
                known[key] = recording, _compiled(recording, function, args, warn)  # it lives on, and so do its ids
            return known[key][1]

        return _prepared_once(function, prepared)

    return run


def captured(run: Run = plain) -> Run:
    """On a GPU, launches all kernels of a function at once, as a CUDA graph; elsewhere runs the function as it is.

    A meta-gradient of few-shot tasks is some hundred kernels, each over sooner than Python launches the next. What is
    captured must never wait for the GPU (`item()`, a branch on a tensor). Where it does, it runs as it is, with one
    line in the log.

    Args:
        run: How the function runs that is captured.

    Returns:
        A `Run` whose results stay valid until the next call of the function, which writes over them.
    """
    warn = cache(log.warning)  # once for each reason

    def captured_run(function: Function) -> Function:
        launched, pools = run(function), dict[torch.device, Any]()

        def prepared(*args: Any) -> Function:
            device = next((leaf.device for leaf in leaves(args) if leaf.is_cuda), None)
            if device is None:
                return launched
            with torch.cuda.device(device):
                if device not in pools:  # one memory for all structures: no two run at a time
                    pools[device] = torch.cuda.graph_pool_handle()
                return _captured(launched, args, pools[device], warn)

        return _prepared_once(launched, prepared)

    return captured_run


def _captured(function: Function, args: tuple[Any, ...], pool: Any, warn: Callable[..., None]) -> Function:
    fixed = tree_map(_copy, args)
    inputs = leaves(fixed)
    aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    aside.wait_stream(torch.cuda.current_stream())
    numbers = torch.cuda.default_generators[torch.cuda.current_device()]
    before = cast("Any", numbers).clone_state()
    with torch.cuda.stream(aside):  # left again even where a capture fails
        with cast("Any", torch.random).fork_rng([torch.cuda.current_device()]):
            for _ in range(2):  # what is prepared in first calls cannot be captured
                function(*fixed)
        try:
            # Other threads, of a loader or a watcher, may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                results = function(*fixed)
        except BaseException as failure:
            cast("Any", numbers).graphsafe_set_state(before)  # a failed capture leaves the stream marked as captured
            if not isinstance(failure, RuntimeError) or isinstance(failure, torch.OutOfMemoryError):
                raise
            warn("The meta-gradient is not captured (%s): %s", _first_line(failure), _SLOWER)
            return function
    torch.cuda.current_stream().wait_stream(aside)

    @torch.no_grad()
    def replay(*args: Any) -> Any:
        cast("Any", torch)._foreach_copy_(inputs, leaves(args))
        graph.replay()
        return results

    return replay


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _compiled(recording: GraphModule, function: Function, args: tuple[Any, ...], warn: Callable[..., None]) -> Function:
    try:
        # Layout optimisation miscompiles convolutions whose weights are mapped over (torch 2.13, CPU).
        options = {"layout_optimization": False, "cpp_wrapper": not any(leaf.is_cuda for leaf in leaves(args))}
        fast: Function = _compile(recording.forward, dynamic=False, options=options)
        with warnings.catch_warnings():  # the first call compiles, with advice on rounding that is chosen elsewhere
            warnings.simplefilter("ignore", UserWarning)
            error, allowed = _least_error(fast, function, args), _TOLERANCE
        if not error < allowed and _rounds(function, args):  # where a compiler may round other products
            with exactly():
                exact = function(*args)
            error = _relative_error(fast(*args), exact)
            allowed = min(_TOLERANCE + 1.5 * _relative_error(function(*args), exact), _MOST)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as failure:  # whatever a compiler may raise
        warn("The meta-gradient is not compiled (%s): %s", _first_line(failure), _REPLAYED)
        return recording
    if not error < allowed:
        warn("A part of the meta-gradient is off by %.1e when compiled: %s", error, _SLOWER)
        return function
    return fast


def _rounds(function: Function, args: tuple[Any, ...]) -> bool:
    """Whether products are rounded on purpose."""
    on_gpu = any(leaf.is_cuda for leaf in leaves(args))
    return getattr(function, "rounds", False) or (on_gpu and allows_tensor_float())


def _first_line(error: Exception) -> str:
    """What an error says, without what follows; a heading alone says nothing."""
    first, _, rest = (str(error).strip() or type(error).__name__).partition("\n")
    return f"{first} {rest.partition(chr(10))[0]}" if first.endswith(":") and rest else first


def _prepared_once(function: Function, prepare: Callable[..., Function]) -> Function:
    known: dict[Any, Function] = {}

    def run(*args: Any) -> Any:
        key = signature(args)
        if key not in known:
            if len(known) == RECORDINGS:
                return function(*args)
            known[key] = prepare(*args)
        return known[key](*args)

    return run


def _least_error(fast: Function, slow: Function, args: tuple[Any, ...]) -> float:
    """The least relative error on the arguments and, while it is too large, on others near them."""
    stream = torch.Generator().manual_seed(0)
    least = _relative_error(fast(*args), slow(*args))
    for _ in range(_ATTEMPTS - 1):
        if least < _TOLERANCE:
            break
        near = tree_map(partial(_perturbed, stream), args)
        least = min(least, _relative_error(fast(*near), slow(*near)))
    return least


def _perturbed(stream: torch.Generator, leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
        return leaf
    return leaf * (1 + 0.01 * torch.randn(leaf.shape, generator=stream).to(leaf))


def _relative_error(results: Any, expected: Any) -> float:
    """||results - expected|| / ||expected||, over all tensors together."""
    pairs = list(zip(leaves(results), leaves(expected), strict=True))
    difference = math.fsum((a.double() - b).square().sum().item() for a, b in pairs)
    return math.sqrt(difference / (math.fsum(b.double().square().sum().item() for _, b in pairs) or 1.0))
