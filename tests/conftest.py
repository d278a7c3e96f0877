from __future__ import annotations

import io
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from fewstep import cli
from fewstep.tasks import miniimagenet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

from fewstep.tasks.glyph_choice import SPLITS

# The tests are many small computations: more threads only cost time, and pytest-xdist runs several of us.
torch.set_num_threads(1)


@pytest.fixture
def few_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glyphs of few characters: they are drawn in a second."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    for split, scripts in {
        "train": {"Latin": "0041-0052", "Greek": "0391-03A9"},
        "val": {"Georgian": "10D0-10DB"},
        "test": {"Hebrew": "05D0-05DB"},
    }.items():
        monkeypatch.setitem(SPLITS, split, scripts)


@pytest.fixture(scope="session")
def small_miniimagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with `miniimagenet/`: all classes as zip files, 20 small pictures of one colour for each."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "miniimagenet").mkdir()
    number = 0
    for split, names in miniimagenet.split_names().items():
        with zipfile.ZipFile(folder / "miniimagenet" / f"{split}.zip", "w") as archive:
            for name in names:
                raw, number = io.BytesIO(), number + 1
                Image.new("RGB", (12, 9), (number, 2 * number, 255 - number)).save(raw, "PNG")
                for picture in range(20):
                    archive.writestr(f"{split}/{name}/{name}{picture:08}.png", raw.getvalue())
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what is prepared in one test serves the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fewstep(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of the command line in a clean folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return run
