"""Ordinary classification of all classes of a split: what the paper's classification baselines are pretrained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from fewstep.core.types import Batch, Task
from fewstep.tasks.few_shot import rotate

if TYPE_CHECKING:
    from torch import Generator, Tensor


@final
@dataclass(frozen=True, eq=False)
class AllClasses:
    """One task: tell all classes apart. There is nothing to adapt to, so its support set is its query set.

    Attributes:
        images: uint8 `[images, channels, height, width]`, one class after the other.
        counts: Images of each class, in the same order; a class's place in it is its label.
        rotate: Turn each image by 0, 90, 180 or 270 degrees, drawn uniformly.

    Raises:
        ValueError: The counts do not add up to the images, or a class has none.
    """

    images: Tensor
    counts: tuple[int, ...]
    rotate: bool = False

    def __post_init__(self) -> None:
        if sum(self.counts) != len(self.images) or min(self.counts, default=0) < 1:
            raise ValueError(
                "`counts` must say how many images each class has, at least one: they sum to "
                f"{sum(self.counts)}, the least is {min(self.counts, default=0)}, and there are {len(self.images)} "
                "images. Leave out empty classes."
            )

    def sample(self, num_tasks: int, generator: Generator) -> Task:
        """Draw images with replacement: first the class, uniformly, then one of its images.

        Args:
            num_tasks: Images to draw: `meta.batch_size` counts them here, since there is one task only.
            generator: A CPU stream; the same stream gives the same images.

        Returns:
            Inputs float32 in [0, 1] `[1, num_tasks, channels, height, width]`, targets int64 `[1, num_tasks]`.
        """
        counts = torch.tensor(self.counts)
        labels = torch.randint(len(counts), (num_tasks,), generator=generator)
        within = (torch.rand(num_tasks, generator=generator, dtype=torch.float64) * counts[labels]).long()
        images = self.images[((counts.cumsum(0) - counts)[labels] + within).to(self.images.device)]
        if self.rotate:
            turns = torch.randint(4, (num_tasks,), generator=generator)
            rotate(images[None, :, None], turns[None])
        batch = Batch((images.float() / 255).unsqueeze(0), labels.to(images.device).unsqueeze(0))
        return Task(batch, batch)
