"""Glyphs: thousands of characters, drawn from the fonts that matplotlib brings. Nothing to download.

A class is the shape of one character, in 20 drawings that differ by typeface, pen, and by how they are turned,
sheared, stretched, moved and bent. The scripts of meta-train, meta-validation and meta-test are different ones
(`fewstep.tasks.glyph_choice`), and no shape that two of them share (Latin A, Greek Alpha) is on both sides.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import PIL
import torch
from PIL import features

from fewstep.errors import DataError
from fewstep.tasks.glyph_choice import SPLITS, choose_glyphs
from fewstep.tasks.glyph_drawing import draw_examples, open_typeface
from fewstep.tasks.prepared import PreparedImages, cached

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.names import Split


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


def load_glyphs(cache: Path | None = None) -> PreparedImages:
    """All characters, drawn the first time and kept in one cached file.

    They follow from the fonts and from a fixed seed: the same on every machine that has the same versions of
    matplotlib and Pillow. Other versions may draw a little differently; the content hash, which runs store, tells.

    Args:
        cache: Where the drawings are kept. None takes FEWSTEP_CACHE, or else the user's cache folder.

    Returns:
        uint8 `[images, 1, height, width]`, ink 255 on paper 0, 20 of each class; classes are called after script and
        code point, such as "Greek/U+03C8", in the order of `glyph_choice.SPLITS`.

    Raises:
        DataError: The fonts are missing or unreadable.
    """
    folder = font_folder()

    def draw() -> tuple[Tensor, dict[str, int]]:
        log.info("Drawing the glyphs, once")
        chosen = choose_glyphs([open_typeface(folder / name) for name in TYPEFACES])
        drawn = [draw_examples(each.typefaces, each.code_point, EXAMPLES, SEED) for each in chosen]
        return torch.cat(drawn), dict.fromkeys([each.name for each in chosen], EXAMPLES)

    return cached("Glyphs", _key(folder), draw, cache)


def split_names(glyphs: PreparedImages) -> dict[Split, list[str]]:
    """The classes of "train", "val" and "test": the characters of their scripts."""
    return {
        split: [name for name in glyphs.classes if name.partition("/")[0] in SPLITS[split]]
        for split in ("train", "val", "test")
    }


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


def _key(folder: Path) -> str:
    """Names the cached file: whatever the drawings depend on changes it."""
    versions = [PIL.__version__, str(features.version("freetype2")), unicodedata.unidata_version]
    digest = hashlib.sha256("\n".join([PREPARATION, repr(SPLITS), *versions]).encode())
    for name in TYPEFACES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
