"""Randomness is derived, not stored: each use has its own stream, named by a path."""

from __future__ import annotations

import hashlib

import torch


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
