"""Image data sets, prepared once and kept: one cached file for each, written whole and checked when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fewstep.errors import DataError, RunError
from fewstep.files import replaced
from fewstep.tasks.archives import expanded
from fewstep.tasks.images import Preparation, read_pictures, read_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from fewstep.tasks.archives import Member

log = logging.getLogger(__name__)

_VERSION = 2
"""Of what `images` does to a picture. A change here makes every cached file stale."""


class PreparedImages(NamedTuple):
    """Images of named classes.

    Attributes:
        images: uint8 `[images, channels, height, width]`, class after class.
        classes: The number of images of each class, by name, in that order.
        content_hash: SHA-256 of names, numbers and pixels, in hexadecimal.
    """

    images: Tensor
    classes: dict[str, int]
    content_hash: str

    def only(self, names: Iterable[str]) -> tuple[Tensor, dict[str, int]]:
        """The images of some classes, class after class, and their numbers; a view where they stand together."""
        ends = dict(zip(self.classes, accumulate(self.classes.values()), strict=True))
        chosen = {name: self.classes[name] for name in names}
        ranges = [(ends[name] - count, ends[name]) for name, count in chosen.items()]
        if all(one[1] == other[0] for one, other in pairwise(ranges)):
            return self.images[ranges[0][0] : ranges[-1][1]], chosen
        return torch.cat([self.images[start:end] for start, end in ranges]), chosen


def prepare(
    what: str,
    classes: Mapping[str, Sequence[Member]],
    preparation: Preparation,
    cache: Path | None = None,
    advice: str = "Replace these files or take them away.",
    *,
    drop_unreadable: bool = False,
) -> PreparedImages:
    """The pictures of all classes, from the cached file of an earlier time where there is one.

    Args:
        what: The data set's name, in messages and in the name of the cached file.
        classes: For each class its pictures, in the order of the result.
        preparation: What to do to a picture.
        cache: Folder of cached files. None takes FEWSTEP_CACHE, or else the user's cache folder.
        advice: What to do about unreadable pictures.
        drop_unreadable: Whether they are left out, and classes that have no others.

    Raises:
        DataError: Lists the pictures that cannot be read.
    """

    def images() -> tuple[Tensor, dict[str, int]]:
        members = [member for pictures in classes.values() for member in pictures]
        log.info("Preparing the %d pictures of %s, once", len(members), what)
        if not drop_unreadable:
            return read_pictures(members, preparation, advice), {name: len(each) for name, each in classes.items()}
        readable, which = read_readable(members, preparation)
        owners = [name for name, each in classes.items() for _ in each]
        return readable, dict(Counter(owner for owner, kept in zip(owners, which, strict=True) if kept))

    key = _key(classes, preparation)
    found = cached(what, f"{key}-readable" if drop_unreadable else key, images, cache)
    if dropped := sum(map(len, classes.values())) - len(found.images):
        log.warning("%s: %d pictures cannot be read, and are left out", what, dropped)
    return found


def cached(
    what: str, key: str, make: Callable[[], tuple[Tensor, dict[str, int]]], cache: Path | None = None
) -> PreparedImages:
    """Images from the cached file of an earlier time, or else made and cached.

    Args:
        what: As for `prepare`.
        key: Differs wherever the images may.
        make: The images and the numbers of each class, as `PreparedImages` holds them.
        cache: As for `prepare`.
    """
    readable = re.sub(r"\W+", "-", what.lower())[:40]
    file = cache_folder(cache) / f"{readable}-{key}.safetensors"
    prepared = _read_cache(what, file)
    if prepared is None:
        images, counts = make()
        prepared = PreparedImages(images, counts, content_hash(images, counts))
        _write_cache(what, file, prepared)
    return prepared


def content_hash(images: Tensor, classes: Mapping[str, int]) -> str:
    """SHA-256 of the names, of the numbers where they differ, and of every pixel, in hexadecimal."""
    equal = len(set(classes.values())) == 1  # then the number of pixels tells it
    lines = classes if equal else [f"{name} {count}" for name, count in classes.items()]
    digest = hashlib.sha256("\n".join(lines).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def data_folder(data: Path | None, needs: str) -> Path:
    """The folder given, or that of FEWSTEP_DATA.

    Args:
        data: The folder, if one was given.
        needs: A sentence on what to put there.

    Raises:
        DataError: There is neither, or it is no path.
    """
    folder = data or os.environ.get("FEWSTEP_DATA")
    if not folder:
        raise DataError(f"A data folder is needed: none was given. Give it, or set FEWSTEP_DATA to it. {needs}")
    return expanded(folder, "The data folder")


def cache_folder(cache: Path | None = None) -> Path:
    """The folder given, or that of FEWSTEP_CACHE, or the user's cache folder of this platform.

    Raises:
        DataError: It is no path.
    """
    folder = cache or os.environ.get("FEWSTEP_CACHE") or platformdirs.user_cache_dir("fewstep")
    return expanded(folder, "The cache folder (FEWSTEP_CACHE)")


def _key(classes: Mapping[str, Sequence[Member]], preparation: Preparation) -> str:
    """Names the cached file: another source or another preparation has another name."""
    digest = hashlib.sha256(f"{_VERSION} {preparation}".encode())
    for name, members in classes.items():
        digest.update(f"\n{name}".encode())
        for member in members:
            line = f"\n{member.place.name}/{member.name} {member.stamp}"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _read_cache(what: str, file: Path) -> PreparedImages | None:
    """What was cached; None where there is nothing, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            images, metadata = stored.get_tensor("images").clone(), stored.metadata()
        prepared = PreparedImages(images, json.loads(metadata["classes"]), metadata["content_hash"])
        if content_hash(images, prepared.classes) != prepared.content_hash:
            raise ValueError("its content hash differs")
    except FileNotFoundError:
        return None
    except (KeyError, OSError, SafetensorError, TypeError, ValueError) as error:
        log.warning("%s is prepared again: the cached file %s cannot be used (%s)", what, file, error)
        return None
    return prepared


def _write_cache(what: str, file: Path, prepared: PreparedImages) -> None:
    metadata = {"classes": json.dumps(prepared.classes), "content_hash": prepared.content_hash}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as unfinished:
            save_file({"images": prepared.images}, unfinished, metadata)
            unfinished.chmod(file.parent.stat().st_mode & 0o666)  # who may see the folder may use it
    except (OSError, RunError, SafetensorError) as error:
        log.warning("%s will be prepared again next time: it could not be cached (%s)", what, error.__cause__ or error)
