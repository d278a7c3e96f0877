"""Drawings as users have them, told apart with and without cleaning (`tasks.ink`). From the root of the checkout:

    python -m benchmarks.photographs --data DIR

Omniglot's meta-validation drawings: as they are; in faint ink on grey paper, lit from one side; small on a large page;
both; and with a pen about half as wide. The ready initialisation omniglot-5way-1shot is adapted to 5 classes as
`fewstep adapt` does it, from one picture of each, and judges three more of each, one by one. Prints a Markdown table
of accuracies in percent, with 95 % confidence intervals; the same tasks in every cell.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from fewstep.adapting.fitting import fit_classifier
from fewstep.adapting.initialisation import initialisation
from fewstep.core.rng import generator
from fewstep.core.trees import index
from fewstep.tasks.archives import Reader
from fewstep.tasks.few_shot import FewShot
from fewstep.tasks.images import Preparation, read_pictures
from fewstep.tasks.omniglot import find_parts, list_drawings, split_names
from fewstep.training.evaluation import mean_and_ci95

RUN = "omniglot-5way-1shot"
WAYS, SHOTS, QUERIES, STEPS, DRAWINGS = 5, 1, 3, 3, 8
PREPARATION = Preparation(28, channels=1, invert="auto")
KINDS = {
    "as they are": (),
    "faint": ("faint",),
    "small": ("small",),
    "faint and small": ("faint", "small"),
    "thin pen": ("thin",),
}


def drawings(data: Path | None) -> list[list[bytes]]:
    """Files of some drawings of each meta-validation character."""
    wanted: dict[str, list[bytes]] = {name: [] for name in sorted(split_names()["val"])}
    with Reader() as reader:
        for part in find_parts(data or Path()):
            for drawing in list_drawings(part):
                files = wanted.get(drawing.character)
                if files is not None and len(files) < DRAWINGS:
                    files.append(reader.read(drawing.member))
    return list(wanted.values())


def photograph(raw: bytes, random: np.random.RandomState, kind: tuple[str, ...]) -> bytes:
    """A drawing on a page, as a JPEG."""
    faint, small = "faint" in kind, "small" in kind
    drawing = Image.open(io.BytesIO(raw)).convert("L")
    side = int(105 * random.uniform(0.6, 1.2))
    if "thin" in kind:  # 12 pixels of pen become 6
        side *= 4
        drawing = drawing.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.MaxFilter(7))
    width, height = random.randint(250, 500, 2) if small else (side + 10, side + 10)
    page = Image.new("L", (int(width), int(height)), 255)
    corner = (random.randint(width - side), random.randint(height - side))
    page.paste(drawing.resize((side, side), Image.Resampling.LANCZOS), corner)
    levels = np.asarray(page, dtype=np.float64) / 255
    if faint:
        slopes = random.uniform(-40, 40, 2)
        light = random.uniform(150, 235) + slopes[0] * np.linspace(-0.5, 0.5, width)
        light = light + slopes[1] * np.linspace(-0.5, 0.5, height)[:, None]
        ink = random.uniform(0.2, 0.5)
        levels = light / 255 * (levels + (1 - levels) * ink) + random.normal(0, 4 / 255, levels.shape)
    file = io.BytesIO()
    Image.fromarray((255 * levels).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def accuracy(classes: list[list[bytes]], preparation: Preparation, tasks: int) -> str:
    """Mean and interval over tasks of the share of queries told right."""
    start = initialisation(RUN)
    images = torch.stack(
        [read_pictures([Image.open(io.BytesIO(raw)) for raw in files], preparation) for files in classes]
    )
    drawn = FewShot(images, WAYS, SHOTS, QUERIES).sample(tasks, generator(0, "photographs"))
    scores: list[torch.Tensor] = []
    for task in (index(drawn, number) for number in range(tasks)):
        adapted = fit_classifier(start, task.support, WAYS, STEPS, "trained")
        scores.append((adapted(task.query.inputs).argmax(1) == task.query.targets).float().mean())
    mean, ci = mean_and_ci95(torch.stack(scores))
    return f"{100 * mean:.1f} ± {100 * ci:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.photographs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds omniglot/")
    parser.add_argument("--tasks", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    originals = drawings(given.data)
    print("| drawings | not cleaned | cleaned |\n|---|---|---|")
    for name, kind in KINDS.items():
        random = np.random.RandomState(0)
        taken = originals
        if kind:
            taken = [[photograph(raw, random, kind) for raw in files] for files in originals]
        cells = [accuracy(taken, replace(PREPARATION, clean=clean), given.tasks) for clean in (False, True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
