"""Which characters are classes of `fewstep.tasks.glyphs`, and in which split.

Scripts are divided between the splits by the table below. A shape that occurs several times is one class: the first.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, NamedTuple

import torch

from fewstep.tasks.glyph_drawing import Outline, Typeface, outline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

SPLITS = {
    "train": {
        "Latin": "0041-005A 0061-007A 00C0-02AF 1D00-1D2B 1E00-1EFF 2C60-2C7F A720-A7FF",
        "Digits": "0030-0039",
        "Greek": "0370-03FF 1F00-1FFF",
        "Cyrillic": "0400-052F A640-A69F",
        "Arabic": "0620-06FF 0750-077F FB50-FDFF FE80-FEFF",
        "Canadian_Aboriginal": "1400-167F 18B0-18FF",
        "Lisu": "A4D0-A4FF",
        "Letterlike": "2100-214F",
        "Mathematical_Script": "1D49C-1D4CF",
        "Mathematical_Fraktur": "1D504-1D537",
        "Mathematical_Double_Struck": "1D538-1D56B",
        "Currency": "20A0-20CF",
        "Operators": "2200-22FF 27C0-27EF 2980-29FF 2A00-2AFF",
        "Arrows": "2190-21FF 27F0-27FF 2900-297F 2B00-2BFF",
        "Technical": "2300-23FF",
        "Geometric_Shapes": "25A0-25FF",
        "Symbols": "2600-26FF",
        "Dingbats": "2700-27BF",
    },
    "val": {
        "Georgian": "10A0-10FF 2D00-2D2F",
        "Nko": "07C0-07FF",
    },
    "test": {
        "Armenian": "0530-058F FB13-FB17",
        "Hebrew": "0590-05FF FB1D-FB4F",
        "Lao": "0E80-0EFF",
        "Ogham": "1680-169F",
        "Old_Italic": "10300-1032F",
        "Tifinagh": "2D30-2D7F",
    },
}
"""The scripts of each split, with their ranges of code points. Left out is what differs by dots or counts alone, and
hardly so once it is small and bent: Braille, dominoes, playing cards, hexagrams, box drawing, faces."""

CATEGORIES = ("Lu", "Ll", "Lo", "Nd", "Sm", "So", "Sc")
"""Unicode's letters, digits and symbols, without modifiers, marks and punctuation: small parts of other characters."""
MARKS = 1
"""Most accents on a letter: two are blots at 28 pixels."""

DETAIL = 32
"""Height and width at which outlines are compared, in pixels."""
ASPECTS = 1.5
"""Characters whose widths over heights differ by this factor are different."""
ALIKE = 0.95
"""Cosine between shapes from which they are one class."""
ALIKE_ACROSS = 0.91
"""The same between splits, where either may be turned by 90, 180 or 270 degrees besides: `rotate` would do so."""


class Glyph(NamedTuple):
    """One character.

    Attributes:
        split: "train", "val" or "test".
        script: Of the table above.
        code_point: Unicode's number.
        typefaces: Those that have it, at least one.
    """

    split: str
    script: str
    code_point: int
    typefaces: tuple[Typeface, ...]

    @property
    def name(self) -> str:
        """Such as "Greek/U+03C8"."""
        return f"{self.script}/U+{self.code_point:04X}"


def choose_glyphs(typefaces: Sequence[Typeface]) -> list[Glyph]:
    """The classes, in the order of the table."""
    glyphs = list(_candidates(typefaces))
    outlines = [outline(glyph.typefaces[0].file, glyph.code_point, DETAIL) for glyph in glyphs]
    repeated = find_repeated(outlines, [glyph.split for glyph in glyphs])
    return [glyph for glyph, again in zip(glyphs, repeated.tolist(), strict=True) if not again]


def find_repeated(outlines: Sequence[Outline], splits: Sequence[str]) -> Tensor:
    """Which outlines are blank, or have been there before: in this split, or turned in any way in an earlier one.

    Args:
        outlines: Of all characters.
        splits: Of each; a split's characters stand together.

    Returns:
        bool `[characters]`.
    """
    shapes = torch.stack([each.shape for each in outlines])
    aspects = torch.tensor([each.aspect for each in outlines], dtype=torch.float64)
    repeated = shapes.flatten(1).amax(1) == 0
    for split in dict.fromkeys(splits):
        first, count = splits.index(split), splits.count(split)
        here = slice(first, first + count)
        own = shapes[here], aspects[here]
        again = (likeness(*own, *own).tril(-1) >= ALIKE).any(1)
        for quarters in range(4):
            turned = torch.rot90(shapes[:first], quarters, (-2, -1))
            turned_aspects = 1 / aspects[:first] if quarters % 2 else aspects[:first]
            again |= (likeness(*own, turned, turned_aspects) >= ALIKE_ACROSS).any(1)
        repeated[here] |= again
    return repeated


def likeness(shapes: Tensor, aspects: Tensor, other_shapes: Tensor, other_aspects: Tensor) -> Tensor:
    """Cosines between all pairs of shapes `[characters, others]`, and 0 where aspects are too different.

    From 16 grey levels: products are small whole numbers, which are exact, so the cosines are alike on every machine.
    """
    one, other = ((each.flatten(1) // 16).float() for each in (shapes, other_shapes))
    norms = one.double().square().sum(1).sqrt(), other.double().square().sum(1).sqrt()
    cosines = (one @ other.T).double() / (norms[0].unsqueeze(1) * norms[1]).clamp(min=1)
    ratios = aspects.unsqueeze(1) / other_aspects
    return cosines.where((ratios < ASPECTS) & (ratios > 1 / ASPECTS), 0)


def _candidates(typefaces: Sequence[Typeface]) -> Iterator[Glyph]:
    for split, scripts in SPLITS.items():
        for script, ranges in scripts.items():
            for code_point in _code_points(ranges):
                having = tuple(face for face in typefaces if code_point in face.characters)
                if having and _suits(chr(code_point)):
                    yield Glyph(split, script, code_point, having)


def _code_points(ranges: str) -> Iterator[int]:
    for part in ranges.split():
        first, last = part.split("-")
        yield from range(int(first, 16), int(last, 16) + 1)


def _suits(character: str) -> bool:
    marks = len(unicodedata.normalize("NFD", character)) - 1
    return unicodedata.category(character) in CATEGORIES and marks <= MARKS
