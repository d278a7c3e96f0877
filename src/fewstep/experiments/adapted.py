"""An adapted classifier: a model for the user's own classes of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch

from fewstep.errors import DataError
from fewstep.tasks.images import Preparation, read_pictures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from fewstep.experiments.initialisation import Initialisation
    from fewstep.learners.heads import HeadPolicy
    from fewstep.tasks.archives import Member

_AT_ONCE = 256
"""Pictures that are classified together; the result does not depend on it."""


class Prediction(NamedTuple):
    """What a picture shows.

    Attributes:
        image: Its file, or its place among those given.
        label: The most probable class.
        probabilities: Of each class.
    """

    image: str
    label: str
    probabilities: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"image": self.image, "class": self.label, "probabilities": self.probabilities}


@final
@dataclass(frozen=True, eq=False)
class AdaptedClassifier:
    """A classifier of pictures, adapted to a few of each class.

    Attributes:
        module: In evaluation mode, from float32 images in [0, 1] `[examples, channels, height, width]` to logits
            `[examples, ways]`.
        support: For each class, in the order of the logits, its prepared pictures, uint8
            `[examples, channels, height, width]`.
        steps: Gradient steps that it took.
        head: Where its head began.
        initialisation: What it was adapted from.
        preparation: How a picture becomes what the module sees.
        folder: Where it was read from, or the one that it goes on from: it may be written over.
    """

    module: nn.Module
    support: dict[str, Tensor]
    steps: int
    head: HeadPolicy
    initialisation: Initialisation
    preparation: Preparation
    folder: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return tuple(self.support)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Of each class, `[examples, ways]`, for prepared pictures uint8 `[examples, channels, height, width]`.

        Each picture is judged on its own: others that come with it change nothing.
        """
        check_prepared(images, self.preparation)
        parts = [self.module(part.float() / 255).softmax(1) for part in images.split(_AT_ONCE)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.support))

    def predict(self, pictures: Sequence[Path | Member] | Tensor) -> list[Prediction]:
        """Classify pictures.

        Args:
            pictures: Files, or what `probabilities` takes.

        Raises:
            DataError: Lists the files that are no readable pictures.
        """
        if isinstance(pictures, torch.Tensor):
            return self.named_predictions([str(index) for index in range(len(pictures))], pictures)
        return self.named_predictions(
            [printable(str(picture)) for picture in pictures], read_pictures(pictures, self.preparation)
        )

    def named_predictions(self, names: Sequence[str], images: Tensor) -> list[Prediction]:
        """As `predict`, for prepared pictures with names."""
        classes = self.classes
        return [
            Prediction(name, classes[row.argmax()], dict(zip(classes, row.tolist(), strict=True)))
            for name, row in zip(names, self.probabilities(images), strict=True)
        ]

    def save(self, folder: str | Path) -> Path:
        """Write it to a new folder, or to that which it was loaded or goes on from.

        Raises:
            RunError: Something else is there, or the folder cannot be written to.
        """
        from fewstep.experiments.adapted_folder import save_adapted  # which reads such objects, too

        return save_adapted(self, folder)


def check_prepared(images: Tensor, preparation: Preparation) -> None:
    """Check that pictures are prepared.

    Raises:
        DataError: They are not.
    """
    shape = (preparation.channels, preparation.image_size, preparation.image_size)
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != shape:
        raise DataError(
            f"Prepared pictures are uint8 [pictures, {', '.join(map(str, shape))}]: got "
            f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}. Give files, or pixels from 0 to 255."
        )


def printable(name: str) -> str:
    """A file's name without the bytes that are no text."""
    return name.encode(errors="backslashreplace").decode()
