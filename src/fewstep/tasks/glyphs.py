"""Glyphs: thousands of characters, drawn from the fonts that matplotlib brings. Nothing to download.

A class is the shape of one character, in 20 drawings that differ by typeface, pen, and by how they are turned,
sheared, stretched, moved and bent. The scripts of meta-train, meta-validation and meta-test are different ones
(`fewstep.tasks.glyph_choice`), and no shape that two of them share (Latin A, Greek Alpha) is on both sides.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import PIL
import torch
from PIL import features
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fewstep.errors import DataError
from fewstep.tasks.glyph_choice import SPLITS, choose_glyphs
from fewstep.tasks.glyph_drawing import draw_examples, open_typeface
from fewstep.tasks.omniglot import cache_folder, content_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fewstep.tasks.glyph_choice import Glyph

log = logging.getLogger(__name__)

EXAMPLES = 20
"""Of each character, as in Omniglot."""
SEED = 0
"""Of the drawings."""
PREPARATION = "1"
"""How characters are chosen and drawn. To be raised with every change of that: it makes cached files stale."""
TYPEFACES = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf")
"""Upright ones: italics have other shapes for some letters. Characters are compared as the first of these that has
them draws them."""


class GlyphImages(NamedTuple):
    """All glyphs.

    Attributes:
        images: uint8 `[characters, examples, 1, height, width]`: `[thousands, 20, 1, 28, 28]`, ink 255 on paper 0.
        characters: Their names, such as "Greek/U+03C8", in the order of `glyph_choice.SPLITS`.
        content_hash: SHA-256 of names and pixels, in hexadecimal.
    """

    images: Tensor
    characters: tuple[str, ...]
    content_hash: str


def load_glyphs(cache: Path | None = None) -> GlyphImages:
    """All characters, drawn the first time and kept in one cached file.

    They follow from the fonts and from a fixed seed: the same on every machine that has the same versions of
    matplotlib and Pillow. Other versions may draw a little differently; the content hash, which runs store, tells.

    Args:
        cache: Where the drawings are kept. None takes FEWSTEP_CACHE, or else the user's cache folder.

    Raises:
        DataError: The fonts are missing or unreadable.
    """
    folder = font_folder()
    file = cache_folder(cache) / f"glyphs-{_key(folder)}.safetensors"
    glyphs = _read_cache(file)
    if glyphs is None:
        log.info("Drawing the glyphs, once")
        glyphs = prepare(choose_glyphs([open_typeface(folder / name) for name in TYPEFACES]))
        _write_cache(file, glyphs)
    return glyphs


def glyphs_split(glyphs: GlyphImages, split: Literal["train", "val", "test"]) -> Tensor:
    """The characters of one split: those of its scripts.

    Args:
        glyphs: All characters.
        split: Which.

    Returns:
        Images uint8 `[characters, examples, 1, height, width]`.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be train, val or test: got {split!r}. Choose one of these.")
    scripts = SPLITS[split]
    return glyphs.images[torch.tensor([name.partition("/")[0] in scripts for name in glyphs.characters])]


def font_folder() -> Path:
    """Where matplotlib keeps its fonts, found without importing it.

    Raises:
        DataError: There is no matplotlib, or it comes without them.
    """
    spec = find_spec("matplotlib")
    places = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(places or ["matplotlib"]))) / "mpl-data" / "fonts" / "ttf"
    missing = [name for name in TYPEFACES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"Glyphs are drawn from the fonts of matplotlib, {', '.join(TYPEFACES)} in {folder}: "
            f"no {' and no '.join(missing)} there. Install matplotlib again, from its wheel."
        )
    return folder


def prepare(glyphs: Sequence[Glyph]) -> GlyphImages:
    """Draw the examples of each character."""
    images = torch.stack([draw_examples(each.typefaces, each.code_point, EXAMPLES, SEED) for each in glyphs])
    names = tuple(each.name for each in glyphs)
    return GlyphImages(images, names, content_hash(images, names))


def _key(folder: Path) -> str:
    """Names the cached file: whatever the drawings depend on changes it."""
    versions = [PIL.__version__, str(features.version("freetype2")), unicodedata.unidata_version]
    digest = hashlib.sha256("\n".join([PREPARATION, repr(SPLITS), *versions]).encode())
    for name in TYPEFACES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _read_cache(file: Path) -> GlyphImages | None:
    """What was cached; None where there is nothing, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as stored:
            images, metadata = stored.get_tensor("images").clone(), stored.metadata()
        glyphs = GlyphImages(images, tuple(metadata["characters"].split("\n")), metadata["content_hash"])
        if content_hash(glyphs.images, glyphs.characters) != glyphs.content_hash:
            raise ValueError("its content hash differs")
    except FileNotFoundError:
        return None
    except (KeyError, OSError, SafetensorError, TypeError, ValueError) as error:
        log.warning("Glyphs are drawn again: the cached file %s cannot be used (%s)", file, error)
        return None
    return glyphs


def _write_cache(file: Path, glyphs: GlyphImages) -> None:
    """Write all of the file or nothing: it appears under its name only when complete."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    metadata = {"characters": "\n".join(glyphs.characters), "content_hash": glyphs.content_hash}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(save({"images": glyphs.images}, metadata))
        unfinished.replace(file)
    except OSError as error:
        log.warning("Glyphs will be drawn again next time: they could not be cached (%s)", error)
        with suppress(OSError):
            unfinished.unlink()
