"""Drawings as cameras see them, made like careful scans: even light, dark ink, narrow margins."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

_WORKING_SIZE = 512
"""Pixels of the longer side while ink is looked for: strokes stay several pixels wide."""
_FAINTEST = 0.1
"""Share of the paper's light below which there is no ink, but noise and stains."""
_PAPER_BELOW, _INK_ABOVE = 0.25, 0.75
"""Of the darkest ink: what is fainter is paper, what is darker is ink, and in between are the edges of strokes."""
_STROKE = 0.045
"""The least width of a stroke over the longer side of the drawing, about Omniglot's: thinner ones would be lost where
the picture is made small."""
_EXTENT = 0.65
"""The longer side of a drawing over that of its picture: the median of Omniglot's."""


def clean(image: Image.Image) -> Image.Image:
    """A drawing of any size, on paper in any light, as one scanned with care.

    Args:
        image: Grey levels; dark ink on light paper, or light on dark.

    Returns:
        Black ink on white paper, in the middle of a square of 1 / 0.65 times its size; a picture in which there is no
        ink, as it came.
    """
    small = image.copy()
    small.thumbnail((_WORKING_SIZE, _WORKING_SIZE), Image.Resampling.LANCZOS)
    ink = _ink(small)
    if ink is None:
        return image
    (top, bottom), (left, right) = (_range(ink.max(axis) > 0.5) for axis in (1, 0))
    extent = max(bottom - top, right - left)
    side = round(extent / _EXTENT)
    square = Image.new("L", (side, side), 255)
    drawing = Image.fromarray((255 * (1 - ink)).round().astype(np.uint8)).crop((left, top, right, bottom))
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return _with_wide_strokes(square, _STROKE * extent)


def _with_wide_strokes(page: Image.Image, width: float) -> Image.Image:
    """Strokes widened to so many pixels, where they are thinner."""
    ink = np.asarray(page) < 128
    core = np.asarray(page.filter(ImageFilter.MaxFilter(3))) < 128
    rim = max(int(ink.sum() - core.sum()), 1)  # a pixel wide, on both sides of a stroke
    missing = width - 2 * ink.sum() / rim
    return page.filter(ImageFilter.MinFilter(2 * round(missing / 2) + 1)) if missing >= 1 else page


def _ink(image: Image.Image) -> np.ndarray | None:
    """How much each pixel is ink, in [0, 1]; None where none is."""
    levels = np.asarray(image)
    if _is_light_on_dark(levels):
        levels = 255 - levels
    darker = np.clip(1 - levels / np.maximum(_paper(Image.fromarray(levels)), 1), 0, 1)
    # A lone dark pixel is noise: blurred, it is fainter than any stroke.
    blurred = Image.fromarray((255 * darker).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    darkest = np.asarray(blurred).max() / 255
    if darkest < _FAINTEST:
        return None
    ink = np.clip((darker / darkest - _PAPER_BELOW) / (_INK_ABOVE - _PAPER_BELOW), 0, 1)
    return ink if ink.max() > 0.5 else None


def _is_light_on_dark(levels: np.ndarray) -> bool:
    """Whether what differs most from the paper, whatever its own level, is lighter than it."""
    rows, columns = np.indices(levels.shape)
    places = np.stack([np.ones_like(rows), rows, columns], axis=-1)
    plane = np.linalg.lstsq(border(places), border(levels), rcond=None)[0]  # paper that is lit from one side
    differences = levels - places @ plane
    differences -= np.median(border(differences))
    below, above = np.abs(np.percentile(differences, (0.2, 99.8)))  # lone pixels are noise
    if max(below, above) > 1.5 * min(below, above):
        return bool(above > below)
    return bool(border(levels).mean() < 127.5 and np.median(levels) < 127.5)  # noise alone


def _paper(image: Image.Image) -> np.ndarray:
    """The level of the paper at every pixel, under the ink too: the lightest nearby, smoothed."""
    coarse = image.copy()
    coarse.thumbnail((64, 64), Image.Resampling.BOX)
    lightest = coarse.filter(ImageFilter.MaxFilter(11)).filter(ImageFilter.GaussianBlur(5))
    return np.asarray(lightest.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32)


def border(levels: np.ndarray) -> np.ndarray:
    """The outermost pixels of `[height, width, ...]`, which are the paper's in a drawing."""
    return np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])


def _range(seen: np.ndarray) -> tuple[int, int]:
    places = np.flatnonzero(seen)
    return int(places[0]), int(places[-1]) + 1
