"""The networks of the workloads, as modules that every torch peer can run as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from fewstep.models.convnet import ConvNet
from fewstep.models.mlp import mlp

if TYPE_CHECKING:
    from benchmarks.speed.workloads import Workload


class SequenceRegressor(nn.Module):
    """An LSTM over `[examples, time, features]`; its last output gives one number."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, _ = self.lstm(inputs)
        return self.head(outputs[:, -1])


class AttentionRegressor(nn.Module):
    """One transformer encoder layer over `[examples, time, features]`; the mean over time gives one number."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs).mean(1))


def convnet(workload: Workload) -> ConvNet:
    """The classifier with batch normalisation that has no state and no gain: what each peer's users would write."""
    network = ConvNet(
        workload.ways,
        channels=workload.channels,
        image_size=workload.size,
        filters=workload.width,
        downsample=workload.downsample,
        pool=workload.pool,
    )
    for block in network.body:
        norm = nn.BatchNorm2d(workload.width, eps=1e-3, track_running_stats=False)
        norm.weight.requires_grad_(False)
        block.norm = norm
    return network


def model(workload: Workload) -> nn.Module:
    """The network of a workload, initialised from the global generator."""
    if workload.network == "mlp":
        return mlp(1, 1, (workload.width, workload.width))
    if workload.network == "convnet":
        return convnet(workload)
    if workload.network == "lstm":
        return SequenceRegressor(workload.channels, workload.width)
    return AttentionRegressor(workload.width, workload.heads)
