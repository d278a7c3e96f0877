"""A user's own pictures: what a class is, and which split it is in."""

from __future__ import annotations

import errno
import logging
from itertools import chain
from pathlib import Path

import pytest
from PIL import Image

from fewstep.core.rng import generator
from fewstep.errors import DataError
from fewstep.tasks.few_shot import FewShot
from fewstep.tasks.folder import counts, list_folder, load_folder
from fewstep.tasks.images import Preparation

GREY = Preparation(8, channels=1)


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def pictures(folder: Path, sizes: dict[str, int]) -> Path:
    """A folder with so many pictures of each class, whose level tells the class."""
    for number, (name, size) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True)
        for picture in range(size):
            Image.new("L", (9 + picture, 9), 10 * number).save(folder / name / f"{picture}.png")
    return folder


def test_classes_of_different_sizes_become_tasks(tmp_path: Path) -> None:
    sizes = {f"class {number}": 3 + number for number in range(6)}
    images, splits = load_folder(pictures(tmp_path / "mine", sizes), GREY)
    assert images.classes == sizes
    assert sorted(chain.from_iterable(splits.values())) == sorted(sizes)
    chosen, classes = images.only(splits["train"])
    task = FewShot(chosen, ways=len(classes), shots=1, queries=2, classes=classes).sample(5, generator(0))
    levels = (task.support.inputs.flatten(2)[..., 0] * 25.5).round().int()
    assert {f"class {level}" for level in levels.flatten().tolist()} == set(splits["train"])
    assert counts(splits, images.classes)["train"]["pictures"] == sum(classes.values())


def test_pictures_that_cannot_be_read_are_left_out_where_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pictures(tmp_path / "mine", {f"class {number}": 3 for number in range(6)})
    (folder / "class 1" / "1.png").write_bytes(b"no picture")
    for picture in range(3):
        (folder / "class 2" / f"{picture}.png").write_bytes(b"none either")
    with pytest.raises(DataError, match=r'tasks\.unreadable = "drop"'):
        load_folder(folder, GREY)
    caplog.set_level(logging.INFO)
    images, splits = load_folder(folder, GREY, drop_unreadable=True)
    assert "Left out 4 of 18 pictures, unreadable" in caplog.text
    caplog.clear()
    load_folder(folder, GREY, drop_unreadable=True)  # from the cache
    assert "4 pictures cannot be read, and are left out" in caplog.text
    assert images.classes == {"class 0": 3, "class 1": 2, "class 3": 3, "class 4": 3, "class 5": 3}
    assert sorted(chain.from_iterable(splits.values())) == sorted(images.classes)
    assert images.only(["class 1"])[0].float().mean().round() == 10
    with pytest.raises(DataError):  # what was kept of the others is for those who asked
        load_folder(folder, GREY)


def test_a_picture_that_the_system_withholds_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "mine", {f"class {number}": 3 for number in range(6)})
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "1.png" and path.parent.name == "class 1":
            raise OSError(errno.EIO, "Input/output error")
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(DataError, match=r"unreadable: 1 found\n.*1.png: Input/output error\nMake these files"):
            load_folder(folder, GREY, drop_unreadable=True)
    assert load_folder(folder, GREY, drop_unreadable=True)[0].classes["class 1"] == 3


def test_the_split_depends_on_the_names_alone(tmp_path: Path) -> None:
    sizes = {f"class {number}": 1 for number in range(20)}
    one = load_folder(pictures(tmp_path / "one", sizes), GREY)[1]
    other = load_folder(pictures(tmp_path / "other", dict.fromkeys(reversed(sizes), 2)), GREY)[1]
    assert one == other
    assert {split: len(names) for split, names in one.items()} == {"train": 14, "val": 3, "test": 3}
    assert load_folder(tmp_path / "one", GREY, (0.5, 0.25, 0.25))[1] != one
    assert load_folder(tmp_path / "one", GREY, (0.5, 0.25, 0.25), one)[1] == one


def test_a_folder_with_train_val_and_test_is_used_as_given(tmp_path: Path) -> None:
    names = {"train/b": 2, "train/a": 1, "val/c": 1, "test/x/d": 1}
    images, splits = load_folder(pictures(tmp_path / "mine", names), GREY)
    assert splits == {"train": ["a", "b"], "val": ["c"], "test": ["x/d"]}
    assert images.classes == {"a": 1, "b": 2, "c": 1, "x/d": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a", "test/b"], r"must hold `train`, `val` and `test`.*holds pictures in test/b, train/a\. Rename"),
        (["train", "val", "test"], r"each with a folder for each class.*holds pictures in test, train, val"),
        (["train/a", "val/b", "test/a"], r"must differ in their classes: in several are 1 found\n  a\nPut all"),
    ],
)
def test_a_split_that_is_none_is_an_error(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_folder(pictures(tmp_path / "mine", dict.fromkeys(names, 1)))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert list_folder(pictures(tmp_path / "mine", {"car": 1, "train": 1, "bus": 1})).splits is None


def test_two_classes_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 3 classes.*has 2 \(a, b\)\. Add classes"):
        load_folder(pictures(tmp_path / "mine", {"a": 1, "b": 1}), GREY)


def test_pictures_are_prepared_once_for_each_preparation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = pictures(tmp_path / "my pictures, größer", {"a": 1, "b": 1, "c": 1})
    for preparation in (GREY, GREY, Preparation(9, channels=3)):
        assert load_folder(folder, preparation)[0].images.shape[1:] == (
            preparation.channels,
            preparation.image_size,
            preparation.image_size,
        )
    assert [record.message for record in caplog.records] == [
        "Preparing the 3 pictures of folder my pictures, größer, once"
    ] * 2


@pytest.mark.parametrize("broken", [["val"], ["train", "val", "test"]])
def test_a_split_of_unreadable_pictures_alone_is_an_error(tmp_path: Path, broken: list[str]) -> None:
    folder = pictures(tmp_path / "mine", {"train/a": 1, "val/b": 2, "test/c": 1})
    for split in broken:
        for file in (folder / split).rglob("*.png"):
            file.write_bytes(b"no picture")
    for _ in range(2):  # the second time from the cached file
        with pytest.raises(DataError, match=rf"there is none in {', '.join(broken)}\. Replace"):
            load_folder(folder, GREY, drop_unreadable=True)
