"""Characters drawn from font files as if by many hands: other typefaces, other pens, bent and tilted."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageStat

from fewstep.core.rng import generator
from fewstep.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

SIZE = 28
"""Height and width of an example, in pixels."""
EM = 64
"""Size at which characters are drawn before they are deformed, in pixels."""
OUTLINE_EM = 128
"""The same for outlines: larger, for where pixels fall must not matter even for a small character."""
MARGIN = 3
"""Paper around a drawing, in pixels of `EM`."""

PENS = (-2, -1, 0, 1)
"""What is added to both sides of strokes, in pixels of `EM`, where they are about 6 wide."""
LASTING = 0.97
"""Share of the ink whose strokes a thinner pen must not lose."""
TURN = 0.3
"""Largest rotation, in radians."""
SHEAR = 0.25
"""Largest shift to one side, as a share of the height."""
EXTENT = (15.0, 21.0)
"""Least and greatest length of the longer side, in pixels of `SIZE`."""
STRETCH = 0.15
"""Largest change of either side, as a share of it."""
SHIFT = 2.0
"""Largest translation in each direction, in pixels of `SIZE`."""
BEND = 1.5
"""Largest displacement of each of nine points of the paper in each direction, in pixels of `SIZE`."""

_DETAIL = 2  # examples are deformed at twice their size, then averaged: no stroke falls between two pixels


class Typeface(NamedTuple):
    """A font file.

    Attributes:
        file: Where it is.
        characters: The code points that it has.
    """

    file: Path
    characters: frozenset[int]


class Outline(NamedTuple):
    """A character, to be compared with others.

    Attributes:
        shape: uint8 `[height, width]`, the ink stretched to a square.
        aspect: Width over height that the ink had.
    """

    shape: Tensor
    aspect: float


def open_typeface(file: Path) -> Typeface:
    """Read which characters a font file has.

    Raises:
        DataError: It is not there, or is no font.
    """
    # Imported here, for it takes a while and is not needed once the drawings are cached.
    from fontTools.ttLib import TTFont

    try:
        with file.open("rb") as stream, TTFont(stream, lazy=True) as font:
            return Typeface(file, frozenset(font.getBestCmap() or ()))
    except Exception as error:  # broken files raise errors of many kinds
        raise DataError(
            f"Glyphs are drawn from the fonts of matplotlib: {file} is expected, and cannot be read ({error}). "
            "Install matplotlib again."
        ) from None


@lru_cache(maxsize=128)
def draw(file: Path, code_point: int, pen: int = 0, em: int = EM) -> Image.Image:
    """A character in grey levels, ink 255 on paper 0, cut to its ink and a margin.

    Args:
        file: The font.
        code_point: The character.
        pen: What is added to its strokes on both sides, in pixels; negative is thinner, as far as all of them last.
        em: Size of the font, in pixels.
    """
    character, font, stroke = chr(code_point), _font(file, em), max(pen, 0)
    left, top, right, bottom = map(int, font.getbbox(character, stroke_width=stroke))
    if right <= left or bottom <= top:
        return Image.new("L", (2 * MARGIN, 2 * MARGIN))
    paper = Image.new("L", (right - left + 2 * MARGIN, bottom - top + 2 * MARGIN))
    start = (MARGIN - left, MARGIN - top)
    ImageDraw.Draw(paper).text(start, character, fill=255, font=font, stroke_width=stroke)
    if pen < 0:
        paper = _thinned(paper, -pen)
    left, top, right, bottom = paper.getbbox() or (MARGIN, MARGIN, MARGIN, MARGIN)
    return paper.crop((left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN))


def outline(file: Path, code_point: int, size: int) -> Outline:
    """A character's shape without its place, width and height; slightly blurred, as strokes are not equally wide."""
    drawing = draw(file, code_point, em=OUTLINE_EM)
    ink = drawing.crop((MARGIN, MARGIN, drawing.width - MARGIN, drawing.height - MARGIN))
    paper = Image.new("L", (size, size))
    if not (ink.width and ink.height):
        return Outline(_tensor(paper), 1.0)
    side, border = size * 3 // 4, size // 8
    paper.paste(ink.resize((side, side), Image.Resampling.BOX), (border, border))
    return Outline(_tensor(paper.filter(ImageFilter.GaussianBlur(size / 40))), ink.width / ink.height)


def draw_examples(typefaces: Sequence[Typeface], code_point: int, count: int, seed: int) -> Tensor:
    """Different drawings of one character, which depend on it, the fonts and the seed alone.

    Args:
        typefaces: Those that have the character.
        code_point: The character.
        count: How many.
        seed: Another one gives other drawings.

    Returns:
        uint8 `[count, 1, height, width]`, ink 255 on paper 0.
    """
    # Uniform numbers only: they are the same bits on every machine.
    numbers = torch.rand(count, 27, generator=generator(seed, "glyphs", code_point), dtype=torch.float64)
    return torch.stack([_example(typefaces, code_point, row) for row in numbers.tolist()]).unsqueeze(1)


def _example(typefaces: Sequence[Typeface], code_point: int, numbers: Sequence[float]) -> Tensor:
    face = typefaces[int(numbers[0] * len(typefaces))]
    drawing = draw(face.file, code_point, PENS[int(numbers[1] * len(PENS))])
    mesh = _mesh(drawing.size, [2 * number - 1 for number in numbers[2:]])
    side = SIZE * _DETAIL
    bent = drawing.transform((side, side), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    return _tensor(bent.reduce(_DETAIL))


def _mesh(size: tuple[int, int], numbers: Sequence[float]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Which part of a drawing comes where: for each quarter of the example, the drawing's four corners of it.

    The example's nine points (corners, middles of sides, centre) are displaced, then turned, sheared and scaled.

    Args:
        size: Width and height of the drawing.
        numbers: 25 of them, in [-1, 1].
    """
    angle, shear, extent, across, down, shift = (*numbers[:5], numbers[23:])
    longest = max(size) - 2 * MARGIN
    scale = longest / ((EXTENT[0] + EXTENT[1]) / 2 + extent * (EXTENT[1] - EXTENT[0]) / 2)
    cos, sin = math.cos(TURN * angle) * scale, math.sin(TURN * angle) * scale
    wide, high = 1 + STRETCH * across, 1 + STRETCH * down
    bends = [BEND * number for number in numbers[5:23]]

    def source(column: int, row: int) -> tuple[float, float]:
        point = 2 * (3 * row + column)
        x = (column - 1) * SIZE / 2 + bends[point] + SHIFT * shift[0]
        y = (row - 1) * SIZE / 2 + bends[point + 1] + SHIFT * shift[1]
        x += SHEAR * shear * y
        return size[0] / 2 + (cos * x - sin * y) * wide, size[1] / 2 + (sin * x + cos * y) * high

    half = SIZE * _DETAIL // 2
    return [
        (
            (half * column, half * row, half * (column + 1), half * (row + 1)),
            (
                *source(column, row),
                *source(column, row + 1),
                *source(column + 1, row + 1),
                *source(column + 1, row),
            ),
        )
        for row in (0, 1)
        for column in (0, 1)
    ]


def _thinned(drawing: Image.Image, pixels: int) -> Image.Image:
    """Without this many pixels on both sides of strokes, or fewer: what is gone cannot be thickened again."""
    for fewer in range(pixels, 0, -1):
        width = 2 * fewer + 1
        thin = drawing.filter(ImageFilter.MinFilter(width))
        if _ink(thin.filter(ImageFilter.MaxFilter(width))) >= LASTING * _ink(drawing):
            return thin
    return drawing


def _ink(drawing: Image.Image) -> float:
    return ImageStat.Stat(drawing).sum[0]


@lru_cache
def _font(file: Path, em: int) -> ImageFont.FreeTypeFont:
    """The basic layout draws alike wherever Pillow is; the other one needs a library that is not everywhere."""
    return ImageFont.truetype(file, em, layout_engine=ImageFont.Layout.BASIC)


def _tensor(image: Image.Image) -> Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width)
