"""`fewstep render` films robots, and says what it cannot film."""

from __future__ import annotations

import pytest
from PIL import Image

import fewstep
from fewstep.errors import FewstepError
from fewstep.experiments.recipe_files import load_recipe
from fewstep.experiments.render_run import render

TINY = [
    "meta.iterations=0",
    "model.hidden=[4]",
    "tasks.horizon=4",
    "tasks.trajectories=2",
    "validation.tasks=2",
]


def test_a_film_has_a_row_for_each_task_and_a_column_for_each_number_of_steps(tmp_path, screenless):
    run = fewstep.train(load_recipe("cheetah-direction-oracle", TINY), out=tmp_path / "run")
    tasks = render(run, tmp_path / "film.gif", steps=(0, 1), tasks=1)
    assert set(tasks) <= {-1.0, 1.0}
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (2 * 480, 360)
        assert film.n_frames > 1
        captions = film.convert("L").crop((0, 0, 2 * 480, 19))
    assert captions.getpixel((1, 1)) == 0
    assert [captions.crop((x, 0, x + 480, 19)).getextrema()[1] > 200 for x in (0, 480)] == [True, True]


def test_what_is_no_robot_cannot_be_filmed(tmp_path):
    with pytest.raises(FewstepError, match="sinusoid-10shot is one of sinusoid tasks"):
        render("sinusoid-10shot", tmp_path / "film.gif")


def test_a_film_is_a_gif_after_numbers_of_steps(tmp_path):
    run = fewstep.train(load_recipe("cheetah-direction", TINY), out=tmp_path / "run")
    with pytest.raises(FewstepError, match=r"must be a GIF in a folder that is there: got .*film\.mp4"):
        render(run, tmp_path / "film.mp4")
    with pytest.raises(FewstepError, match=r"must be a GIF in a folder that is there"):
        render(run, tmp_path / "nowhere" / "film.gif")
    with pytest.raises(FewstepError, match=r"got \[-1\] and 2"):
        render(run, tmp_path / "film.gif", steps=(-1,))
