"""Randomness is derived, not stored: each use has its own stream, named by a path."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from fewstep.core.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Generator


def derived_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream `path` under `seed`, the same on every machine."""
    # NumPy's integers count as integers, whatever their repr.
    name = tuple(part if isinstance(part, str) else int(part) for part in (seed, *path))
    digest = hashlib.sha256(repr(name).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """An independent, replayable CPU stream: `generator(seed, "train", iteration)`.

    Because a stream depends on its name alone, iteration 5 draws the same tasks in a run of any length, after any
    resume and on any device.

    Args:
        seed: The run's seed.
        *path: What the stream is for, from coarse to fine.

    Returns:
        A generator of its own; using it disturbs no other stream.
    """
    return torch.Generator().manual_seed(derived_seed(seed, *path))


@contextmanager
def drawing_from(seed: int, device: torch.device | str = "cpu") -> Generator[None]:
    """Inside, torch's global streams of the CPU and of one device begin at a seed; afterwards they are as before.

    `torch.manual_seed` would seed the streams of all devices, which nobody gives back, and takes longer than a
    meta-update of a small network.
    """
    kind = torch.device(device)
    with cast("Any", torch.random).fork_rng([kind] if kind.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if kind.type == "cuda":
            with torch.cuda.device(kind):
                torch.cuda.manual_seed(seed)
        elif kind.type != "cpu":
            cast("Any", torch).manual_seed(seed)
        yield


class RandomStreams:
    """Where torch's own random streams stand, to draw the same numbers again.

    Args:
        tree: Holds tensors of all GPUs whose streams count, beside the CPU's.
    """

    def __init__(self, tree: Any) -> None:
        self._devices = sorted({leaf.device.index for leaf in leaves(tree) if leaf.is_cuda})
        if self._devices and torch.cuda.is_current_stream_capturing():
            self._devices = []  # a graph being captured keeps its streams itself, and before torch 2.10 tells no state
        self._states = [torch.cuda.get_rng_state(device) for device in self._devices]
        self._state = torch.get_rng_state()

    def restore(self) -> None:
        """From here on the same numbers come again."""
        torch.set_rng_state(self._state)
        for device, state in zip(self._devices, self._states, strict=True):
            torch.cuda.set_rng_state(state, device)

    @contextmanager
    def again(self) -> Generator[None]:
        """The same numbers come again inside, and what would have come comes afterwards."""
        with cast("Any", torch.random).fork_rng(self._devices):
            self.restore()
            yield
