"""Drawings as cameras see them: uneven light and faint ink made even, and wide margins cut."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

WORKING_SIZE = 512
"""Pixels of the longer side while ink is looked for: strokes stay several pixels wide."""
FAINTEST = 24
"""Difference from the paper, of 255 levels, below which a picture has no ink but noise and stains."""
PAPER_BELOW, INK_ABOVE = 0.25, 0.75
"""Of the darkest ink: what is fainter is paper, what is darker is ink, and in between are the edges of strokes."""
USUAL_EXTENTS = (0.35, 0.9)
"""The longer side of a drawing over that of its picture, in 98 % of Omniglot's."""
ALWAYS = False
EXTENT = 0.65
"""The median of it, and what other drawings are brought to."""


def clean(image: Image.Image) -> Image.Image:
    """A drawing in dark ink on light paper, or in light on dark, as one scanned with care.

    Light is made even and ink as dark as can be. A drawing that is much smaller or larger in its picture than
    Omniglot's are is brought to their size, in the middle of a square.

    Args:
        image: Grey levels.

    Returns:
        Dark ink on white paper; a picture in which there is no ink, as it came.
    """
    small = image.copy()
    small.thumbnail((WORKING_SIZE, WORKING_SIZE), Image.Resampling.LANCZOS)
    ink = _ink(small)
    if ink is None:
        return image
    top, bottom = _range(ink.max(1) > 0.5)
    left, right = _range(ink.max(0) > 0.5)
    page = Image.fromarray((255 * (1 - ink)).round().astype(np.uint8))
    longer = max(bottom - top, right - left)
    low, high = USUAL_EXTENTS
    if low <= longer / max(page.size) <= high:
        if not ALWAYS:
            return page
        side = max(page.size)
    else:
        side = round(longer / EXTENT)
    square = Image.new("L", (side, side), 255)
    drawing = page.crop((left, top, right, bottom))
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return square


def _ink(image: Image.Image) -> np.ndarray | None:
    """How much each pixel is ink, in [0, 1]; None where none is."""
    levels = np.asarray(image, dtype=np.float32)
    if np.median(levels) < 127.5 and _border_mean(levels) < 127.5:
        levels = 255 - levels
    paper = _paper(Image.fromarray(levels.astype(np.uint8)))
    darker = np.clip(1 - levels / np.maximum(paper, 1), 0, 1)
    blurred = Image.fromarray((255 * darker).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(1)
    )  # lone pixels are noise
    darkest = np.asarray(blurred).max() / 255
    if darkest * 255 < FAINTEST:
        return None
    return np.clip((darker / darkest - PAPER_BELOW) / (INK_ABOVE - PAPER_BELOW), 0, 1)


def _paper(image: Image.Image) -> np.ndarray:
    """The level of the paper at every pixel, under the ink too: the lightest nearby, smoothed."""
    coarse = image.copy()
    coarse.thumbnail((64, 64), Image.Resampling.BOX)
    lightest = coarse.filter(ImageFilter.MaxFilter(11)).filter(ImageFilter.GaussianBlur(5))
    return np.asarray(lightest.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32)


def _border_mean(levels: np.ndarray) -> float:
    return float(np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]]).mean())


def _range(seen: np.ndarray) -> tuple[int, int]:
    places = np.flatnonzero(seen)
    return int(places[0]), int(places[-1]) + 1
