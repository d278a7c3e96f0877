from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from fewstep.tasks import miniimagenet

if TYPE_CHECKING:
    from pathlib import Path

# The tests are many small computations: more threads only cost time, and pytest-xdist runs several of us.
torch.set_num_threads(1)


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
