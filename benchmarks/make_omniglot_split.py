"""Write the committed Omniglot split: 1100 / 100 / 423 of the 1623 characters, a fixed random permutation.

    python benchmarks/make_omniglot_split.py DATA [--output FILE]

DATA is the folder that holds `omniglot/`. Characters are ordered by the SHA-256 of "SEED name": an order that
looks random but needs no library's random numbers, so every version writes the same lists. The first 1100 are
meta-train, the next 100 meta-validation, the rest meta-test: the sizes of the paper's code, in its
data_generator.py. Each list is then sorted by name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from fewstep.tasks.omniglot import check_drawings, find_parts, list_drawings

SEED = 1
TRAIN, VAL = 1100, 100
OUTPUT = Path(__file__).parents[1] / "src" / "fewstep" / "tasks" / "splits" / "omniglot.json"


def split(characters: set[str]) -> dict[str, list[str]]:
    order = sorted(characters, key=lambda name: hashlib.sha256(f"{SEED} {name}".encode()).digest())
    return {
        "train": sorted(order[:TRAIN]),
        "val": sorted(order[TRAIN : TRAIN + VAL]),
        "test": sorted(order[TRAIN + VAL :]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds omniglot/")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    drawings = [drawing for part in find_parts(arguments.data) for drawing in list_drawings(part)]
    check_drawings(drawings)
    lists = split({drawing.character for drawing in drawings})
    arguments.output.write_text(json.dumps(lists, indent=0, ensure_ascii=True) + "\n", encoding="utf-8")
    print({name: len(characters) for name, characters in lists.items()}, "->", arguments.output)


if __name__ == "__main__":
    main()
