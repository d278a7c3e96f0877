"""Convolutions of the paper's networks in float32 and bfloat16, forward and backward. From the root of the checkout:

python -m benchmarks.precision
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from fewstep.memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

_aten: Any = torch.ops.aten

LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int]] = {  # inputs, weights, stride, tasks as groups
    "omniglot-5way, second layer": ((5, 32 * 64, 14, 14), (32 * 64, 64, 3, 3), 2, 32),
    "omniglot-20way, second layer": ((20, 16 * 64, 14, 14), (16 * 64, 64, 3, 3), 2, 16),
    "miniimagenet query set, first layer": ((75, 3, 84, 84), (32, 3, 3, 3), 1, 1),
    "miniimagenet query set, second layer": ((75, 32, 42, 42), (32, 32, 3, 3), 1, 1),
}


def milliseconds(function: Callable[[], object]) -> float:
    """Median of several calls after two."""
    taken: list[float] = []
    for _ in range(12):
        start = time.perf_counter()
        function()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken[2:])


def times(layer: tuple[Any, ...], dtype: torch.dtype) -> list[float]:
    """Of the convolution, and of the gradients of its inputs and weights."""
    size, weight_size, stride, groups = layer
    inputs, weight = torch.randn(size).to(dtype), torch.randn(weight_size).to(dtype)
    settings = ([stride, stride], [1, 1], [1, 1], False, [0, 0], groups)
    along = torch.randn_like(_aten.convolution(inputs, weight, None, *settings))
    return [
        milliseconds(lambda: _aten.convolution(inputs, weight, None, *settings)),
        milliseconds(lambda: _aten.convolution_backward(along, inputs, weight, None, *settings, [True, True, False])),
    ]


def main() -> None:
    """Print a Markdown table."""
    keep_freed_memory()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    print("| ms, forward / backward | float32 | bfloat16 |\n|---|---|---|")
    for name, layer in LAYERS.items():
        cells = (" / ".join(f"{t:.1f}" for t in times(layer, dtype)) for dtype in (torch.float32, torch.bfloat16))
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
