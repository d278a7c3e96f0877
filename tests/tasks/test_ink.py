"""Drawings on paper in any light and of any size become like careful scans."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fewstep.errors import DataError
from fewstep.tasks.images import Preparation, read_pictures, without_drawing
from fewstep.tasks.ink import clean

CLEANED = Preparation(28, channels=1, invert="auto", clean=True)


def drawn(size=(140, 120), corner=(30, 25), scale=1.0):
    """A tick on white paper; its strokes are 5 pixels wide."""
    page = Image.new("L", size, 255)
    points = [(corner[0] + scale * x, corner[1] + scale * y) for x, y in ((0, 40), (20, 60), (60, 0))]
    ImageDraw.Draw(page).line(points, fill=0, width=round(5 * scale), joint="curve")
    return page


def photographed(page, *, ink=100, paper=180, shade=50, noise=3):
    """The same in faint ink, lit from one side."""
    light = paper + np.linspace(-shade / 2, shade / 2, page.width)
    share = np.asarray(page, dtype=float) / 255
    levels = light * (share + (1 - share) * ink / 255)
    return Image.fromarray((levels + np.random.RandomState(0).normal(0, noise, levels.shape)).clip(0, 255).astype("u1"))


def levels(image, preparation=CLEANED):
    return read_pictures([image], preparation)[0, 0].float() / 255


def difference(one, other):
    return (levels(one) - levels(other)).abs().mean().item()


def test_place_and_margins_do_not_matter():
    assert difference(drawn(), drawn((400, 300), (300, 200))) < 0.005


def test_size_does_not_matter():
    assert difference(drawn(), drawn((900, 900), (100, 300), scale=6)) < 0.03


def test_faint_ink_in_uneven_light_becomes_black_on_white():
    assert difference(drawn(), photographed(drawn())) < 0.03
    uncleaned = Preparation(28, channels=1, invert="auto")
    assert (levels(drawn()) - levels(photographed(drawn()), uncleaned)).abs().mean() > 0.15


def test_light_ink_on_dark_paper_is_the_same_drawing():
    assert difference(drawn(), Image.eval(drawn(), lambda level: 255 - level)) < 0.005


def test_drawings_keep_their_proportions_in_the_middle_of_a_square():
    cleaned = clean(drawn((400, 300), (300, 200)))
    rows, columns = (np.flatnonzero((np.asarray(cleaned) < 128).any(axis)) for axis in (1, 0))
    assert cleaned.width == cleaned.height
    assert max(np.ptp(rows), np.ptp(columns)) / cleaned.width == pytest.approx(0.65, abs=0.03)
    assert rows.mean() == pytest.approx(cleaned.height / 2, abs=2)
    assert columns.mean() == pytest.approx(cleaned.width / 2, abs=2)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (200, 100)])
def test_an_empty_page_stays_as_it_came(size):
    page = Image.new("L", size, 230)
    assert np.array_equal(np.asarray(clean(page)), np.asarray(page))


def test_noise_alone_is_no_ink():
    page = photographed(Image.new("L", (200, 200), 255), noise=6)
    assert clean(page) is page


def test_colour_pictures_are_not_cleaned():
    with pytest.raises(DataError, match="clean true or false"):
        Preparation(28, channels=3, clean=True)


def test_what_earlier_versions_stored_is_not_cleaned():
    stored = Preparation(28, channels=1, invert="auto").to_dict()
    stored.pop("clean")
    assert not Preparation.from_dict(stored).clean


@pytest.mark.parametrize("pen", [1, 3, 8])
def test_thin_pens_on_large_pages_leave_ink_that_can_be_seen(pen):
    page = Image.new("L", (1000, 1000), 255)
    ImageDraw.Draw(page).line([(200, 500), (400, 700), (800, 200)], fill=0, width=pen)
    assert levels(page).max() > 0.7
    assert levels(page).mean() == pytest.approx(levels(drawn()).mean().item(), rel=0.5)


@pytest.mark.parametrize(("paper", "ink"), [(100, 60), (60, 20), (30, 0), (200, 255), (150, 220)])
def test_the_polarity_is_relative_to_the_paper(paper, ink):
    dim = Image.eval(drawn(), lambda level: round(ink + (paper - ink) * level / 255))
    assert difference(drawn(), dim) < 0.02


def test_light_ink_on_transparency_is_seen_and_dark_ink_stays_as_it_is():
    clear = Image.new("RGBA", drawn().size)
    for level in (255, 0):
        ink = Image.new("RGBA", clear.size, (level, level, level, 255))
        assert difference(drawn(), Image.composite(clear, ink, drawn())) < 0.005


def test_pictures_without_a_drawing_are_told_from_those_with_one():
    shaded = photographed(Image.new("L", (140, 120), 255))
    pictures = [drawn(), Image.new("L", (50, 50), 255), shaded, Image.new("L", (1, 1)), photographed(drawn())]
    images = (255 * torch.stack([levels(each) for each in pictures])).byte().unsqueeze(1)
    assert without_drawing(images, CLEANED) == [1, 2, 3]
