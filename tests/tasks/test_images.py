"""Pictures of every kind that people have, and files that only look like pictures."""

from __future__ import annotations

import io
import json
import threading
import time
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import DataError
from fewstep.tasks import archives, images
from fewstep.tasks.archives import Member, Reader
from fewstep.tasks.check import check
from fewstep.tasks.images import Preparation, check_pictures, read_pictures
from fewstep.tasks.picture_files import folders_without_pictures, list_classes

GREY, COLOUR = Preparation(8, channels=1), Preparation(8, channels=3)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    raw = io.BytesIO()
    image.save(raw, kind, **options)
    return raw.getvalue()


def decoded(raw: bytes, preparation: Preparation) -> torch.Tensor:
    with TemporaryDirectory() as folder:
        file = Path(folder, "picture")
        file.write_bytes(raw)
        return read_pictures([file], preparation)[0]


def halves(mode: str = "RGB", size: tuple[int, int] = (16, 16), left: object = (255, 0, 0)) -> Image.Image:
    """The left half of a colour, the rest white."""
    image = Image.new(mode, size, "white")
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def rgb(pixels: torch.Tensor, row: int, column: int) -> list[int]:
    return pixels[:, row, column].tolist()


def test_a_picture_is_channels_by_height_by_width_of_bytes() -> None:
    for preparation in (GREY, COLOUR):
        pixels = decoded(encoded(halves()), preparation)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (preparation.channels, 8, 8)
    assert rgb(pixels, 4, 0) == [255, 0, 0]
    assert rgb(pixels, 4, 7) == [255, 255, 255]


def test_the_orientation_of_the_camera_is_honoured() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: left comes to the top
    pixels = decoded(encoded(halves(), "JPEG", exif=exif, quality=95), COLOUR)
    assert rgb(pixels, 0, 4)[1] < 60
    assert rgb(pixels, 7, 4)[1] > 200


def test_transparent_is_white() -> None:
    image = halves("RGBA", left=(0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 0))
    assert decoded(encoded(image), GREY).min() == 255
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert decoded(encoded(palette, transparency=0), COLOUR).min() == 255
    grey = Image.new("LA", (8, 8), (0, 128))
    assert rgb(decoded(encoded(grey), GREY), 0, 0) == [127]


def test_palettes_and_cmyk_give_their_colours() -> None:
    assert rgb(decoded(encoded(halves().quantize(4)), COLOUR), 4, 0)[0] > 240
    pixels = decoded(encoded(halves().convert("CMYK"), "JPEG", quality=95), COLOUR)
    assert rgb(pixels, 4, 0)[0] > 200
    assert rgb(pixels, 4, 0)[1] < 60


def test_sixteen_bits_become_eight() -> None:
    levels = np.full((8, 8), 257 * 100, dtype=np.uint16)
    assert decoded(encoded(Image.fromarray(levels)), GREY).unique().tolist() == [100]
    assert rgb(decoded(encoded(Image.fromarray(levels), "TIFF"), COLOUR), 0, 0) == [100, 100, 100]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_levels_of_unknown_range_are_refused(dtype: type) -> None:
    levels = np.full((8, 8), 1e6, dtype=dtype)
    with pytest.raises(DataError, match=r"must be readable: 1 found\n.*: its grey levels .*save it with 8 or 16"):
        decoded(encoded(Image.fromarray(levels), "TIFF"), GREY)


def test_one_bit_is_resized_through_grey_levels() -> None:
    pixels = decoded(encoded(halves("1", (20, 20), 0)), GREY)
    assert pixels.min() == 0
    assert len(pixels.unique()) > 2


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("L", (8, 8), level) for level in (40, 200)]
    raw = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(raw, GREY).unique().tolist() == [40]


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0), (30, 220)])
def test_invert_auto_makes_ink_bright_on_dark_whatever_it_was(ink: int, paper: int) -> None:
    image = Image.new("L", (16, 16), paper)
    image.paste(ink, (6, 6, 10, 10))
    pixels = decoded(encoded(image), Preparation(16, channels=1, invert="auto"))[0]
    assert pixels[0, 0] < 50
    assert pixels[8, 8] > 200
    plain = decoded(encoded(image), Preparation(16, channels=1))[0]
    assert plain[8, 8] == ink
    assert decoded(encoded(image), Preparation(16, channels=1, invert=True))[0, 8, 8] == 255 - ink


def test_a_picture_that_is_not_square_is_padded_with_its_border_or_cropped_or_stretched() -> None:
    image = Image.new("L", (32, 16), 200)
    image.paste(0, (8, 0, 24, 16))
    raw = encoded(image)
    padded, cropped, stretched = (
        decoded(raw, Preparation(16, channels=1, fit=fit))[0] for fit in ("pad", "crop", "stretch")
    )
    assert padded[0].unique().tolist() == [200]
    assert (padded[8] < 50).sum() == 8
    assert (cropped < 50).all()
    assert (stretched[0] < 50).sum() == 8


@pytest.mark.parametrize("size", [(1, 1), (3000, 1)])
def test_sizes_at_the_edge_are_pictures_too(size: tuple[int, int]) -> None:
    for fit in ("pad", "crop", "stretch"):
        assert decoded(encoded(Image.new("L", size, 90)), Preparation(8, channels=1, fit=fit)).max() <= 91


def test_a_thin_strip_is_padded_and_checked(tmp_path: Path) -> None:
    (tmp_path / "strip.png").write_bytes(encoded(halves(size=(300, 2))))
    check_pictures([tmp_path / "strip.png"])
    pixels = read_pictures([tmp_path / "strip.png"], COLOUR)[0]
    assert pixels.shape == (3, 8, 8)
    assert (pixels != pixels[:, :1, :1]).any()  # not all of it is border


@pytest.mark.parametrize("megapixels", [100, 200])
def test_a_picture_of_too_many_pixels_is_refused_undecoded(megapixels: int) -> None:
    raw = encoded(Image.new("1", (1000 * megapixels, 1000)))
    with pytest.raises(DataError, match="more than 89 million pixels; make it smaller"):
        decoded(raw, GREY)


def test_pictures_read_alike_whatever_the_filters_for_warnings() -> None:
    raw = encoded(Image.new("1", (100_000, 1000)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="more than 89 million pixels"):
            decoded(raw, GREY)


def test_threads_that_read_at_once_leave_the_filters_for_warnings_as_they_were(monkeypatch) -> None:
    before, second_reads, first_has_read = warnings.filters[:], threading.Event(), threading.Event()

    def slowly_decoded(raw: bytes, _: Preparation) -> torch.Tensor:
        if raw == b"second":
            second_reads.set()
            first_has_read.wait(0.5)
        else:
            second_reads.wait(0.5)  # it must not
        return torch.zeros(1)

    def read_first() -> None:
        decoded(b"first", GREY)
        first_has_read.set()

    monkeypatch.setattr(images, "_decoded", slowly_decoded)
    threads = [threading.Thread(target=read_first), threading.Thread(target=decoded, args=(b"second", GREY))]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_unreadable_files_are_told_together_with_the_reason(tmp_path: Path) -> None:
    whole = encoded(halves())
    files = {"héllo.png": whole, "text.png": b"no picture", "empty.jpg": b"", "short.png": whole[: len(whole) // 2]}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as error:
        read_pictures([*(tmp_path / name for name in files), tmp_path / "gone.png"], COLOUR)
    lines = str(error.value).splitlines()
    assert lines[0] == "Each of 5 pictures must be readable; unreadable: 4 found"
    assert lines[1] == (
        f"  {tmp_path / 'text.png'}: no picture of a kind that is read (PNG, JPEG, GIF, BMP, TIFF, WEBP, PPM)"
    )
    assert lines[2].startswith(f"  {tmp_path / 'empty.jpg'}: no picture")
    assert lines[3].startswith(f"  {tmp_path / 'short.png'}: ")
    assert lines[4] == f"  {tmp_path / 'gone.png'}: No such file or directory"
    assert lines[5] == "Replace these files or take them away."
    assert read_pictures([tmp_path / "héllo.png"], COLOUR)[0].shape == (3, 8, 8)


def test_of_many_unreadable_files_ten_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unreadable: 13 found(\n  .*){10}\n  and 3 more\n"):
        read_pictures([tmp_path / f"{number}.png" for number in range(13)], COLOUR)


def test_a_file_too_large_to_be_a_picture_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_LARGEST", 2**20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/bomb.png", bytes(2**21))
    with Reader() as reader, pytest.raises(ValueError, match="2 MiB, more than 1"):
        reader.read(Member(tmp_path / "a.zip", "c/bomb.png"))


def test_a_preparation_is_stored_and_read_back() -> None:
    preparation = Preparation(28, channels=1, invert="auto", fit="crop")
    assert Preparation.from_dict(json.loads(json.dumps(preparation.to_dict()))) == preparation
    with pytest.raises(DataError, match=r"has the values channels, clean, fit.*got none\. Restore"):
        Preparation.from_dict({})


@pytest.mark.parametrize(
    "choice", [{"image_size": 0}, {"channels": 2}, {"invert": "yes", "channels": 1}, {"invert": True}, {"fit": "tile"}]
)
def test_an_impossible_preparation_is_refused_by_value(choice: dict) -> None:
    with pytest.raises(DataError, match=f"{next(iter(choice))}="):
        Preparation(**{"image_size": 8, **choice})


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(Image.new("L", (4, 4), 9)) if name.endswith("png") else b"x")
    return folder


def test_each_folder_with_pictures_is_a_class_and_leftovers_are_passed_over(tmp_path: Path) -> None:
    junk = (".hidden/a.png", "cat/.a.png", "cat/notes.txt", "__MACOSX/cat/a.png", "empty/readme.md")
    fill(tmp_path, "cat/b.png", "cat/a.png", "dög/c.png", *junk)
    classes = list_classes(tmp_path)
    assert {name: [file.name for file in files] for name, files in classes.items()} == {
        "cat": ["cat/a.png", "cat/b.png"],
        "dög": ["dög/c.png"],
    }
    assert read_pictures(classes["cat"], GREY).shape == (2, 1, 8, 8)


def test_folders_whose_names_differ_in_their_accents_form_are_one_class(tmp_path: Path) -> None:
    fill(tmp_path, "\u00e9/a.png", "e\u0301/b.png", "e\u0301/c.png", "z/d.png")
    assert {name: len(pictures) for name, pictures in list_classes(tmp_path).items()} == {"z": 1, "\u00e9": 3}


def test_linked_folders_are_classes_and_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "c.png")
    fill(tmp_path / "pictures", "a/a.png", "b/b.png")
    (tmp_path / "pictures" / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "pictures" / "again").symlink_to(tmp_path / "pictures", target_is_directory=True)
    assert list(list_classes(tmp_path / "pictures")) == ["a", "b", "c"]


def test_an_archive_has_the_classes_of_the_folder_it_was_made_of(tmp_path: Path) -> None:
    folder = fill(tmp_path / "mine", "Greek/alpha/a.png", "Greek/beta/a.png", "Latin/a/a.PNG")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path))
    assert list(list_classes(tmp_path / "mine.zip")) == list(list_classes(folder))
    assert list(list_classes(folder)) == ["Greek/alpha", "Greek/beta", "Latin/a"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("é".encode(), b"\xff\xff"), (b"PK\x01\x02\x14\x03\x14\x00", b"PK\x01\x02\x14\x03\xff\x00")],
    ids=["a name that is no text", "a version of the future"],
)
def test_an_archive_of_odd_members_is_an_error(tmp_path: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("é/a.png", b"x")
    raw = (tmp_path / "mine.zip").read_bytes()
    assert old in raw
    (tmp_path / "mine.zip").write_bytes(raw.replace(old, new))
    with pytest.raises(DataError, match=r"mine\.zip must be a folder or a zip archive: it cannot be read"):
        list_classes(tmp_path / "mine.zip")


def test_one_class_is_called_after_its_folder(tmp_path: Path) -> None:
    assert list(list_classes(fill(tmp_path, "mine/cat/a.png"))) == ["cat"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], r"must hold pictures \(.png.*there are none. Check the path"),
        (["a.png", "cat/b.png"], r"must lie in the folder of its class: 1 found\n  a.png\nMake a folder"),
        (["cat/a.png", "cat/more/b.png"], r"either pictures or further folders.*\n  cat\nMove the pictures"),
    ],
)
def test_a_folder_whose_classes_are_not_clear_is_an_error(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_classes(fill(tmp_path, *names))


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*nowhere. Check the path"):
        list_classes(tmp_path / "nowhere")


def test_pictures_of_kinds_that_are_not_read_are_told_of(tmp_path: Path) -> None:
    classes = list_classes(fill(tmp_path, "cat/a.png", "cat/b.heic"))
    with pytest.raises(DataError, match=r"b.heic: no picture of a kind that is read"):
        read_pictures(classes["cat"], GREY)


def test_folders_beside_the_classes_that_hold_no_pictures_are_told_of(tmp_path: Path) -> None:
    for name in ("Greek/alpha", "Greek/empty", "notes", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("L", (9, 9)).save(tmp_path / "Greek" / "alpha" / "0.png")
    assert folders_without_pictures(tmp_path, list_classes(tmp_path)) == ["Greek/empty"]
    assert "without pictures, and no classes: Greek/empty" in str(check(tmp_path)[0])
