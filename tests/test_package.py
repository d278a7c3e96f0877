"""The package as a whole: light to import, honest about what it exports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fewstep

HEAVY = ("torch", "pydantic", "matplotlib", "typer", "rich", "PIL", "tensorboard", "sklearn", "gymnasium", "mujoco")


def imported_by(statement):
    script = f"import sys; {statement}; print(*sorted(m for m in {HEAVY!r} if m in sys.modules))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()


def test_importing_fewstep_imports_nothing_heavy():
    assert imported_by("import fewstep") == []


def test_using_the_core_imports_torch_and_nothing_heavy_beside_it():
    assert imported_by("from fewstep import maml, Sgd, SupervisedLearner") == ["torch"]


def test_training_imports_no_plotting_and_no_extra():
    assert set(imported_by("from fewstep import train, evaluate, load")) <= {"torch", "pydantic", "PIL"}


def test_listing_recipes_does_not_import_torch():
    assert "torch" not in imported_by("from fewstep.experiments.recipe_files import bundled_recipes; bundled_recipes()")


def test_the_front_door_is_sorted_complete_and_short():
    assert fewstep.__all__ == sorted(fewstep.__all__)
    assert len(fewstep.__all__) <= 36
    for name in fewstep.__all__:
        assert getattr(fewstep, name).__doc__, name
    assert set(dir(fewstep)) == set(fewstep.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="mamel"):
        fewstep.mamel  # noqa: B018
