"""Convolutions as matrix products: what a GPU does best when every task has filters of its own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.context import is_recording_for_compiler, is_vmapped

_LARGEST = 32
"""Height and width up to which products were measured. Patches of a 3 x 3 filter take 9 times the memory."""


class _Convolution(nn.Conv2d):
    """PyTorch's layer, with a second way through for the compiler on a GPU.

    Mapped over tasks, PyTorch's is one grouped convolution, for whose derivatives cuDNN has no fast kernels. Products
    of the filters and the patches `[in * kernel, examples * positions]` are one batched product, and copying the
    patches fuses with what comes before.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """As PyTorch's layer of that kind."""
        plain = self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if is_vmapped() and is_recording_for_compiler() and plain and pays(input):
            return self._of_patches(input)
        return super().forward(input)

    def _of_patches(self, images: Tensor) -> Tensor:
        (high, wide), (down, right), (dense_y, dense_x) = self.kernel_size, self.stride, self.dilation
        top, left = cast("tuple[int, int]", self.padding)
        padded = functional.pad(images.transpose(0, 1), (left, left, top, top))
        _, examples, height, width = padded.shape
        rows = (height - dense_y * (high - 1) - 1) // down + 1
        columns = (width - dense_x * (wide - 1) - 1) // right + 1
        shifted = [
            padded[:, :, y : y + down * (rows - 1) + 1 : down, x : x + right * (columns - 1) + 1 : right]
            for y in range(0, dense_y * high, dense_y)
            for x in range(0, dense_x * wide, dense_x)
        ]
        patches = torch.stack(shifted, 1).reshape(-1, examples * rows * columns)
        outputs = (self.weight.flatten(1) @ patches).view(-1, examples, rows, columns).transpose(0, 1)
        return outputs if self.bias is None else outputs + self.bias.view(-1, 1, 1)


def pays(images: Tensor) -> bool:
    """Whether products are faster than PyTorch's own convolution of these images; on the CPU they are not."""
    return images.is_cuda and images.dim() == 4 and max(images.shape[-2:]) <= _LARGEST


def with_own_convolutions(module: nn.Module) -> nn.Module:
    """The module with these convolutions for PyTorch's, in place; parameters and attributes stay theirs.

    A subclass, which may do something else besides, is left as it is.
    """
    for layer in module.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = _Convolution
    return module
