"""What is measured: models, tasks and algorithms, the same for every peer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

Order = Literal["second", "first"]
Tasks = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Support inputs and targets, query inputs and targets, each `[tasks, examples, ...]`."""


@dataclass(frozen=True)
class Workload:
    """One meta-iteration's worth of work.

    Attributes:
        network: Which of the networks in `models`.
        tasks: In the meta-batch.
        shots: Support examples per class; of the task where there are no classes.
        queries: Query examples, counted likewise.
        steps: Inner steps.
        inner_lr: alpha, on the scaled loss.
        ways: Classes; 1 for regression.
        width: Hidden units, filters or model width.
        channels: Of an image, or features of a sequence.
        size: Height and width of an image, or the length of a sequence.
        fixed: Pattern of parameters that are meta-learned and not adapted.
    """

    name: str
    network: Literal["mlp", "convnet", "lstm", "transformer"]
    tasks: int
    shots: int
    queries: int
    steps: int
    inner_lr: float
    ways: int = 1
    width: int = 40
    channels: int = 1
    size: int = 1
    heads: int = 1
    downsample: Literal["stride", "max_pool"] = "stride"
    pool: Literal["mean", "flatten"] = "mean"
    fixed: str = ""

    @property
    def classifies(self) -> bool:
        """Whether the loss is the cross entropy; else it is the mean squared error."""
        return self.network == "convnet"

    @property
    def loss_scale(self) -> float:
        """Factor on the loss inside and outside: the paper's code sums over the classes."""
        return float(self.ways)

    def adapts(self, name: str) -> bool:
        """Whether the inner loop adapts the parameter."""
        return not fnmatchcase(name, self.fixed)

    def make_tasks(self, seed: int = 0) -> Tasks:
        """The meta-batch, in float32."""
        generator = np.random.default_rng(seed)
        support = self._examples(generator, self.shots * self.ways)
        query = self._examples(generator, self.queries * self.ways)
        if self.network == "mlp":
            amplitude, phase = generator.uniform((0.1, 0.0), (5.0, np.pi), (self.tasks, 2)).T[..., None, None]
            targets = [(amplitude * np.sin(x - phase)).astype(np.float32) for x in (support, query)]
        elif self.classifies:
            counts = (self.shots, self.queries)
            targets = [np.tile(np.arange(self.ways), (self.tasks, count)) for count in counts]
        else:
            targets = [generator.normal(size=(*x.shape[:2], 1)).astype(np.float32) for x in (support, query)]
        return support, targets[0], query, targets[1]

    def _examples(self, generator: np.random.Generator, count: int) -> np.ndarray:
        shapes: dict[str, tuple[int, ...]] = {
            "mlp": (1,),
            "convnet": (self.channels, self.size, self.size),
            "lstm": (self.size, self.channels),
            "transformer": (self.size, self.width),
        }
        low, high = (0.0, 1.0) if self.classifies else (-5.0, 5.0) if self.network == "mlp" else (-1.0, 1.0)
        return generator.uniform(low, high, (self.tasks, count, *shapes[self.network])).astype(np.float32)


_OMNIGLOT: dict[str, Any] = {"network": "convnet", "width": 64, "size": 28, "fixed": "*.norm.bias"}
_MINIIMAGENET = _OMNIGLOT | {"width": 32, "channels": 3, "size": 84, "downsample": "max_pool", "pool": "flatten"}

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("sinusoid", "mlp", 25, 10, 10, 1, 0.01),
        Workload("omniglot-5way-1shot", tasks=32, shots=1, queries=1, steps=1, inner_lr=0.4, ways=5, **_OMNIGLOT),
        Workload("omniglot-20way-1shot", tasks=16, shots=1, queries=1, steps=5, inner_lr=0.1, ways=20, **_OMNIGLOT),
        Workload(
            "miniimagenet-5way-1shot", tasks=4, shots=1, queries=15, steps=5, inner_lr=0.01, ways=5, **_MINIIMAGENET
        ),
        Workload(
            "miniimagenet-5way-5shot", tasks=2, shots=5, queries=15, steps=5, inner_lr=0.01, ways=5, **_MINIIMAGENET
        ),
        Workload("lstm", "lstm", 16, 10, 10, 1, 0.01, width=32, channels=4, size=20),
        Workload("transformer", "transformer", 16, 10, 10, 3, 0.01, width=32, size=16, heads=4),
    )
}

SWEEPS: dict[str, dict[str, tuple[int, ...]]] = {
    "sinusoid": {"tasks": (1, 2, 4, 8, 16, 32, 64, 128), "steps": (1, 2, 5, 10, 20, 50)},
    "omniglot-5way-1shot": {
        "tasks": (1, 2, 4, 8, 16, 32, 64, 128),
        "steps": (1, 2, 5, 10, 20, 50),
        "ways": (2, 5, 10, 20, 40),
    },
}
"""For each series, what is varied while the rest stays as in the workload."""


def shrunk(workload: Workload) -> Workload:
    """The same computation on next to nothing, to check that peers agree."""
    small = replace(workload, tasks=2, queries=min(workload.queries, 2), steps=min(workload.steps, 2))
    return replace(small, width=8, size=min(workload.size, 32)) if workload.classifies else small
