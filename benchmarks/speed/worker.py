"""One peer at one workload, in a process of its own that answers requests in JSON lines.

    python -m benchmarks.speed.worker '{"workload": {...}, "order": "second", "peer": "loop", ...}'

Answers first with the time of the first meta-iteration and a file with its meta-gradient; then, for each line
`{"run": n}`, with the seconds that each of n meta-iterations took. Between requests it waits on stdin.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from benchmarks.speed.peers import build
from benchmarks.speed.problem import math_attention, problem
from benchmarks.speed.workloads import Workload
from torch.utils.flop_counter import FlopCounterMode

from fewstep.memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.speed.peers import Peer


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> int:
    """Bytes in use now, from which on the peak counts."""
    with suppress(OSError):  # ru_maxrss cannot be reset, and a process inherits it from its parent
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


class Session:
    """The peer, its clock and its memory."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.device = spec["device"]
        self.cuda = self.device.startswith("cuda")
        torch.set_num_threads(spec["threads"])
        torch.backends.cudnn.allow_tf32 = False  # every peer computes in float32
        workload = Workload(**spec["workload"])
        dtype = torch.float64 if spec["mode"] == "reference" else torch.float32
        self.problem = problem(workload, spec["order"], self.device, dtype)
        self.kernels = ExitStack()
        if spec["order"] == "second":  # fused kernels have no second derivative
            self.kernels.enter_context(math_attention())
            self.kernels.enter_context(torch.backends.cudnn.flags(enabled=workload.network != "lstm", allow_tf32=False))
        if spec["peer"].startswith("jax") and self.cuda:
            raise RuntimeError("JAX is installed for the CPU alone.")
        self.peer: Peer = build(spec["peer"], self.problem)
        self.baseline = torch.cuda.memory_reserved() if self.cuda else reset_peak()

    def seconds(self) -> float:
        """The time of one meta-iteration."""
        start = time.perf_counter()
        self.peer.step()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def forget_peak(self) -> None:
        """Count peak memory from here, without what a compiler took."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(AttributeError):  # what is kept for later tensors would count
                ctypes.CDLL(None).malloc_trim(0)
            reset_peak()

    def memory(self) -> int:
        """Peak bytes beyond imports, parameters and tasks, since the first meta-iteration.

        On a GPU those reserved, since a captured graph allocates nothing when it runs.
        """
        return (torch.cuda.max_memory_reserved() if self.cuda else resident("VmHWM")) - self.baseline

    def save_gradient(self, path: str) -> None:
        """The first meta-gradient, into a file."""
        gradient = self.peer.gradient().items()
        np.savez(path, **{n: v.cpu().numpy() if isinstance(v, torch.Tensor) else v for n, v in gradient})

    def start(self, path: str) -> dict[str, Any]:
        """The first meta-iteration, its gradient saved, and an estimate from a few more."""
        first = self.seconds()
        self.save_gradient(path)
        self.forget_peak()
        warm = [self.seconds()]
        while sum(warm) < 0.5 and len(warm) < 10:
            warm.append(self.seconds())
        return {"first": first, "estimate": min(warm)}

    def check(self, path: str) -> dict[str, Any]:
        """The gradient only."""
        self.peer.step()
        self.save_gradient(path)
        return {}

    def reference(self, path: str) -> dict[str, Any]:
        """The gradient only, and the floating-point operations of convolutions and matrix products."""
        with FlopCounterMode(display=False) as counter:
            self.peer.step()
        self.save_gradient(path)
        return {"flops": counter.get_total_flops()}


def serve(spec: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer requests until stdin closes."""
    try:
        session = Session(spec)
        modes = {"time": session.start, "check": session.check, "reference": session.reference}
        answer(modes[spec["mode"]](spec["gradient"]))
    except Exception as error:  # what a peer raises where it cannot do a workload is its own
        traceback.print_exc()
        answer({"cannot": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"})
        return
    for line in sys.stdin:
        seconds = [session.seconds() for _ in range(json.loads(line)["run"])]
        answer({"seconds": seconds, "memory": session.memory()})


def main() -> None:
    """Keep stdout for answers: what libraries print goes to stderr.

    Every peer keeps freed memory: how long the system takes to clear pages changes from minute to minute, and it is not
    what is compared.
    """
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(json.loads(sys.argv[1]), lambda message: print(json.dumps(message), file=answers))


if __name__ == "__main__":
    main()
