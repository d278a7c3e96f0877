"""MiniImagenet as people have it: archives, folders, lists; incomplete and mixed up; the real data where it is."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from fewstep.errors import DataError
from fewstep.tasks import miniimagenet
from fewstep.tasks.miniimagenet import check_images, list_images, load_miniimagenet, split_names

CONTENT_HASH = "e39cb48ec9d780b32cea3145e7300f6ad92b6285a7fb75973ef8496e12fa497d"
SMALL = {"train": ["n01532829", "n01558993", "n01704323"], "val": ["n01855672"], "test": ["n01930112", "n01981276"]}


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path, small_miniimagenet: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six classes, extracted."""
    for split, names in SMALL.items():
        with zipfile.ZipFile(small_miniimagenet / "miniimagenet" / f"{split}.zip") as archive:
            chosen = [member for member in archive.namelist() if member.split("/")[1] in names]
            archive.extractall(tmp_path / "data" / "miniimagenet", chosen)
    monkeypatch.setattr(miniimagenet, "split_names", lambda: SMALL)
    return tmp_path / "data"


def pack(folder: Path) -> None:
    """Replace the extracted splits by archives."""
    for split in SMALL:
        place = folder / "miniimagenet"
        shutil.make_archive(str(place / split), "zip", place, split)
        shutil.rmtree(place / split)


def list_up(folder: Path, inside: str = "") -> None:
    """Replace the extracted splits by one folder of pictures and lists."""
    place = folder / "miniimagenet"
    (place / "images" / inside).mkdir(parents=True)
    for split in SMALL:
        rows = ["filename,label"]
        for file in sorted((place / split).rglob("*.png"), reverse=True):
            rows.append(f"{file.name},{file.parent.name}")
            file.rename(place / "images" / inside / file.name)
        (place / f"{split}.csv").write_text("\n".join(rows))
        shutil.rmtree(place / split)


def test_classes_stand_split_by_split_as_colours_at_84_pixels(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = load_miniimagenet(folder)
    assert list(data.classes) == [*SMALL["train"], *SMALL["val"], *SMALL["test"]]
    assert data.images.shape == (120, 3, 84, 84)
    assert data.images.flatten(1).unique(dim=1).shape == (120, 3)  # of one colour
    assert "train 3 classes x 20 pictures (600 as published); val 1 classes x 20" in caplog.text
    images, classes = data.only(SMALL["test"])
    assert classes == dict.fromkeys(SMALL["test"], 20)
    assert torch.equal(images, data.images[80:])


@pytest.mark.parametrize("arrange", [pack, list_up, lambda folder: list_up(folder, "deeper")])
def test_archives_folders_and_lists_give_the_same_images(folder: Path, arrange) -> None:
    expected = load_miniimagenet(folder).content_hash
    arrange(folder)
    assert load_miniimagenet(folder).content_hash == expected
    assert load_miniimagenet(folder / "miniimagenet").content_hash == expected


def test_the_pictures_of_lists_may_be_an_archive(folder: Path) -> None:
    expected = load_miniimagenet(folder).content_hash
    list_up(folder)
    place = folder / "miniimagenet"
    shutil.make_archive(str(place / "images"), "zip", place, "images")
    shutil.rmtree(place / "images")
    assert load_miniimagenet(folder).content_hash == expected


def test_pictures_that_a_list_names_and_nobody_has_are_told(folder: Path) -> None:
    list_up(folder)
    for name in ("n0153282900000003.png", "n0185567200000000.png"):
        (folder / "miniimagenet" / "images" / name).unlink()
    with pytest.raises(DataError, match=r"2 found\n  train.csv: n0153282900000003.png\n  val.csv: n01855672"):
        load_miniimagenet(folder)


@pytest.mark.parametrize("text", ["", "a,b\n1,2", "filename,label\nx.png"])
def test_a_list_of_another_form_is_an_error(folder: Path, text: str) -> None:
    list_up(folder)
    (folder / "miniimagenet" / "val.csv").write_text(text)
    with pytest.raises(DataError, match=r"val.csv must have the columns filename and label"):
        load_miniimagenet(folder)


def test_classes_that_are_missing_strange_or_in_the_wrong_split_are_told_together(folder: Path) -> None:
    place = folder / "miniimagenet"
    shutil.copytree(place / "train" / "n01532829", place / "val" / "n01532829")
    shutil.rmtree(place / "train" / "n01558993")
    (place / "test" / "n01981276").rename(place / "test" / "cats")
    (place / "test" / "n01930112" / "n0193011200000000.png").unlink()
    with pytest.raises(DataError) as error:
        load_miniimagenet(folder)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("MiniImagenet must hold 3 + 1 + 2 classes with at least 20 pictures each")
    assert lines[1:-1] == [
        "  train: 2 classes instead of 3",
        "  train: n01558993 is missing",
        "  val: 2 classes instead of 1",
        "  val: n01532829 is of train",
        "  test: n01981276 is missing",
        "  test: cats is no class of any split",
        "  test: n01930112 has 19 pictures, fewer than 20",
    ]


def test_a_missing_split_says_what_is_there_and_what_to_put_there(folder: Path) -> None:
    shutil.rmtree(folder / "miniimagenet" / "val")
    with pytest.raises(DataError, match=r"not all are there.*miniimagenet holds test, train\. Put miniimagenet/ there"):
        load_miniimagenet(folder)
    with pytest.raises(DataError, match=r"FEWSTEP_DATA.*Put miniimagenet/ there"):
        load_miniimagenet()


def test_the_committed_lists_have_64_16_and_20_classes_each_in_one_split() -> None:
    names = split_names()
    assert {split: len(set(classes)) for split, classes in names.items()} == {"train": 64, "val": 16, "test": 20}
    assert len(set().union(*names.values())) == 100
    assert all(classes == sorted(classes) for classes in names.values())


REAL = os.environ.get("FEWSTEP_DATA")
needs_data = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "miniimagenet").is_dir(), reason="set FEWSTEP_DATA to a folder with miniimagenet/"
)


@needs_data
def test_the_real_data_has_the_committed_classes() -> None:
    check_images(list_images(Path(str(REAL))))


@needs_data
@pytest.mark.slow
def test_the_real_data_is_as_it_was() -> None:
    data = load_miniimagenet(Path(str(REAL)))
    if len(data.images) != 32_800:
        pytest.skip("the hash is of a set with 300, 100 and 600 pictures of each class")
    assert data.content_hash == CONTENT_HASH
