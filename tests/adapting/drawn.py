"""Small pictures of shapes for tests: dark ink on light paper, drawn by hand as it were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = {
    "bar": [(50, 10), (50, 90)],
    "corner": [(20, 15), (20, 85), (85, 85)],
    "cross": [(10, 50), (90, 50), (50, 50), (50, 10), (50, 90)],
    "slash": [(15, 85), (85, 15)],
    "square": [(20, 20), (80, 20), (80, 80), (20, 80), (20, 20)],
    "zigzag": [(10, 20), (90, 20), (10, 80), (90, 80)],
}


def draw(name: str, file: Path, moved: int = 0, size: tuple[int, int] = (100, 100)) -> Path:
    """One picture of a shape, more slanted the further it is moved."""
    image = Image.new("L", (100, 100), 240)
    points = [(x + moved + moved * y // 40, y - moved) for x, y in SHAPES[name]]  # no two are alike
    ImageDraw.Draw(image).line(points, fill=20, width=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.resize(size).save(file)
    return file


def draw_support(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
    """A folder for each class, with so many pictures in it."""
    for name, count in counts.items():
        for number in range(first, first + count):
            draw(name, folder / name / f"{number}.png", moved=2 * number)
    return folder
