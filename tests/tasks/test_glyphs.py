"""Glyphs: which characters are classes, and how they are drawn. All are chosen once; few are drawn."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from fontTools.pens.recordingPen import DecomposingRecordingPen
from fontTools.ttLib import TTFont
from torch.nn.functional import normalize

import fewstep
from fewstep.errors import DataError
from fewstep.experiments.data import load_data
from fewstep.experiments.recipe_files import load_recipe
from fewstep.tasks import glyph_drawing, glyphs
from fewstep.tasks.glyph_choice import SPLITS, Glyph, choose_glyphs, find_repeated
from fewstep.tasks.glyph_drawing import Outline, draw, draw_examples, open_typeface, outline
from fewstep.tasks.glyphs import TYPEFACES, font_folder, load_glyphs, split_names


@pytest.fixture(scope="module")
def chosen() -> list[Glyph]:
    return choose_glyphs([open_typeface(font_folder() / name) for name in TYPEFACES])


@pytest.fixture(scope="module")
def sample(chosen: list[Glyph]) -> torch.Tensor:
    """Drawings of every fortieth character."""
    return torch.stack([draw_examples(each.typefaces, each.code_point, 20, seed=0) for each in chosen[::40]])


def outlines_of(chosen: list[Glyph], split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes as doubles, with less blur and more detail than those that were compared; and aspects."""
    drawn = [outline(each.typefaces[0].file, each.code_point, 48) for each in chosen if each.split == split]
    return torch.stack([each.shape for each in drawn]).double(), torch.tensor([each.aspect for each in drawn])


def test_there_are_thousands_of_classes_with_scripts_of_their_own_in_each_split(chosen):
    counts = Counter(each.split for each in chosen)
    assert counts["train"] > 2500
    assert counts["val"] > 80
    assert counts["test"] > 120
    assert len({each.code_point for each in chosen}) == len({each.name for each in chosen}) == len(chosen)
    scripts = [script for split in SPLITS.values() for script in split]
    assert len(scripts) == len(set(scripts))
    assert {each.script for each in chosen} == set(scripts)


def test_a_letter_that_scripts_share_is_one_class(chosen):
    names = {each.name for each in chosen}
    assert "Latin/U+0041" in names
    assert not names & {"Greek/U+0391", "Cyrillic/U+0410"}  # Alpha and A
    assert "Latin/U+004F" in names
    assert not names & {"Greek/U+039F", "Cyrillic/U+041E", "Armenian/U+0555", "Tifinagh/U+2D54"}  # circles


def test_no_outline_is_on_both_sides_of_a_split_even_turned(chosen):
    train, val, test = (outlines_of(chosen, split) for split in ("train", "val", "test"))
    for (one, aspects), (other, other_aspects) in ((train, val), (train, test), (val, test)):
        for quarters in range(4):
            cosines = normalize(one.flatten(1)) @ normalize(torch.rot90(other, quarters, (1, 2)).flatten(1)).T
            turned_aspects = 1 / other_aspects if quarters % 2 else other_aspects
            comparable = (aspects.unsqueeze(1) / turned_aspects).log().abs() < 0.4
            assert cosines[comparable].max() < 0.95


def test_no_two_classes_have_the_same_curves_in_their_font(chosen):
    """Independent of drawing: the fonts' own outlines, moved to one place."""
    seen = set()
    for file in {each.typefaces[0].file for each in chosen}:
        with TTFont(file) as font:
            shapes, names = font.getGlyphSet(), font.getBestCmap()
            for each in chosen:
                if each.typefaces[0].file == file:
                    pen = DecomposingRecordingPen(shapes)
                    shapes[names[each.code_point]].draw(pen)
                    points = [point for _, points in pen.value for point in points if point]
                    left, bottom = (min(coordinates) for coordinates in zip(*points, strict=True))
                    curves = str([[(x - left, y - bottom) for x, y in filter(None, p)] for _, p in pen.value])
                    assert (file, curves) not in seen, each.name
                    seen.add((file, curves))


def test_blanks_repetitions_and_turned_copies_in_later_splits_are_found():
    half, corner, blank = torch.zeros(3, 8, 8, dtype=torch.uint8)
    half[:, :4] = corner[:4, :4] = 255
    turned = half.T.contiguous()
    shapes = [(half, 1), (turned, 1), (half, 1.2), (half, 3), (blank, 1), (turned, 1), (corner, 1), (turned, 0.33)]
    outlines = [Outline(shape, aspect) for shape, aspect in [*shapes, (turned, 9)]]
    repeated = find_repeated(outlines, ["train"] * 5 + ["val"] * 2 + ["test"] * 2)
    assert repeated.tolist() == [False, False, True, False, True, True, False, True, False]


def test_no_drawing_is_blank_and_none_fills_its_paper(sample):
    assert sample.dtype == torch.uint8
    assert sample.shape[1:] == (20, 1, 28, 28)
    assert sample.flatten(2).amax(-1).min() > 40
    assert sample.float().mean((2, 3, 4)).max() < 0.6 * 255
    assert sample.float().mean() < 30  # mostly paper, which is 0


def test_drawings_of_a_character_differ_but_less_than_characters_do(sample):
    flat = sample.flatten(2).float() / 255
    assert min(len(examples.unique(dim=0)) for examples in flat) == 20
    within = (flat - flat.mean(1, keepdim=True)).square().sum(-1).mean()
    overall = (flat - flat.mean((0, 1))).square().sum(-1).mean()
    assert 0.3 < within / overall < 0.8


def test_characters_are_about_as_hard_to_tell_apart_as_omniglots(sample):
    """Nearest neighbour in pixels, 5-way 1-shot: about 43 % on Omniglot."""
    tasks = fewstep.FewShot(sample, 5, 1, 1).sample(1000, torch.Generator().manual_seed(0))
    nearest = torch.cdist(tasks.query.inputs.flatten(2), tasks.support.inputs.flatten(2)).argmin(-1)
    assert 0.33 < (nearest == tasks.query.targets).float().mean() < 0.53


def test_drawings_depend_on_character_and_seed_alone(chosen, sample):
    draw.cache_clear()
    each = chosen[40]
    assert torch.equal(draw_examples(each.typefaces, each.code_point, 20, seed=0), sample[1])
    assert torch.equal(draw_examples(each.typefaces, each.code_point, 5, seed=0), sample[1, :5])
    assert not torch.equal(draw_examples(each.typefaces, each.code_point, 20, seed=1), sample[1])


@pytest.mark.parametrize("pen", glyph_drawing.PENS)
def test_a_pen_widens_strokes_or_thins_them_as_far_as_they_last(pen):
    sans, letter, hairlines = font_folder() / "DejaVuSans.ttf", ord("H"), 0x25E6
    ink = [glyph_drawing._ink(draw(sans, letter, each)) for each in (0, pen)]
    assert (ink[1] > ink[0]) == (pen > 0)
    assert (ink[1] < ink[0]) == (pen < 0)
    assert glyph_drawing._ink(draw(sans, hairlines, pen)) > 0.3 * glyph_drawing._ink(draw(sans, hairlines))


@pytest.mark.usefixtures("few_scripts")
def test_glyphs_are_drawn_once_and_then_read(tmp_path, monkeypatch, caplog):
    first = load_glyphs()
    (file,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(glyphs, "choose_glyphs", None)
    again = load_glyphs()
    assert torch.equal(again.images, first.images)
    assert again[1:] == first[1:]
    monkeypatch.undo()
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    assert glyphs._key(font_folder()) not in file.name  # other scripts, other file


@pytest.mark.usefixtures("few_scripts")
def test_a_damaged_cache_is_drawn_again(tmp_path, caplog):
    first = load_glyphs()
    (file,) = (tmp_path / "cache").iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert load_glyphs().content_hash == first.content_hash
    assert "prepared again" in caplog.text
    assert load_glyphs().content_hash == first.content_hash


@pytest.mark.usefixtures("few_scripts")
def test_each_split_has_the_characters_of_its_scripts():
    drawn = load_glyphs()
    splits = split_names(drawn)
    assert list(splits) == ["train", "val", "test"]
    assert min(map(len, splits.values())) > 5
    assert [name for names in splits.values() for name in names] == list(drawn.classes)
    assert torch.equal(torch.cat([drawn.only(names)[0] for names in splits.values()]), drawn.images)


@pytest.mark.usefixtures("few_scripts")
def test_the_recipe_draws_tasks_from_them_and_remembers_which_they_were():
    data = load_data(load_recipe("glyphs-5way-1shot"))
    drawn = load_glyphs()
    assert data.record["content_hash"] == drawn.content_hash
    assert data.record["counts"]["val"]["classes"] == len(split_names(drawn)["val"])
    task = data.distribution("val", None, 3).sample(2, torch.Generator().manual_seed(0))
    assert task.support.inputs.shape == (2, 5, 1, 28, 28)
    assert task.query.inputs.shape == (2, 15, 1, 28, 28)
    with pytest.raises(DataError, match="content hash"):
        load_data(load_recipe("glyphs-5way-1shot"), stored={"content_hash": "of other fonts"})


def test_missing_fonts_are_named(tmp_path, monkeypatch):
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(glyphs, "find_spec", lambda name: Spec)
    with pytest.raises(DataError, match=r"no DejaVuSans.ttf and no .* there. Install matplotlib again"):
        load_glyphs()
    monkeypatch.setattr(glyphs, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="Install matplotlib again"):
        load_glyphs()


def test_a_broken_font_is_named(tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    with pytest.raises(DataError, match=r"broken.ttf is expected, and cannot be read"):
        open_typeface(broken)
    with pytest.raises(DataError, match=r"missing.ttf is expected, and cannot be read"):
        open_typeface(Path(tmp_path / "missing.ttf"))


def test_matplotlib_and_fonttools_are_not_imported_for_glyphs_that_are_drawn_already():
    code = (
        "import sys, fewstep.tasks.glyphs as g; g.font_folder(); print({'matplotlib', 'fontTools'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
