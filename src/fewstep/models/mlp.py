"""Fully connected networks."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def mlp(inputs: int, outputs: int, hidden: Sequence[int] = (40, 40), init_std: float | None = None) -> nn.Sequential:
    """A fully connected ReLU network: `body.0`, `body.1` ... and `head`.

    Args:
        inputs: Input features.
        outputs: Output features.
        hidden: Width of each hidden layer.
        init_std: Standard deviation of a normal distribution, truncated at two of them, for the weights, with zero
            biases (the paper's code uses 0.01); None keeps PyTorch's initialisation.

    Returns:
        A module from `[..., inputs]` to `[..., outputs]`.
    """
    body = [
        nn.Sequential(OrderedDict(linear=nn.Linear(narrow, wide), relu=nn.ReLU()))
        for narrow, wide in pairwise([inputs, *hidden])
    ]
    network = nn.Sequential(OrderedDict(body=nn.Sequential(*body), head=nn.Linear([inputs, *hidden][-1], outputs)))
    if init_std is not None:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
                nn.init.zeros_(module.bias)
    return network
