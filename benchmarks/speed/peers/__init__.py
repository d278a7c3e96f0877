"""The peers: each does a workload's meta-iteration the way a competent user of that tool would write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from benchmarks.speed.problem import Problem
    from torch import Tensor

PEERS = ("fewstep", "fewstep-eager", "loop", "vmap", "higher", "torchopt", "jax", "jax-map")
"""`fewstep` runs as fast as it can be told to; `fewstep-eager` with what it does by default."""

ROUNDED = ("fewstep-bf16", "fewstep-tf32")
"""fewstep with products of fewer digits. Their error is told and not judged."""

VARIANTS = (
    "fewstep-remat",
    "fewstep-recomputing",
    "fewstep-reverse",
    "fewstep-captured",
    "fewstep-side",
    "fewstep-grouped",
    *ROUNDED,
)
"""fewstep with one choice made differently: steps computed again for their derivatives, uncompiled and compiled, and
derivatives in reverse mode; captured as a CUDA graph without being compiled; on a GPU, grouped convolutions for
products of patches; rounded products. Measured where asked for."""


class Peer(Protocol):
    """A tool that was given a problem."""

    def step(self) -> float:
        """One meta-iteration: meta-gradient and Adam update; returns the mean query loss."""
        ...

    def gradient(self) -> Mapping[str, Tensor | np.ndarray]:
        """The meta-gradient of the first meta-iteration, asked for directly after it."""
        ...


def build(name: str, problem: Problem) -> Peer:
    """A peer by its name. Imports no other."""
    if name.startswith("fewstep"):
        from benchmarks.speed.peers.fewstep import EXECUTIONS, Fewstep

        return Fewstep(problem, EXECUTIONS[name](problem))
    if name.startswith("jax"):
        from benchmarks.speed.peers.jax import Jax

        return Jax(problem, vectorized=name == "jax")
    if name == "higher":
        from benchmarks.speed.peers.higher import Higher

        return Higher(problem)
    if name == "torchopt":
        from benchmarks.speed.peers.torchopt import TorchOpt

        return TorchOpt(problem)
    if name == "vmap":
        from benchmarks.speed.peers.vmap import Vmap

        return Vmap(problem)
    if name == "loop":
        from benchmarks.speed.peers.loop import Loop

        return Loop(problem)
    raise ValueError(f"A peer must be one of {', '.join((*PEERS, *VARIANTS))}: got {name!r}.")
