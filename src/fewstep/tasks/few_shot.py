"""N-way, K-shot classification (Finn et al. 2017, section 5.2): episodes from the images of one split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, final

import torch

from fewstep.core.expect import expect_whole
from fewstep.core.types import Batch, Task
from fewstep.errors import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


@final
@dataclass(frozen=True, eq=False)
class FewShot:
    """Tasks: tell `ways` unseen classes apart from `shots` labelled images of each.

    A task draws its classes without replacement and in random order; a class's place in that order is its
    label, so every class is equally likely to get every label. Support and query share no image. Indices are
    drawn on the CPU and images gathered where they live, so a task stream is the same on every device.

    Attributes:
        images: uint8 `[classes, examples, channels, height, width]`, all classes of one split; with `classes`,
            `[images, channels, height, width]`, class after class.
        ways: N, classes per task.
        shots: K, support images per class.
        queries: Query images per class.
        rotate: Turn each class of a task by 0, 90, 180 or 270 degrees, drawn uniformly; support and query
            alike. A class has one rotation and one label in a task.
        classes: The number of images of each class, by its name, where these differ.

    Raises:
        ValueError: The split is too small for such tasks, or its images are of the wrong kind.
    """

    images: Tensor
    ways: int = 5
    shots: int = 1
    queries: int = 1
    rotate: bool = False
    classes: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        _require_images(self.images, self.classes)
        for name in ("ways", "shots", "queries"):
            expect_whole(name, getattr(self, name))
        height, width = self.images.shape[-2:]
        if self.ways > len(self._counts):
            raise ValueError(
                f"`ways` must be at most the number of classes: got ways={self.ways} and {len(self._counts)} classes. "
                "Lower `tasks.ways`, or give the split more classes: of a folder of your own by `tasks.fractions` or "
                "folders train/, val/ and test/."
            )
        if self.shots + self.queries > self._counts.min():
            raise ValueError(
                "`shots` and `queries` together must be at most the examples per class: "
                f"got shots={self.shots}, queries={self.queries} and {self._short()}. "
                "Lower `tasks.shots` or `tasks.queries` (--shots, --queries)."
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
        counts = self._counts
        chosen = _without_replacement(torch.rand(num_tasks, len(counts), generator=generator), self.ways)
        keys = torch.rand(num_tasks, self.ways, int(counts.max()), generator=generator)
        keys[torch.arange(keys.shape[-1]) >= counts[chosen].unsqueeze(-1)] = -1  # below all keys: no such image
        drawn = _without_replacement(keys, self.shots + self.queries)
        places = (counts.cumsum(0) - counts)[chosen].unsqueeze(-1) + drawn
        flat, _ = self.flat()
        images = flat.index_select(0, places.flatten().to(flat.device)).view(*places.shape, *flat.shape[1:])
        if self.rotate:
            turns = torch.randint(4, (num_tasks, self.ways), generator=generator)
            rotate(images, turns)
        return Task(_batch(images[:, :, : self.shots]), _batch(images[:, :, self.shots :]))

    def flat(self) -> tuple[Tensor, list[int]]:
        """All images, class after class `[images, channels, height, width]`, and the number of each class."""
        if self.classes:
            return self.images, list(self.classes.values())
        return self.images.flatten(0, 1), [self.images.shape[1]] * len(self.images)

    @cached_property
    def _counts(self) -> Tensor:
        """Images of each class `[classes]`."""
        return torch.tensor(self.flat()[1])

    def _short(self) -> str:
        """The classes with too few images for a task."""
        needed = self.shots + self.queries
        if not self.classes or self._counts.min() == self._counts.max():
            return f"{int(self._counts[0])} examples"
        short = [f"{name} has {count}" for name, count in self.classes.items() if count < needed]
        return f"{len(short)} classes with fewer than {needed}: {listed(short)}"


def _without_replacement(keys: Tensor, count: int) -> Tensor:
    """The first `count` places of a random order `[..., count]`: those of the largest of random keys."""
    return keys.topk(count).indices


def rotate(images: Tensor, turns: Tensor) -> None:
    """Turn images `[tasks, ways, examples, ...]` by 90 degrees times `turns` `[tasks, ways]`, in place.

    Which ones is found out on the CPU, where the turns are: a mask on a GPU would wait for it six times.
    """
    of_classes = images.flatten(0, 1)  # a view
    for quarters in (1, 2, 3):
        those = (turns.flatten() == quarters).nonzero().squeeze(1).to(images.device)
        of_classes.index_copy_(0, those, torch.rot90(of_classes.index_select(0, those), quarters, (-2, -1)))


def _batch(images: Tensor) -> Batch:
    """All classes of a task as one set, from `[tasks, ways, examples, channels, height, width]`."""
    tasks, ways, examples = images.shape[:3]
    labels = torch.arange(ways, device=images.device).repeat_interleave(examples)
    return Batch(images.float().div_(255).flatten(1, 2), labels.repeat(tasks, 1))


def _require_images(images: Tensor, classes: Mapping[str, int] | None) -> None:
    axes = (
        ("images", "channels", "height", "width") if classes else ("classes", "examples", "channels", "height", "width")
    )
    if images.dtype != torch.uint8 or images.dim() != len(axes):
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(
            f"`images` must be uint8 [{', '.join(axes)}]: "
            f"got {kind} {list(images.shape)}. Stack the classes, and store pixels as 0 to 255."
        )
    if classes and sum(classes.values()) != len(images):
        raise ValueError(
            f"`classes` must count all images: got {sum(classes.values())} in `classes` and {len(images)} images. "
            "Give the number of each class, in the order of the images."
        )
