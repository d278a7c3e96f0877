"""An adapted classifier, a model for the user's own classes of pictures, and the folder that keeps it.

    config.json             classes in the order of the outputs, preparation of pictures, steps, head, source
    model.safetensors       the module's state: adapted parameters, and running statistics of the support pictures
    init.safetensors        the initialisation that it was adapted from
    support.safetensors     the support pictures, prepared, as bytes
    contact-sheet.png       support pictures and predictions, to look at
    model.onnx, model.pt2   exports

Initialisation and support pictures are what is needed to adapt anew with more of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save

from fewstep.adapting.exporting import FILES, Format, exported
from fewstep.adapting.initialisation import read_initialisation
from fewstep.errors import DataError, RunError, listed
from fewstep.experiments.recipe_files import load_recipe, recipe_values
from fewstep.files import entries, read_json, replaced, write_json
from fewstep.learners.heads import with_ways
from fewstep.tasks.images import Preparation, read_pictures, without_drawing
from fewstep.tasks.picture_files import chosen_pictures, picture_name
from fewstep.training.checkpoint import save_meta, sha256
from fewstep.training.records import FORMAT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from fewstep.adapting.initialisation import Initialisation
    from fewstep.learners.heads import HeadPolicy
    from fewstep.tasks.picture_files import Picture

_logger = logging.getLogger(__name__)

_STATE = ("init.safetensors", "support.safetensors", "model.safetensors")
_EXTRAS = ("contact-sheet.png", *FILES.values())
"""Made from the model, and stale when it changes."""
_AT_ONCE = 256
"""Pictures that are classified together; the result does not depend on it."""


class Prediction(NamedTuple):
    """What a picture shows.

    Attributes:
        image: Its file, or its place among those given.
        label: The most probable class.
        probabilities: Of each class.
        empty: Whether nothing is to be seen in it, so that the rest means nothing.
    """

    image: str
    label: str
    probabilities: dict[str, float]
    empty: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `empty` is among them where it is true."""
        seen = {"image": self.image, "class": self.label, "probabilities": self.probabilities}
        return seen | ({"empty": True} if self.empty else {})


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

    def __repr__(self) -> str:
        """In a line, of which a notebook shows one for each cell."""
        counts = ", ".join(f"{name!r} ({len(images)})" for name, images in self.support.items())
        return f"AdaptedClassifier of {counts}; steps {self.steps}, head {self.head!r}"

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
        if not len(images):  # which not every module takes
            return torch.empty(0, len(self.support))
        return torch.cat([self.module(part.float() / 255).softmax(1) for part in images.split(_AT_ONCE)])

    def prepare(self, pictures: str | Path | Picture | Sequence[str | Picture]) -> Tensor:
        """Pictures as the module sees them, before they are divided by 255: for `probabilities`, or an export.

        Args:
            pictures: As for `predict`.

        Returns:
            uint8 `[pictures, channels, height, width]`.

        Raises:
            DataError: They are something else; or lists those that are no readable pictures.
        """
        return read_pictures(chosen_pictures(pictures), self.preparation)

    def predict(self, pictures: str | Path | Picture | Sequence[str | Picture] | Tensor) -> list[Prediction]:
        """Classify pictures.

        Args:
            pictures: A file, a folder or zip archive of them, a picture in memory (`PIL.Image`, or an array uint8
                `[height, width]` or `[height, width, 3]`), several of these, or what `probabilities` takes.

        Raises:
            DataError: They are something else; or lists those that are no readable pictures.
        """
        if isinstance(pictures, torch.Tensor):
            return self.named_predictions([str(index) for index in range(len(pictures))], pictures)
        chosen = chosen_pictures(pictures)
        images = read_pictures(chosen, self.preparation)
        return self.named_predictions([picture_name(one, place) for place, one in enumerate(chosen)], images)

    def named_predictions(self, names: Sequence[str], images: Tensor) -> list[Prediction]:
        """As `predict`, for prepared pictures with names; warns of those in which nothing is to be seen."""
        classes, empty = self.classes, {*without_drawing(images, self.preparation)}
        tell_of_empty([names[place] for place in sorted(empty)])
        return [
            Prediction(
                printable(name), classes[row.argmax()], dict(zip(classes, row.tolist(), strict=True)), place in empty
            )
            for place, (name, row) in enumerate(zip(names, self.probabilities(images), strict=True))
        ]

    def save(self, folder: str | Path) -> Path:
        """Write it to a new folder, or to that which it was loaded or goes on from.

        What makes it complete, config.json, comes last, and tells of the other files: a save that is cut off is
        noticed.

        Raises:
            RunError: Something else is there, or the folder cannot be written to.
        """
        folder = Path(folder)
        check_place(folder, self.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in _EXTRAS:
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"--out must be a folder to write to: {folder}: {error.strerror}. Choose another.") from None
        start, file = self.initialisation, folder / "init.safetensors"
        own = self.folder is not None and self.folder.resolve() == folder.resolve()
        if not (own and file.exists()):  # not a second time: its bytes might not be those that config.json tells of
            save_meta(file, start.meta, {"constants": start.constants})
        # By number: names of classes may be any text.
        pictures = {str(index): images for index, images in enumerate(self.support.values())}
        _write(folder / "support.safetensors", pictures)
        _write(folder / "model.safetensors", _state(self.module))
        write_json(folder / "config.json", {"format": FORMAT, "adapted": _described(self, folder)})
        return folder

    def exported(self, format: Format) -> bytes:  # noqa: A002  (its name on the command line)
        """The module for other programs, which takes any number of prepared pictures, as float32 in [0, 1].

        Names of the classes and the preparation of pictures come along; see `exporting.exported`.

        Raises:
            FewstepError: It cannot be written, or computes something else than the module.
        """
        about = {"classes": self.classes, "preparation": self.preparation.to_dict()}
        return exported(self.module, torch.cat(list(self.support.values())).float() / 255, about, format)


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


def tell_of_empty(names: Sequence[str]) -> None:
    """Warn of pictures in which nothing is to be seen: what a model says of them means nothing."""
    if names:
        _logger.warning("No drawing was found in: %s. Look at these pictures.", listed([*map(printable, names)]))


def printable(name: str) -> str:
    """A file's name without the bytes that are no text."""
    return name.encode(errors="backslashreplace").decode()


def is_adapted(path: str | Path) -> bool:
    """Whether a folder holds an adapted classifier."""
    file = Path(path) / "config.json"
    stored = read_json(file) if file.is_file() else None
    return isinstance(stored, dict) and "adapted" in stored


def check_place(folder: Path, own: Path | None = None) -> None:
    """Check that an adapted classifier may be written here.

    Args:
        folder: Where.
        own: The folder that it goes on from, which may be the same.

    Raises:
        RunError: Something else is there.
    """
    names = entries(folder)
    unfinished = "config.json" not in names and {*names} <= {*_STATE}
    if not unfinished and (own is None or own.resolve() != folder.resolve()):
        what = "an adapted model" if is_adapted(folder) else ", ".join(names[:5])
        raise RunError(
            f"--out must be a new or empty folder: {folder} holds {what}. Choose another; or go on with an adapted "
            "model by naming it in place of the run."
        )


def load_adapted(folder: str | Path, model: nn.Module | None = None) -> AdaptedClassifier:
    """Read an adapted classifier.

    Args:
        folder: As `AdaptedClassifier.save` wrote it.
        model: The module that the run was trained with, if it was passed from Python.

    Raises:
        FewstepError: The folder holds none, or not all of one.
    """
    folder = Path(folder)
    if not is_adapted(folder):
        raise RunError(
            f"ADAPTED must be a folder made by `fewstep adapt` from pictures: {folder} is none. Make one with "
            "`fewstep adapt RUN --support DIR`. A run on a table predicts rows where it adapts: `fewstep adapt RUN "
            "--support MEASURED --predict OTHERS`."
        )
    stored = read_json(folder / "config.json")
    if stored.get("format") != FORMAT:
        raise RunError(
            f"{folder} must be an adapted model of format {FORMAT}: its format is {stored.get('format')}. Use fewstep "
            f"{stored['adapted'].get('fewstep', 'of another version')}, or adapt again."
        )
    try:
        config = stored["adapted"]
        for name, fingerprint in config["fingerprints"].items():
            if sha256(folder / name) != fingerprint:
                raise ValueError(f"{name} is not the one that config.json tells of")
        recipe = load_recipe(config["recipe"], where=str(folder / "config.json"))
        start = read_initialisation(folder / "init.safetensors", recipe, model, config["source"])
        pictures = load_file(folder / "support.safetensors")
        support = {name: pictures[str(index)] for index, name in enumerate(config["classes"])}
        preparation = Preparation.from_dict(config["preparation"])
        module = _restored(with_ways(start.module, len(support)), folder / "model.safetensors")
        return AdaptedClassifier(module, support, config["steps"], config["head"], start, preparation, folder)
    except (AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise RunError(
            f"An adapted model must be whole: {folder}: {error}. Restore it from a copy, or adapt again."
        ) from None


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    with replaced(file) as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state, with tied parameters once: a safetensors file knows no ties."""
    names = {name for name, _ in chain(module.named_parameters(), module.named_buffers())}
    return {name: value.contiguous() for name, value in module.state_dict().items() if name in names}


def _restored(module: nn.Module, file: Path) -> nn.Module:
    """The module with the state of a file, in evaluation mode."""
    for name, value in load_file(file).items():
        owner, _, key = name.rpartition(".")
        if key in ("running_mean", "running_var"):  # which a layer that tracked none has not yet
            norm: Any = module.get_submodule(owner)
            norm.track_running_stats = True
            norm.register_buffer(key, torch.empty_like(value))
            norm.register_buffer("num_batches_tracked", torch.tensor(0))  # load_state_dict takes it for granted
    load_model(module, file)
    return module.eval()


def _described(classifier: AdaptedClassifier, folder: Path) -> dict[str, Any]:
    start = classifier.initialisation
    return {
        "classes": list(classifier.classes),
        "pictures": [len(images) for images in classifier.support.values()],
        "ways": len(classifier.support),
        "steps": classifier.steps,
        "head": classifier.head,
        "preparation": classifier.preparation.to_dict(),
        "model": start.recipe.model.kind,
        "source": start.source,
        "fingerprints": {name: sha256(folder / name) for name in _STATE},
        "fewstep": metadata.version("fewstep"),
        "recipe": recipe_values(start.recipe),
    }
