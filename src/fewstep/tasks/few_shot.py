"""N-way, K-shot classification (Finn et al. 2017, section 5.2): episodes from the images of one split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from fewstep.core.types import Batch, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor


@final
@dataclass(frozen=True, eq=False)
class FewShot:
    """Tasks: tell `ways` unseen classes apart from `shots` labelled images of each.

    A task draws its classes without replacement and in random order; a class's place in that order is its
    label, so every class is equally likely to get every label. Support and query share no image. Indices are
    drawn on the CPU and images gathered where they live, so a task stream is the same on every device.

    Attributes:
        images: uint8 `[classes, examples, channels, height, width]`, all classes of one split.
        ways: N, classes per task.
        shots: K, support images per class.
        queries: Query images per class.
        rotate: Turn each class of a task by 0, 90, 180 or 270 degrees, drawn uniformly; support and query
            alike. A class has one rotation and one label in a task.

    Raises:
        ValueError: The split is too small for such tasks, or its images are of the wrong kind.
    """

    images: Tensor
    ways: int = 5
    shots: int = 1
    queries: int = 1
    rotate: bool = False

    def __post_init__(self) -> None:
        _require_images(self.images)
        for name in ("ways", "shots", "queries"):
            _require_positive(name, getattr(self, name))
        classes, examples, _, height, width = self.images.shape
        if self.ways > classes:
            raise ValueError(
                f"`ways` must be at most the number of classes: got ways={self.ways} and {classes} classes. "
                "Lower `tasks.ways` or use a larger split."
            )
        if self.shots + self.queries > examples:
            raise ValueError(
                "`shots` and `queries` together must be at most the examples per class: "
                f"got shots={self.shots}, queries={self.queries} and {examples} examples. "
                "Lower `tasks.shots` or `tasks.queries`."
            )
        if self.rotate and height != width:
            raise ValueError(
                f"`rotate` needs square images: got height {height} and width {width}. "
                "Set `tasks.rotate` to false or use square images."
            )

    def sample(self, num_tasks: int, generator: Generator) -> Task:
        """Draw tasks, all of them at once.

        Args:
            num_tasks: How many.
            generator: A CPU stream; the same stream gives the same tasks.

        Returns:
            Inputs float32 in [0, 1] `[tasks, ways * shots, channels, height, width]`, grouped by class, and
            targets int64 `[tasks, ways * shots]`; the query set likewise with `queries`.
        """
        classes, examples = self.images.shape[:2]
        chosen = _without_replacement((num_tasks,), classes, self.ways, generator)
        drawn = _without_replacement((num_tasks, self.ways), examples, self.shots + self.queries, generator)
        images = self.images[chosen.to(self.images.device).unsqueeze(-1), drawn.to(self.images.device)]
        if self.rotate:
            turns = torch.randint(4, (num_tasks, self.ways), generator=generator)
            images = _rotated(images, turns.to(images.device))
        return Task(_batch(images[:, :, : self.shots]), _batch(images[:, :, self.shots :]))


def _without_replacement(shape: tuple[int, ...], population: int, count: int, generator: Generator) -> Tensor:
    """The first `count` of a random order of `range(population)` `[*shape, count]`: sorted random keys."""
    return torch.rand(*shape, population, generator=generator).topk(count).indices


def _rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Images `[tasks, ways, examples, ...]` turned by 90 degrees times `turns` `[tasks, ways]`, in place."""
    for quarters in (1, 2, 3):
        those = turns == quarters
        images[those] = torch.rot90(images[those], quarters, (-2, -1))
    return images


def _batch(images: Tensor) -> Batch:
    """All classes of a task as one set, from `[tasks, ways, examples, channels, height, width]`."""
    tasks, ways, examples = images.shape[:3]
    labels = torch.arange(ways, device=images.device).repeat_interleave(examples)
    return Batch(images.flatten(1, 2).float().div_(255), labels.repeat(tasks, 1))


def _require_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 5:
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(
            "`images` must be uint8 [classes, examples, channels, height, width]: "
            f"got {kind} {list(images.shape)}. Stack the classes, and store pixels as 0 to 255."
        )


def _require_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer: got {value!r}. Set `tasks.{name}` to 1 or more.")
