"""`fewstep adapt` and `fewstep predict` as a user meets them: output, files, and one clear error for bad input."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest
from PIL import Image

from fewstep.adapting.classifier import Prediction
from fewstep.pictures import rightly_taken

from .drawn import SHAPES, draw, draw_support

READY = "omniglot-5way-1shot"


@pytest.fixture(autouse=True)
def without_data_sets(monkeypatch):
    """Adapting a ready initialisation needs none."""
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)


@pytest.fixture
def support(tmp_path):
    return draw_support(tmp_path / "mine", {"bar": 1, "cross": 2, "square": 1})


@pytest.fixture
def adapted(fewstep, support):
    code, _, err = fewstep("adapt", READY, "--support", support, "--out", "model")
    assert code == 0, err
    return "model"


def test_adapt_classifies_keeps_the_model_and_draws_a_contact_sheet(fewstep, support, tmp_path):
    for name in ("bar", "square"):
        draw(name, tmp_path / "new" / "deeper" / f"{name}.jpg", moved=4, size=(64, 64))
    (tmp_path / "new" / "notes.txt").write_text("no picture, by its name")
    code, out, err = fewstep("adapt", READY, "--support", support, "--predict", "new")
    assert code == 0, err
    assert "new/deeper/bar.jpg" in out
    assert "Adapted to 3 classes: bar (1), cross (2), square (1); steps 3, head prototype." in out
    folder = tmp_path / "adapted" / "mine"
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.width > 400
    assert {"config.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}


def test_predict_prints_a_table_json_or_csv(fewstep, adapted, tmp_path):
    files = [draw(name, tmp_path / "new" / f"{name}.png", moved=3) for name in ("bar", "cross", "square")]
    code, out, _ = fewstep("predict", adapted, "new")
    assert code == 0
    assert all(word in out for word in ("image", "class", "probability", "new/cross.png", "%"))
    code, out, _ = fewstep("predict", adapted, "new", "--json")
    result = json.loads(out)
    assert list(result) == ["predictions"]
    for each, file in zip(result["predictions"], files, strict=True):
        assert list(each) == ["image", "class", "probabilities"]
        assert each["image"] == f"new/{file.name}"
        assert each["class"] == file.stem
        assert list(each["probabilities"]) == ["bar", "cross", "square"]
        assert sum(each["probabilities"].values()) == pytest.approx(1)
    code, out, _ = fewstep("predict", adapted, "new", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["image", "class", "probability", "p(bar)", "p(cross)", "p(square)"]
    assert [row["class"] for row in rows] == ["bar", "cross", "square"]
    assert fewstep("predict", adapted, "new", "--csv", "--json")[0] == 2


def test_pictures_in_folders_of_classes_are_scored(fewstep, adapted, tmp_path):
    draw("bar", tmp_path / "known" / "bar" / "1.png", moved=3)
    draw("cross", tmp_path / "known" / "square" / "1.png", moved=3)  # in the wrong folder
    code, out, _ = fewstep("predict", adapted, "known")
    assert code == 0
    assert "1 of 2 lie in the folder of their class." in out
    assert out.count("mistake") == 1
    draw("bar", tmp_path / "known" / "elsewhere" / "1.png")  # says nothing of its class
    assert "folder of their class" not in fewstep("predict", adapted, "known")[1]


def test_pictures_in_nested_folders_of_classes_are_scored():
    names = ["Greek/alpha", "alpha", "Latin/\u00e9"]
    for folder, expected in (
        ("known/Greek/alpha", "Greek/alpha"),
        ("known/alpha", "alpha"),
        ("Latin/e\u0301", "Latin/\u00e9"),  # as macOS writes it
    ):
        for label in names:
            assert rightly_taken([Prediction(f"{folder}/1.png", label, dict.fromkeys(names, 0.3))]) == [
                label == expected
            ]
    assert rightly_taken([Prediction("known/Greekalpha/1.png", "alpha", dict.fromkeys(names, 0.3))]) == []


def test_one_picture_gets_the_answer_that_it_has_in_a_folder(fewstep, adapted, tmp_path):
    for name in SHAPES:
        draw(name, tmp_path / "new" / f"{name}.png", moved=3)
    together = json.loads(fewstep("predict", adapted, "new", "--json")[1])["predictions"]
    for each in together:
        [alone] = json.loads(fewstep("predict", adapted, each["image"], "--json")[1])["predictions"]
        assert alone["class"] == each["class"]
        assert alone["probabilities"] == pytest.approx(each["probabilities"], abs=1e-5)


def test_adapt_goes_on_with_an_adapted_model_in_its_folder(fewstep, adapted, tmp_path):
    draw_support(tmp_path / "more", {"square": 1, "zigzag": 2}, first=3)
    code, out, err = fewstep("adapt", adapted, "--support", "more", "--export", "torch")
    assert code == 0, err
    assert "bar (1), cross (2), square (2), zigzag (2)" in out
    assert (tmp_path / adapted / "model.pt2").exists()
    assert fewstep("adapt", adapted, "--support", "more", "--head", "zero")[0] == 0
    assert not (tmp_path / adapted / "model.pt2").exists()  # it was of the model before
    code, out, _ = fewstep("adapt", adapted, "--support", "mine", "--out", "other", "--steps", 1)
    assert "steps 1, head zero" in out


def test_a_model_is_exported_in_several_formats_at_once(fewstep, support, tmp_path):
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason="the extra `export` is not installed")
    code, _, err = fewstep("adapt", READY, "--support", support, "--out", "m", "--export", "torch", "--export", "onnx")
    assert code == 0, err
    assert {"model.pt2", "model.onnx"} <= {path.name for path in (tmp_path / "m").iterdir()}


def test_pictures_of_every_kind_and_names_in_every_script_work(fewstep, tmp_path):
    draw("bar", tmp_path / "mine" / "Größe" / "ä b.png", size=(300, 40))
    draw("cross", tmp_path / "mine" / "字$x_1$[b]" / "1.gif", size=(20, 20))
    image = Image.new("RGBA", (50, 80), (255, 255, 255, 0))
    image.save(tmp_path / "mine" / "字$x_1$[b]" / "2.webp")
    code, out, err = fewstep("adapt", READY, "--support", "mine", "--predict", "mine", "--out", "model")
    assert code == 0, err
    assert "字$x_1$[b]" in out
    assert len(json.loads(fewstep("predict", "model", "mine", "--json")[1])["predictions"]) == 3


def test_colour_pictures_make_a_coloured_sheet(tmp_path):
    import numpy as np

    from fewstep.reporting.contact_sheet import Shown, contact_sheet

    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    many = [Shown(red, f"a very long name {n}.png", "b", n / 100, right=n % 2 == 0) for n in range(100)]
    contact_sheet({"a": [red] * 50, "b": [red]}, many, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (255, 0, 0) in {colour[:3] for _, colour in sheet.getcolors(10**6)}


def test_files_stay_apart_by_name_on_a_sheet():
    from fewstep.reporting.contact_sheet import _short_file

    names = ["triangle/04.png", "triangle/14.png", "holiday pictures/IMG_1234.jpg", "holiday pictures/IMG_9994.jpg"]
    short = [_short_file(name, 18) for name in names]
    assert short == ["triangle/04", "triangle/14", "…pictures/IMG_1234", "…pictures/IMG_9994"]


def test_a_sheet_takes_another_font_for_names_that_its_own_cannot_write(tmp_path):
    import numpy as np
    from matplotlib.image import imread

    from fewstep.reporting.contact_sheet import contact_sheet

    def drawn(name):
        contact_sheet({name: [np.zeros((8, 8), np.uint8)]}, [], tmp_path / "sheet.png")
        return imread(tmp_path / "sheet.png")

    # DejaVu Sans has neither a circled A nor a circled B, and would draw one box for both; matplotlib's STIX has them.
    assert not np.array_equal(drawn("\u24b6"), drawn("\u24b7"))


def bad(tmp_path, kind):
    """The --support of a kind of mistake."""
    folder = draw_support(tmp_path / "mine", {"bar": 1, "square": 1})
    if kind == "text":
        (folder / "bar" / "note.png").write_text("not a picture")
    elif kind == "huge":
        Image.new("1", (10_000, 10_000)).save(folder / "bar" / "huge.png")
    elif kind == "loose":
        draw("bar", folder / "bar.png")
    elif kind == "one":
        return draw_support(tmp_path / "single", {"bar": 2})
    elif kind == "none":
        (tmp_path / "empty").mkdir()
        return tmp_path / "empty"
    elif kind == "file":
        return folder / "bar" / "0.png"
    elif kind == "missing":
        return tmp_path / "nowhere"
    return folder


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("text", "note.png: no picture of a kind that is read"),
        ("huge", "huge.png"),
        ("loose", "must lie in the folder of its class"),
        ("one", "two classes or more"),
        ("none", "there are none"),
        ("file", "must be a folder or a zip archive"),
        ("missing", "there is no"),
    ],
)
def test_bad_support_is_one_clear_error_and_writes_nothing(fewstep, tmp_path, kind, told):
    support = bad(tmp_path, kind)
    code, out, err = fewstep("adapt", READY, "--support", support, "--out", "model")
    assert code == 2
    assert told in err
    assert out == ""
    assert not (tmp_path / "model").exists()


def test_an_unreadable_folder_is_one_clear_error(fewstep, support, monkeypatch):
    """Not a class that silently is not there. Root may read everything, so the refusal is an imitation."""

    def refusing(path, scandir=os.scandir):
        if str(path).endswith("cross"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    code, _, err = fewstep("adapt", READY, "--support", support, "--out", "model")
    assert code == 2
    assert "must be a readable folder: Permission denied" in err
    assert "cross" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["adapt", "sinusoid-10shot", "--support", "mine"], "trained on sinusoid tasks"),
        (["adapt", "nowhere", "--support", "mine"], "there is no nowhere"),
        (["adapt", READY, "--support", "mine", "--out", "mine"], "must be a new or empty folder"),
        (["adapt", READY, "--support", "mine", "--out", "mine/bar/0.png"], "must be a folder"),
        (["adapt", READY, "--support", "mine", "--predict", "nowhere"], "nowhere"),
        (["adapt", READY, "--support", "mine", "--predict", "empty"], "must be or hold pictures"),
        (["adapt", READY, "--support", "mine", "--device", "abacus"], "--device must be one"),
        (["adapt", READY, "--support", "mine", "--head", "best"], "--head"),
        (["adapt", READY, "--support", "mine", "--export", "tar"], "--export"),
        (["adapt", READY, "--support", "mine", "--steps", "-1"], "--steps"),
        (["adapt", READY], "--support"),
        (["predict", READY, "mine"], "must be a folder made by `fewstep adapt`"),
        (["predict", "mine", "mine"], "must be a folder made by `fewstep adapt`"),
    ],
)
def test_bad_words_are_one_clear_error_and_write_nothing(fewstep, support, tmp_path, words, told):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = fewstep(*words)
    assert code == 2
    assert told in err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_pictures_to_predict_are_one_clear_error(fewstep, adapted, tmp_path):
    (tmp_path / "note.png").write_text("not a picture")
    assert "note.png" in fewstep("predict", adapted, "note.png")[2]
    assert fewstep("predict", adapted, "nowhere.png")[0] == 2
    Image.new("L", (50, 50), 255).save(tmp_path / "blank.png")
    assert "nothing seen" in fewstep("predict", adapted, "blank.png")[1]
    assert "run" in fewstep("evaluate", adapted)[2]


def test_paths_that_lead_nowhere_are_said_to(fewstep, adapted):
    for words in (
        ("predict", adapted, "nope.png"),
        ("adapt", READY, "--support", "nope.png"),
        ("data", "check", "nope.png"),
    ):
        code, _, err = fewstep(*words)
        assert code != 0
        assert "there is no nope.png" in " ".join(err.split())
        assert "--data" not in err
