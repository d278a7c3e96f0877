"""The convolutional classifier of few-shot image classification (Vinyals et al. 2016; Finn et al. 2017)."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Literal, final

from torch import Tensor, nn


@final
class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, batch normalisation and ReLU, then a linear head.

    Finn et al. 2017, section 5.2: four blocks; Omniglot 64 filters, stride 2 and a spatial mean before the head
    (`downsample="stride"`, `pool="mean"`); MiniImagenet 32 filters, 2x2 max-pool and all positions into the head.

    Args:
        ways: Classes, the outputs of the head.
        channels: Of the input images.
        image_size: Height and width of the input images, in pixels.
        filters: Output channels of every block.
        blocks: How many.
        downsample: How a block halves the image: a convolution of stride 2, or max-pooling after it.
        pool: What the head sees: the spatial "mean" `[filters]`, or all positions ("flatten").
        norm_gain: Whether normalisation has a meta-learned gain. The paper's code has none: weight frozen at 1.
        norm_eps: Added to the variance.
        head_std: Standard deviation of the head's initial weights; None draws them Xavier-uniform like the rest.
    """

    def __init__(
        self,
        ways: int,
        *,
        channels: int = 1,
        image_size: int = 28,
        filters: int = 64,
        blocks: int = 4,
        downsample: Literal["stride", "max_pool"] = "stride",
        pool: Literal["mean", "flatten"] = "mean",
        norm_gain: bool = False,
        norm_eps: float = 1e-3,
        head_std: float | None = None,
    ) -> None:
        super().__init__()
        stride = 2 if downsample == "stride" else 1
        widths = [channels] + [filters] * blocks
        body: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts: dict[str, nn.Module] = {
                "conv": nn.Conv2d(before, after, 3, stride=stride, padding=1),
                "norm": nn.BatchNorm2d(after, eps=norm_eps),
                "relu": nn.ReLU(),
            }
            if downsample == "max_pool":
                parts["pool"] = nn.MaxPool2d(2)
            body.append(nn.Sequential(OrderedDict(parts)))
            image_size = (image_size + 1) // 2 if downsample == "stride" else image_size // 2
        self.body = nn.Sequential(*body)
        self.pool = pool
        self.head = nn.Linear(filters if pool == "mean" else filters * image_size**2, ways)
        self._initialize(head_std, norm_gain)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[examples, ways]` of images `[examples, channels, height, width]`."""
        features = self.body(images)
        return self.head(features.mean((-2, -1)) if self.pool == "mean" else features.flatten(1))

    def _initialize(self, head_std: float | None, norm_gain: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.requires_grad_(norm_gain)
        if head_std is not None:
            nn.init.normal_(self.head.weight, std=head_std)
