from __future__ import annotations

import pytest
import torch

from fewstep.tasks.glyph_choice import SPLITS

# The tests are many small computations: more threads only cost time, and pytest-xdist runs several of us.
torch.set_num_threads(1)


@pytest.fixture
def few_scripts(tmp_path, monkeypatch):
    """Glyphs of few characters: they are drawn in a second."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    for split, scripts in {
        "train": {"Latin": "0041-0052", "Greek": "0391-03A9"},
        "val": {"Georgian": "10D0-10DB"},
        "test": {"Hebrew": "05D0-05DB"},
    }.items():
        monkeypatch.setitem(SPLITS, split, scripts)
