"""Draw `docs/figures/glyphs.png`: some characters of each split, with some drawings of each.

    python benchmarks/make_glyphs_figure.py [--output FILE]

Characters are spread evenly over each split's list, so that no eye chooses them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from fewstep.tasks.glyphs import EXAMPLES, font_folder, load_glyphs, split_names

if TYPE_CHECKING:
    from fewstep.tasks.prepared import PreparedImages

OUTPUT = Path(__file__).parents[1] / "docs" / "figures" / "glyphs.png"
SPLITS = {"train": "meta-train", "val": "meta-validation", "test": "meta-test"}
ROWS, DRAWINGS = 12, 10
ZOOM, GAP, TITLE = 2, 16, 26
"""In pixels, but for the first."""


def panel(images: Tensor) -> Image.Image:
    """Dark ink on light paper: a row for each character."""
    chosen = images[torch.linspace(0, len(images) - 1, ROWS).round().long(), :DRAWINGS, 0]
    framed = functional.pad(255 - chosen, (0, 1, 0, 1), value=225)
    rows, drawings, height, width = framed.shape
    pixels = framed.transpose(1, 2).reshape(rows * height, drawings * width)
    sheet = Image.fromarray(pixels.numpy())
    return sheet.resize((sheet.width * ZOOM, sheet.height * ZOOM), Image.Resampling.NEAREST)


def figure(glyphs: PreparedImages) -> Image.Image:
    images = {split: glyphs.only(names)[0].unflatten(0, (-1, EXAMPLES)) for split, names in split_names(glyphs).items()}
    panels = {split: panel(images[split]) for split in images}
    width, height = panels["train"].size
    paper = Image.new("L", (len(panels) * (width + GAP) - GAP, height + TITLE), 255)
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 16)
    for column, (split, sheet) in enumerate(panels.items()):
        title = f"{SPLITS[split]}: {len(images[split]):,} characters"
        ImageDraw.Draw(paper).text((column * (width + GAP), 2), title, fill=40, font=font)
        paper.paste(sheet, (column * (width + GAP), TITLE))
    return paper.quantize(16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    figure(load_glyphs()).save(output, optimize=True)
    print(f"{output}: {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
