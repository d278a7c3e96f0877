"""Draw the doodles of the README's example: pictures of a kind that no recipe is trained on.

    python benchmarks/draw_doodles.py doodles

Writes doodles/support, with a folder for each of seven classes and one to three pictures in each, and doodles/new with
three pictures more of each class. Ink on paper, of different colours, sizes and formats, as cameras and scanners have
them. Every machine draws the same strokes: numpy has frozen the stream of `RandomState`.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SEED = 2017
SHOTS = {"cup": 1, "fish": 2, "flower": 3, "house": 1, "key": 2, "snail": 3, "umbrella": 1}
NEW = 3
"""Pictures of each class to tell apart."""
INKS, PAPERS = ("black", "navy", "darkgreen"), ("white", "ivory", "whitesmoke")


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> np.ndarray:
    """A stroke `[points, 2]` around a centre; angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 40))
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], 1)


def line(*points: tuple[float, float]) -> np.ndarray:
    """A stroke through points, with points of its own in between, so that it can wobble."""
    parts = [np.linspace(a, b, 12) for a, b in pairwise(points)]
    return np.concatenate(parts)


def spiral(x: float, y: float, radius: float, turns: float) -> np.ndarray:
    """A stroke from a centre outwards."""
    way = np.linspace(0, 1, 80)[:, None]
    angles = 2 * np.pi * turns * way
    return np.array([x, y]) + radius * way * np.concatenate([np.cos(angles), np.sin(angles)], 1)


STROKES = {
    "cup": [line((0.2, 0.3), (0.27, 0.8), (0.6, 0.8), (0.67, 0.3), (0.2, 0.3)), arc(0.68, 0.5, 0.17, 0.14, -75, 110)],
    "fish": [arc(0.42, 0.5, 0.32, 0.2, 0, 360), line((0.72, 0.5), (0.92, 0.3), (0.92, 0.7), (0.72, 0.5))],
    "flower": [
        line((0.5, 0.55), (0.5, 0.95)),
        arc(0.5, 0.4, 0.08, 0.08, 0, 360),
        *(arc(0.5 + 0.18 * np.cos(a), 0.4 + 0.18 * np.sin(a), 0.1, 0.1, 0, 360) for a in np.arange(5) * 1.257 - 1.57),
    ],
    "house": [
        line((0.22, 0.48), (0.22, 0.88), (0.78, 0.88), (0.78, 0.48)),
        line((0.12, 0.52), (0.5, 0.15), (0.88, 0.52)),
        line((0.43, 0.88), (0.43, 0.65), (0.57, 0.65), (0.57, 0.88)),
    ],
    "key": [
        arc(0.25, 0.5, 0.15, 0.15, 0, 360),
        line((0.4, 0.5), (0.92, 0.5)),
        line((0.9, 0.5), (0.9, 0.65)),
        line((0.78, 0.5), (0.78, 0.62)),
    ],
    "snail": [
        spiral(0.45, 0.5, 0.25, 2.3),
        line((0.1, 0.78), (0.85, 0.78), (0.92, 0.5)),
        line((0.82, 0.76), (0.8, 0.5)),
    ],
    "umbrella": [
        arc(0.5, 0.5, 0.38, 0.35, 180, 360),
        line((0.12, 0.5), (0.88, 0.5)),
        line((0.5, 0.5), (0.5, 0.82)),
        arc(0.43, 0.82, 0.07, 0.08, 0, 170),
    ],
}
"""Each class, on paper from (0, 0) at the upper left to (1, 1)."""


def doodle(name: str, random: np.random.RandomState) -> Image.Image:
    """One drawing by an unsteady hand."""
    width = random.randint(160, 320)
    height = width * random.uniform(0.85, 1.2)
    paper = Image.new("RGB", (int(width), int(height)), PAPERS[random.randint(len(PAPERS))])
    draw, ink = ImageDraw.Draw(paper), INKS[random.randint(len(INKS))]
    side = min(width, height)
    turn, size = np.radians(random.uniform(-14, 14)), random.uniform(0.85, 1.05, 2)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    pen = max(2, round(side * random.uniform(0.04, 0.055)))
    for stroke in STROKES[name]:
        points = (stroke - 0.5) * size + random.uniform(-0.012, 0.012, 2) + wobble(len(stroke), random)
        xy = (points @ turned.T) * side + np.array([width, height]) / 2
        draw.line([(float(x), float(y)) for x, y in xy], fill=ink, width=pen, joint="curve")
    return paper


def wobble(points: int, random: np.random.RandomState) -> np.ndarray:
    """Smooth displacements `[points, 2]`: three slow waves of random size and phase."""
    way = np.linspace(0, 2 * np.pi, points)[:, None]
    waves = [
        random.uniform(-1, 1, 2) * np.sin(way * frequency + random.uniform(0, 6.3, 2)) / frequency
        for frequency in (0.7, 1.3, 2.6)
    ]
    return 0.016 * np.sum(waves, axis=0)


def main(folder: Path) -> None:
    """Draw all of them."""
    random = np.random.RandomState(SEED)
    (folder / "new").mkdir(parents=True)
    for name, shots in SHOTS.items():
        (folder / "support" / name).mkdir(parents=True)
        for number in range(shots):
            doodle(name, random).save(folder / "support" / name / f"{number + 1}.{'png' if number else 'jpg'}")
        for number in range(NEW):
            doodle(name, random).save(folder / "new" / f"{name}-{number + 1}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
