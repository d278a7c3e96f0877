"""Fully connected networks."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def mlp(
    inputs: int | Sequence[int],
    outputs: int,
    hidden: Sequence[int] = (40, 40),
    init_std: float | None = None,
    *,
    init: Literal["torch", "xavier"] = "torch",
    norm: Literal["none", "batch"] = "none",
    norm_gain: bool = False,
    norm_eps: float = 1e-3,
) -> nn.Sequential:
    """A fully connected ReLU network: `body.0`, `body.1` ... and `head`.

    The "no conv" network of Finn et al. 2017, section 5.2, is `mlp((1, 28, 28), 5, (256, 128, 64, 64), norm="batch")`.

    Args:
        inputs: Input features, or the shape of inputs that are flattened first, such as `(channels, height, width)`.
        outputs: Output features.
        hidden: Width of each hidden layer.
        init_std: Standard deviation of a normal distribution, truncated at two of them, for the weights, with zero
            biases (the paper's code uses 0.01); None leaves it to `init`.
        init: PyTorch's own, or "xavier": Glorot's uniform weights and zero biases (the paper's policies).
        norm: Whether each hidden layer is normalised over the examples, before its ReLU.
        norm_gain: Whether normalisation has a meta-learned gain. The paper's code has none: weight frozen at 1.
        norm_eps: Added to the variance.

    Returns:
        A module from `[examples, *inputs]` to `[examples, outputs]`.
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    widths = [math.prod(shape), *hidden]
    body: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        parts: dict[str, nn.Module] = {"linear": nn.Linear(narrow, wide)}
        if norm == "batch":
            parts["norm"] = nn.BatchNorm1d(wide, eps=norm_eps)
            parts["norm"].weight.requires_grad_(norm_gain)
        body.append(nn.Sequential(OrderedDict(parts, relu=nn.ReLU())))
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()} if len(shape) > 1 else {}
    network = nn.Sequential(OrderedDict(layers, body=nn.Sequential(*body), head=nn.Linear(widths[-1], outputs)))
    for module in network.modules():
        if isinstance(module, nn.Linear) and (init_std is not None or init == "xavier"):
            if init_std is not None:
                nn.init.trunc_normal_(module.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return network
