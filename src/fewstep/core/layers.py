"""Parameters by layer, and how far each layer moves."""

from __future__ import annotations

from glob import escape
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from fewstep.core.types import Params

ROOT = "(model)"
"""The layer of parameters that belong to the model itself, not to a module in it."""


def by_layer(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names of parameters by the module that holds them: `body.0.conv.weight` belongs to the layer `body.0.conv`."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] or ROOT, []).append(name)
    return {layer: tuple(held) for layer, held in layers.items()}


def escaped(names: Iterable[str]) -> tuple[str, ...]:
    """Patterns for `Only` and `Except` that match these names and no others."""
    return tuple(escape(name) for name in names)


def movement(path: Sequence[Params], names: Iterable[str]) -> dict[str, Tensor]:
    """How far a layer moves along an inner loop.

    For its parameters theta_l as one vector of n elements, after k steps:

        relative: |theta_l^(k) - theta_l^(0)| / |theta_l^(0)|
        rms:      |theta_l^(k) - theta_l^(0)| / sqrt(n)

    Args:
        path: theta^(0) to theta^(S), as `adaptation_path` gives them.
        names: The layer's parameters.

    Returns:
        Both, each `[S + 1]`. A layer that stays where it is has moved by 0, and one that leaves 0 by infinity.
    """
    names = list(names)
    start, *_ = vectors = [torch.cat([point[name].flatten() for name in names]) for point in path]
    moved = torch.stack([(vector - start).square().sum().sqrt() for vector in vectors])
    relative = torch.where(moved > 0, moved / start.square().sum().sqrt(), 0.0)
    return {"relative": relative, "rms": moved / start.numel() ** 0.5}
