"""A workload as torch peers get it: module, tensors and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from benchmarks.speed.models import model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from benchmarks.speed.workloads import Order, Workload

META_LR = 1e-3
"""beta, of the Adam update that ends every meta-iteration."""


@dataclass(frozen=True)
class Problem:
    """What all torch peers share.

    Attributes:
        model: The module at its initialisation.
        support_inputs: And the rest of the meta-batch, `[tasks, examples, ...]`, where the computation happens.
    """

    workload: Workload
    order: Order
    model: nn.Module
    support_inputs: Tensor
    support_targets: Tensor
    query_inputs: Tensor
    query_targets: Tensor

    @property
    def second_order(self) -> bool:
        return self.order == "second"

    @property
    def on_gpu(self) -> bool:
        return self.support_inputs.is_cuda

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scaled loss of inner and outer loop."""
        return self.workload.loss_scale * plain_loss(self.workload)(outputs, targets)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the outer loop learns."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def gradient(self) -> dict[str, Tensor]:
        """The meta-gradient that the last meta-iteration left in the module."""
        return {name: value.grad for name, value in self.parameters().items() if value.grad is not None}


def plain_loss(workload: Workload) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss without its factor."""
    return nn.functional.cross_entropy if workload.classifies else nn.functional.mse_loss


def problem(workload: Workload, order: Order, device: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The same parameters and tasks at every call."""
    torch.manual_seed(0)
    network = model(workload).to(device, dtype)
    tensors = [torch.from_numpy(array).to(device) for array in workload.make_tasks()]
    return Problem(workload, order, network, *(t.to(dtype) if t.is_floating_point() else t for t in tensors))


def adam(tensors: list[Tensor] | list[nn.Parameter]) -> torch.optim.Optimizer:
    """The meta-optimizer, in its fastest form for every peer."""
    return torch.optim.Adam(tensors, lr=META_LR, fused=True)


def math_attention() -> AbstractContextManager[Any]:
    """Attention by plain products: fused kernels have neither a second derivative nor a vmap rule."""
    return sdpa_kernel(SDPBackend.MATH)
