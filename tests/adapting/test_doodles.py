"""The README's example: doodles that no recipe was trained on."""

from __future__ import annotations

import runpy
from pathlib import Path

import fewstep

DRAW = Path(__file__).parents[2] / "benchmarks" / "draw_doodles.py"


def test_most_new_doodles_are_told_apart_from_one_to_three_of_each_class(tmp_path):
    runpy.run_path(str(DRAW))["main"](tmp_path)
    classifier = fewstep.adapt("omniglot-5way-1shot", tmp_path / "support")
    new = sorted((tmp_path / "new").iterdir())
    right = [file.name.startswith(each.label) for file, each in zip(new, classifier.predict(new), strict=True)]
    assert len(new) == 21
    assert sum(right) >= 19  # 21, as the README says, and some room for other versions of Pillow
