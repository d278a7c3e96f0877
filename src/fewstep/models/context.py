"""The context variant of the paper (Finn et al. 2017, appendix; after Rei 2015): free parameters beside the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


@final
class WithContext(nn.Module):
    """f(x, z): a network that sees a context z appended to every input, the same for all examples.

    Adapting z alone, `Only("context", rule)`, is the variant that the paper compares with MAML (table 3).

    Args:
        network: Takes inputs `[examples, channels + context channels, ...]`.
        shape: Of z, without the `examples` axis: `[features]` for vectors; for images, to which the paper
            concatenates it channel-wise, `[channels, height, width]`, each position with a value of its own. Zero at
            first.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(*shape))
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of the network on inputs `[examples, channels, ...]`."""
        context = self.context.expand(len(inputs), *self.context.shape)
        return self.network(torch.cat([inputs, context], dim=1))
