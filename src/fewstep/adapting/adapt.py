"""`fewstep adapt`: a run's initialisation, adapted to the user's own classes of pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from fewstep.adapting.classifier import AdaptedClassifier, check_prepared, is_adapted, load_adapted, tell_of_empty
from fewstep.adapting.fitting import fit_classifier, head_policy
from fewstep.adapting.initialisation import initialisation, preparation_of
from fewstep.core.types import Batch
from fewstep.errors import DataError, RecipeError, quoted
from fewstep.experiments.sections import GlyphsTasks, OmniglotTasks
from fewstep.tasks.images import read_pictures, without_drawing
from fewstep.tasks.picture_files import Picture, chosen_pictures, folders_without_pictures, list_classes, picture_name

if TYPE_CHECKING:
    from torch import nn

    from fewstep.learners.heads import HeadPolicy
    from fewstep.names import Checkpoint
    from fewstep.tasks.images import Preparation
    from fewstep.training.records import RunFolder

log = logging.getLogger(__name__)

Support: TypeAlias = str | Path | Mapping[str, str | Picture | Sequence[str | Picture] | Tensor]
"""A folder or zip archive with a folder for each class; or for each class its files (or the folder of them),
pictures in memory, or prepared pictures uint8."""


def adapt(
    run: str | Path | RunFolder | AdaptedClassifier,
    support: Support,
    *,
    steps: int | None = None,
    head: HeadPolicy | None = None,
    model: nn.Module | None = None,
    checkpoint: Checkpoint = "best",
    device: str = "cpu",
) -> AdaptedClassifier:
    """A classifier of the user's own classes, from a few pictures of each.

    Args:
        run: A run folder or the name of a ready initialisation, trained on pictures. Or an adapted classifier (its
            folder): its initialisation is adapted anew, with the pictures of then and now.
        support: Two classes or more, with any number of pictures each. A picture that comes twice counts once.
        steps: Gradient steps; by default what the recipe is evaluated with, or those of the classifier continued.
        head: Where the head begins. By default as trained, for as many classes; else as `fitting.DEFAULT_HEAD` says.
        model: The module that the run was trained with, if it was passed from Python.
        checkpoint: "best" by validation, or "final".
        device: Where to adapt; the classifier computes on the CPU.

    Returns:
        The classifier; `.predict(files)` uses it and `.save(folder)` keeps it. It judges each picture by itself
        (batch-normalisation policy `support`).

    Raises:
        FewstepError: The run was not trained on pictures, or there are too few classes or unreadable pictures.
    """
    if isinstance(run, str | Path) and is_adapted(run):
        run = load_adapted(run, model)
    before = run if isinstance(run, AdaptedClassifier) else None
    if isinstance(run, AdaptedClassifier):
        if checkpoint != "best":
            raise RecipeError(
                f"An adapted model has one initialisation: got checkpoint={checkpoint!r}. Leave it, or name the run."
            )
        start, preparation = run.initialisation, run.preparation
        steps, head = run.steps if steps is None else steps, head or _chosen_before(run)
    else:
        preparation = preparation_of(run)
        start = initialisation(run, model, checkpoint)
        if isinstance(start.recipe.tasks, OmniglotTasks | GlyphsTasks):  # careful scans, which a user's seldom are
            preparation = replace(preparation, clean=True)
    pictures = _merged(before.support if before else {}, _read(support, preparation))
    steps = start.recipe.evaluate.steps if steps is None else steps
    head = head_policy(start, len(pictures), head)
    adapted = fit_classifier(start, _batch(pictures), len(pictures), steps, head, device=device)
    folder = before.folder if before else None
    # Plain numbers, since JSON keeps no others.
    return AdaptedClassifier(adapted.as_module().cpu(), pictures, int(steps), head, start, preparation, folder)


def _chosen_before(before: AdaptedClassifier) -> HeadPolicy | None:
    """The policy that the user chose, if that is not what follows from the number of classes."""
    by_default = head_policy(before.initialisation, len(before.support))
    return None if before.head == by_default else before.head


def _batch(pictures: Mapping[str, Tensor]) -> Batch:
    """A support set: inputs in [0, 1] `[examples, channels, height, width]`, and labels in the order of the classes."""
    counts = torch.tensor([len(images) for images in pictures.values()])
    labels = torch.arange(len(pictures)).repeat_interleave(counts)
    return Batch(torch.cat(list(pictures.values())).float() / 255, labels)


def _read(support: Support, preparation: Preparation) -> dict[str, Tensor]:
    _check_form(support)
    if isinstance(support, str | Path):
        classes: Mapping[str, Sequence[Picture]] = list_classes(Path(support))
        if empty := folders_without_pictures(Path(support), classes):
            raise DataError(
                f"Every class folder in {support} must hold pictures: there are none in {', '.join(empty)}. Add some, "
                "or take the folder away."
            )
    else:
        classes = {name: chosen_pictures(each) for name, each in support.items() if not isinstance(each, Tensor)}
    files = list(chain.from_iterable(classes.values()))
    images = read_pictures(files, preparation)
    empty = without_drawing(images, preparation)
    owners = [name for name, each in classes.items() for _ in each]
    if blank := sorted({*owners} - {owner for place, owner in enumerate(owners) if place not in empty}):
        raise DataError(
            f"Every class must have a picture with something on it: in those of {quoted(blank)} nothing is to be seen, "
            "they are of one colour or too faint. Add some, or leave the class out."
        )
    tell_of_empty([picture_name(files[place], place) for place in empty])
    parts = images.split([len(each) for each in classes.values()])
    read = dict(zip(classes, parts, strict=True))
    if isinstance(support, Mapping):
        read |= {name: each for name, each in support.items() if isinstance(each, Tensor)}
    for images in read.values():
        check_prepared(images, preparation)
    return read


def _check_form(support: object) -> None:
    """See that support pictures are given in a way that is known.

    Raises:
        DataError: They are not.
    """
    strange = [name for name in support if not isinstance(name, str)] if isinstance(support, Mapping) else []
    if strange or not isinstance(support, str | Path | Mapping):
        came = f"the class {strange[0]!r}" if strange else f"a {type(support).__name__}"
        raise DataError(
            "Support pictures are given as a folder or zip archive (str or Path), or as a dict of the names of classes "
            f"(str) with the pictures of each: got {came}. Make it one of these."
        )


def _merged(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The pictures of both, in an order that depends on names and pixels alone.

    Raises:
        DataError: There are fewer than two classes, or one without pictures.
    """
    names = sorted({*one, *other})
    merged: dict[str, Tensor] = {}
    again = 0
    for name in names:
        images = torch.cat([each[name] for each in (one, other) if name in each])
        merged[name] = images.flatten(1).unique(dim=0).view(-1, *images.shape[1:])
        again += len(images) - len(merged[name])
    empty = [name for name, images in merged.items() if len(images) == 0]
    if len(merged) < 2 or empty:
        came = f"none in {', '.join(empty)}" if empty else f"{len(merged)} class ({', '.join(merged)})"
        raise DataError(
            f"--support must hold two classes or more, a folder of pictures for each: there is {came}. Add pictures "
            "of another class to tell it from."
        )
    _check_told_apart(merged)
    if again:
        log.info("Pictures that came before, or look the same to the model, count once: %d of them", again)
    return merged


def _check_told_apart(pictures: Mapping[str, Tensor]) -> None:
    """No classifier can tell classes apart by the same picture, two empty ones for instance.

    Raises:
        DataError: Two classes have one.
    """
    owners: dict[bytes, str] = {}
    for name, images in pictures.items():
        for image in images:
            other = owners.setdefault(image.numpy().tobytes(), name)
            if other != name:
                raise DataError(
                    f"Every support picture must belong to one class: {other} and {name} hold the same one, as the "
                    "model sees it (drawings are brought to one place, size and light; empty pages are all alike). "
                    "Replace one of them."
                )
