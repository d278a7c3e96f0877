"""Omniglot: small fakes for data given, wrong or cached in every way; the real data where there is some."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fewstep.errors import DataError
from fewstep.tasks import omniglot, prepared
from fewstep.tasks.omniglot import load_omniglot, split_names

if TYPE_CHECKING:
    from fewstep.tasks.prepared import PreparedImages

SMALL = {
    "images_background": ("Greek/character01", "Latin/character02"),
    "images_evaluation": ("Tengwar/character01",),
}
SPLITS = {"train": ["Greek/character01"], "val": ["Latin/character02"], "test": ["Tengwar/character01"]}
CONTENT_HASH = "9123b7ee668a79ddc6513f42cdb6ef48a2c1e996b99eb56da411116fc44d6829"


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "PARTS", {part: len(names) for part, names in SMALL.items()})
    monkeypatch.setattr(omniglot, "split_names", lambda: SPLITS)


@pytest.fixture
def folder(tmp_path: Path, small: None) -> Path:
    """A folder that holds `omniglot/` with both parts, extracted."""
    for part, characters in SMALL.items():
        for index, character in enumerate(characters):
            place = tmp_path / "data" / "omniglot" / part / character
            place.mkdir(parents=True)
            for number in range(1, 21):
                drawing(index, number).save(place / f"{index:04}_{number:02}.png")
    return tmp_path / "data"


def drawing(index: int, number: int) -> Image.Image:
    """A black square on white paper, 1 bit per pixel, whose place tells character and drawing."""
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).rectangle((4 * number, 30 * index, 4 * number + 20, 30 * index + 20), fill=0)
    return image


def pack(folder: Path, part: str) -> Path:
    """Replace an extracted part by its archive."""
    source = folder / "omniglot" / part
    with zipfile.ZipFile(source.with_suffix(".zip"), "w") as archive:
        for file in sorted(source.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(source.parent))
    shutil.rmtree(source)
    return source.with_suffix(".zip")


def expect_no_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_pictures(*_: object) -> torch.Tensor:
        raise AssertionError("the drawings were read although they are cached")

    monkeypatch.setattr(prepared, "read_pictures", read_pictures)


def test_images_are_sorted_by_character_and_drawing(folder: Path) -> None:
    images, characters, _ = load_omniglot(folder)
    assert list(characters.items()) == [(name, 20) for part in SMALL.values() for name in part]
    assert images.shape == (60, 1, 28, 28)
    assert images.dtype == torch.uint8
    images = images.unflatten(0, (3, 20))
    assert images[0, :, 0].amax(1).argmax(-1).diff().min() >= 0  # squares go from left to right
    assert images[1, 0, 0].amax(1).argmax() > images[0, 0, 0].amax(1).argmax()
    assert torch.equal(images[2], images[0])


def test_images_are_lanczos_resized_grey_levels_with_bright_ink(folder: Path) -> None:
    images = load_omniglot(folder).images
    resized = drawing(1, 7).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images[20 + 6, 0].numpy(), 255 - np.asarray(resized))
    assert images.float().mean() < 30
    assert images.max() == 255
    assert ((images > 50) & (images < 200)).any()


@pytest.mark.parametrize("packed", [[], ["images_background"], ["images_background", "images_evaluation"]])
def test_archives_and_folders_give_the_same_images(folder: Path, packed: list[str]) -> None:
    expected = load_omniglot(folder)
    for part in packed:
        pack(folder, part)
    assert load_omniglot(folder).content_hash == expected.content_hash
    assert load_omniglot(folder / "omniglot").content_hash == expected.content_hash


def test_one_folder_of_all_alphabets_gives_the_same_images(folder: Path) -> None:
    expected = load_omniglot(folder)
    for part in list((folder / "omniglot").iterdir()):
        for alphabet in part.iterdir():
            alphabet.rename(folder / "omniglot" / alphabet.name)
        part.rmdir()
    assert load_omniglot(folder).content_hash == expected.content_hash
    shutil.rmtree(folder / "omniglot" / "Greek")
    with pytest.raises(DataError, match="omniglot: 2 characters instead of 3"):
        load_omniglot(folder)


def test_content_hash_covers_names_and_pixels(folder: Path) -> None:
    images, characters, content_hash = load_omniglot(folder)
    expected = hashlib.sha256("\n".join(characters).encode() + images.numpy().tobytes()).hexdigest()
    assert content_hash == expected


def test_the_data_folder_may_come_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(folder))
    assert len(load_omniglot().classes) == 3


def test_leftovers_of_file_managers_are_passed_over(folder: Path) -> None:
    place = folder / "omniglot" / "images_background" / "Greek"
    (place / ".DS_Store").write_bytes(b"x")
    (place / "character01" / "._0000_01.png").write_bytes(b"x")
    archive = pack(folder, "images_evaluation")
    with zipfile.ZipFile(archive, "a") as members:
        members.writestr("__MACOSX/images_evaluation/Tengwar/character01/0000_01.png", b"x")
    assert len(load_omniglot(folder).classes) == 3


def test_no_data_folder_says_what_to_put_where() -> None:
    with pytest.raises(DataError, match=r"FEWSTEP_DATA.*omniglot/images_background\.zip.*https://github\.com"):
        load_omniglot()


def test_a_missing_part_says_what_is_there(folder: Path) -> None:
    shutil.rmtree(folder / "omniglot" / "images_evaluation")
    (folder / "notes.txt").touch()
    with pytest.raises(DataError) as error:
        load_omniglot(folder)
    message = str(error.value)
    assert f"no images_evaluation there. {folder} holds notes.txt, omniglot." in message
    assert f"{folder / 'omniglot'} holds images_background. Download" in message


def test_a_folder_that_does_not_exist_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images_background and no images_evaluation.*nowhere is not a folder"):
        load_omniglot(tmp_path / "nowhere")


def test_missing_and_surplus_drawings_are_listed_together(folder: Path) -> None:
    characters = folder / "omniglot" / "images_background"
    for number in range(1, 13):
        (characters / "Greek" / "character01" / f"0000_{number:02}.png").unlink()
    drawing(0, 1).save(characters / "Latin" / "character02" / "0001_21.png")
    with pytest.raises(DataError) as error:
        load_omniglot(folder)
    lines = str(error.value).splitlines()
    assert lines[0] == "Omniglot must hold 2 + 1 characters with 20 drawings each: 13 found"
    assert lines[1] == "  Greek/character01: drawing 01 missing"
    assert lines[10:12] == ["  Greek/character01: drawing 10 missing", "  and 3 more"]
    assert lines[12].startswith("Extract the zips again")


def test_a_wrong_number_of_characters_is_an_error(folder: Path) -> None:
    shutil.rmtree(folder / "omniglot" / "images_background" / "Greek")
    with pytest.raises(DataError, match="images_background: 1 characters instead of 2"):
        load_omniglot(folder)


def test_a_character_in_both_parts_is_an_error(folder: Path) -> None:
    parts = folder / "omniglot"
    (parts / "images_evaluation" / "Tengwar").rename(parts / "images_evaluation" / "Greek")
    with pytest.raises(DataError, match="20 found\n  Greek/character01: drawing 01 2 times"):
        load_omniglot(folder)


def test_other_characters_than_those_of_the_split_lists_are_an_error(folder: Path) -> None:
    parts = folder / "omniglot"
    (parts / "images_evaluation" / "Tengwar").rename(parts / "images_evaluation" / "Quenya")
    with pytest.raises(
        DataError, match=r"On one side only: 2 found\n  Quenya/character01\n  Tengwar/character01\nDown"
    ):
        load_omniglot(folder)


def test_unreadable_images_are_listed_together(folder: Path, tmp_path: Path) -> None:
    place = folder / "omniglot" / "images_background" / "Greek" / "character01"
    whole = (place / "0000_03.png").read_bytes()
    (place / "0000_03.png").write_bytes(whole[: len(whole) // 2])
    for number in range(8, 21):
        (place / f"0000_{number:02}.png").write_bytes(b"not an image")
    with pytest.raises(DataError) as error:
        load_omniglot(folder)
    lines = str(error.value).splitlines()
    assert lines[0] == "Each of 60 pictures must be readable; unreadable: 14 found"
    assert lines[1].startswith(f"  {place / '0000_03.png'}: ")
    assert lines[11] == "  and 4 more"
    assert not (tmp_path / "cache").exists()


def test_a_damaged_member_of_an_archive_is_an_unreadable_image(folder: Path) -> None:
    archive = pack(folder, "images_evaluation")
    with zipfile.ZipFile(archive) as members:
        start = members.infolist()[0].header_offset
    with archive.open("r+b") as raw:
        raw.seek(start + 120)
        raw.write(b"damage")
    with pytest.raises(DataError, match=r"unreadable: 1 found\n.*character01/0000_20.png: Bad CRC"):
        load_omniglot(folder)


def test_a_damaged_archive_is_an_error(folder: Path) -> None:
    archive = pack(folder, "images_evaluation")
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"images_evaluation\.zip must be a folder or a zip archive.*Get it again"):
        load_omniglot(folder)


@pytest.mark.parametrize("member", ["/etc/a.png", "../a.png", "images_evaluation/../../a.png", "C:\\a.png", "..\\a"])
def test_archive_members_outside_of_the_archive_are_refused(folder: Path, member: str) -> None:
    with zipfile.ZipFile(pack(folder, "images_evaluation"), "a") as archive:
        archive.writestr(member, b"x")
    with pytest.raises(DataError, match="must hold relative paths only"):
        load_omniglot(folder)


def test_the_second_time_the_cached_file_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_omniglot(folder)
    expect_no_preparation(monkeypatch)
    second = load_omniglot(folder)
    assert torch.equal(second.images, first.images)
    assert second[1:] == first[1:]


def test_the_cache_folder_may_be_given(folder: Path, tmp_path: Path) -> None:
    load_omniglot(folder, tmp_path / "given")
    assert [file.suffix for file in (tmp_path / "given").iterdir()] == [".safetensors"]
    assert not (tmp_path / "cache").exists()


def test_a_cache_folder_that_is_no_path_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(DataError, match=r"FEWSTEP_CACHE\) must be a path: got '~nobody-of-this-name/cache'"):
        load_omniglot(folder)


def test_a_changed_source_is_prepared_again(folder: Path, tmp_path: Path) -> None:
    first = load_omniglot(folder)
    changed = folder / "omniglot" / "images_background" / "Greek" / "character01" / "0000_01.png"
    drawing(2, 1).save(changed)
    os.utime(changed, ns=(1, 1))
    assert load_omniglot(folder).content_hash != first.content_hash
    assert len(list((tmp_path / "cache").iterdir())) == 2


def truncated(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def one_pixel_changed(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def of_another_kind(raw: bytes) -> bytes:
    return b"not safetensors"


@pytest.mark.parametrize("damage", [truncated, one_pixel_changed, of_another_kind])
def test_a_damaged_cached_file_is_replaced(folder: Path, tmp_path: Path, caplog, monkeypatch, damage) -> None:
    first = load_omniglot(folder)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(load_omniglot(folder).images, first.images)
    assert f"Omniglot is prepared again: the cached file {file} cannot be used" in caplog.text
    expect_no_preparation(monkeypatch)
    load_omniglot(folder)


def test_a_cache_that_cannot_be_written_costs_one_line(folder: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert len(load_omniglot(folder, tmp_path / "file" / "cache").classes) == 3
    assert "could not be cached" in caplog.records[-1].message


def test_a_write_that_fails_leaves_no_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, file: Path, metadata: object) -> None:
        file.touch()
        raise OSError("disk full")

    monkeypatch.setattr(prepared, "save_file", full)
    load_omniglot(folder)
    assert list((tmp_path / "cache").iterdir()) == []


def test_splits_are_disjoint_and_of_the_sizes_of_the_paper_s_code() -> None:
    names = split_names()
    assert {split: len(set(characters)) for split, characters in names.items()} == {
        "train": 1100,
        "val": 100,
        "test": 423,
    }
    assert len(set().union(*names.values())) == 1623
    assert all(characters == sorted(characters) for characters in names.values())


def test_splits_follow_the_hash_of_the_names() -> None:
    names = split_names()
    everything = set().union(*names.values())
    order = sorted(everything, key=lambda name: hashlib.sha256(f"1 {name}".encode()).digest())
    assert (set(order[:1100]), set(order[1100:1200])) == (set(names["train"]), set(names["val"]))


REAL = os.environ.get("FEWSTEP_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="set FEWSTEP_DATA to a folder that holds omniglot/")


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real cache")


@pytest.fixture(scope="module")
def real(real_cache: Path) -> PreparedImages:
    assert REAL is not None
    return load_omniglot(Path(REAL), real_cache)


@needs_data
def test_the_real_data_is_complete_and_as_committed(real: PreparedImages) -> None:
    assert real.images.shape == (1623 * 20, 1, 28, 28)
    assert len(real.classes) == 1623
    assert len({character.split("/")[0] for character in real.classes}) == 50
    assert real.content_hash == CONTENT_HASH


@needs_data
def test_the_real_splits_are_disjoint_and_complete(real: PreparedImages) -> None:
    splits = [real.only(names)[0] for names in split_names().values()]
    assert [len(split) for split in splits] == [1100 * 20, 100 * 20, 423 * 20]
    assert torch.equal(torch.cat(splits).sum((1, 2, 3)).sort().values, real.images.sum((1, 2, 3)).sort().values)


@needs_data
def test_the_real_data_is_cached(real: PreparedImages, real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(REAL))
    monkeypatch.setenv("FEWSTEP_CACHE", str(real_cache))
    expect_no_preparation(monkeypatch)
    assert load_omniglot().content_hash == real.content_hash


@needs_data
def test_real_drawings_are_bright_ink_on_dark_paper(real: PreparedImages) -> None:
    pixels = real.images.flatten(2)
    assert (pixels.amax(-1) > 128).all()
    assert (pixels < 64).float().mean() > 0.8
