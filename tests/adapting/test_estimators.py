"""The scikit-learn estimators: its own checks, its tools around them, and the runs behind them."""

from __future__ import annotations

import shutil
import sys
from collections import OrderedDict

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import fewstep
from fewstep import FewShotClassifier, FewShotRegressor
from fewstep.errors import RecipeError, RunError
from fewstep.experiments.recipe_files import load_recipe, recipe_values
from fewstep.experiments.runs import READY
from fewstep.training.checkpoint import save_meta
from fewstep.training.records import RunFolder

from .drawn import SHAPES, draw

PICTURES, SINE = "omniglot-5way-1shot", "sinusoid-10shot"
CANNOT_APPLY: dict[str, str] = {}
"""Checks of scikit-learn that the estimators fail, with the reason: none."""


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [FewShotClassifier(steps=50), FewShotRegressor(steps=50)],
    expected_failed_checks=lambda _: CANNOT_APPLY,
)
def test_scikit_learns_conventions_are_kept(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Drawings of four shapes, three each, uint8 `[examples, height, width]`, and their names."""
    folder = tmp_path_factory.mktemp("drawings")
    names = [name for name in list(SHAPES)[:4] for _ in range(3)]
    files = [draw(name, folder / f"{index}.png", moved=2 * (index % 3)) for index, name in enumerate(names)]
    return np.stack([np.asarray(Image.open(file)) for file in files]), np.array(names)


@pytest.fixture
def sine():
    """Ten points of a sinusoid to learn from, and fifty others."""
    x = np.random.default_rng(0).uniform(-5, 5, (60, 1))
    y = 3 * np.sin(x[:, 0] - 1)
    return x[:10], y[:10], x[10:], y[10:]


def test_a_sinusoid_is_learned_from_ten_points_as_nothing_learns_it_from_scratch(sine):
    x, y, new, truth = sine
    assert FewShotRegressor.from_run(SINE).fit(x, y).score(new, truth) > 0.9
    assert FewShotRegressor().fit(x, y).score(new, truth) < 0.9


def test_the_classifier_is_that_of_adapt(drawings):
    images, names = drawings
    classifier = FewShotClassifier.from_run(PICTURES).fit(images[::3], names[::3])
    assert classifier.score(images, names) == 1
    prepared = fewstep.adapt(PICTURES, _prepared(images[::3], names[::3]))
    expected = prepared.probabilities(torch.cat(list(_prepared(images, names).values())))
    np.testing.assert_allclose(classifier.predict_proba(images), expected, atol=1e-4)
    assert list(classifier.classes_) == list(prepared.classes)
    assert (classifier.head_, classifier.steps_) == (prepared.head, prepared.steps)


def _prepared(images, names):
    from fewstep.adapting.initialisation import preparation_of
    from fewstep.tasks.images import prepare_arrays

    prepared = prepare_arrays(images[:, None], preparation_of(PICTURES))
    return {name: prepared[torch.tensor(names == name)] for name in np.unique(names)}


def test_pictures_may_be_levels_or_fractions_flat_or_not_grey_or_coloured(drawings):
    images, names = drawings
    classifier = FewShotClassifier.from_run(PICTURES)
    expected = classifier.fit(images, names).predict_proba(images)
    colours = np.stack([images] * 3, axis=1)
    for same in (images / 255, images[:, None], images.reshape(len(images), -1).astype(int), colours, images + 0.0):
        np.testing.assert_array_equal(classifier.fit(same, names).predict_proba(same), expected)
    with pytest.raises(ValueError, match=r"fractions from 0 to 1: got float64 from 0\.5 to 220\.5"):
        classifier.fit(images - images.min() + 0.5, names)
    with pytest.raises(ValueError, match="channels first"):
        classifier.fit(np.moveaxis(colours, 1, 3), names)
    with pytest.raises(ValueError, match="flattened square"):
        classifier.fit(np.zeros((4, 10)), list("abab"))


def test_pixels_keep_the_scale_of_the_first_examples(drawings, caplog):
    images, names = drawings
    levels = FewShotClassifier.from_run(PICTURES).fit(images, names)
    dark = np.minimum(images[:1], 1)
    np.testing.assert_allclose(
        levels.predict_proba(dark), levels.predict_proba(np.concatenate([dark, images[1:2]]))[:1], rtol=1e-9
    )
    with pytest.raises(ValueError, match=r"here whole numbers from 0 to 255: got float64"):
        levels.predict(images / 255)
    with pytest.raises(ValueError, match=r"here whole numbers from 0 to 255: got (bool|float64) from 0 to 1"):
        levels.predict((images > 100) * 1.0)
    with pytest.raises(ValueError, match=r"here whole numbers from 0 to 255: got bool"):
        levels.predict(images > 100)
    masks = images > 100
    as_bool = FewShotClassifier.from_run(PICTURES).fit(masks, names)
    expected = as_bool.predict_proba(masks)
    assert as_bool.score(masks, names) == 1
    for same in (masks.astype(np.uint8), masks.astype(float)):
        np.testing.assert_array_equal(as_bool.predict_proba(same), expected)
        np.testing.assert_array_equal(as_bool.fit(same, names).predict_proba(masks), expected)
    with pytest.raises(ValueError, match=r"here fractions from 0 to 1: got uint8 from 20"):
        as_bool.predict(images)
    caplog.clear()
    as_bool.fit(images // 16, names)
    assert "Pixels from 0 to 1" in caplog.text
    with pytest.raises(ValueError, match="keep one scale"):
        as_bool.partial_fit(images / 255, names)


def test_other_shapes_than_those_fitted_are_refused(drawings):
    images, names = drawings
    classifier = FewShotClassifier.from_run(PICTURES).fit(images[:, :50], names)
    with pytest.raises(ValueError, match="shape of the first ones"):
        classifier.predict(images[:, :, :50])
    with pytest.raises(ValueError, match="5000 features"):
        classifier.predict(images)


def test_examples_that_come_in_parts_count_like_those_that_come_at_once(drawings, sine):
    images, names = drawings
    classes = np.unique(names)
    parts = FewShotClassifier.from_run(PICTURES).partial_fit(images[:3], names[:3], classes)
    np.testing.assert_array_equal(parts.predict_proba(images), np.eye(4)[[0] * 12])  # only one class has come
    parts.partial_fit(images[3:6], names[3:6])
    assert (parts.predict_proba(images)[:, 2:] == 0).all()
    parts.partial_fit(images[6:], names[6:])
    whole = FewShotClassifier.from_run(PICTURES).fit(images, names)
    np.testing.assert_array_equal(parts.predict_proba(images), whole.predict_proba(images))
    x, y, new, _ = sine
    parts = FewShotRegressor.from_run(SINE).partial_fit(x[:4], y[:4]).partial_fit(x[4:], y[4:])
    np.testing.assert_array_equal(parts.predict(new), FewShotRegressor.from_run(SINE).fit(x, y).predict(new))


def test_a_fit_that_failed_leaves_the_next_one_as_it_would_be(drawings):
    images, names = drawings
    classifier, classes = FewShotClassifier.from_run(PICTURES, steps=-1), sorted(set(names))
    with pytest.raises(RecipeError, match="steps"):
        classifier.partial_fit(images[:3], names[:3], classes)
    classifier.set_params(steps=1).partial_fit(images[:3], names[:3], classes).predict(images)


def test_partial_fit_knows_the_classes_from_its_first_call(drawings):
    images, names = drawings
    with pytest.raises(ValueError, match="first call"):
        FewShotClassifier(PICTURES).partial_fit(images, names)
    with pytest.raises(ValueError, match=r"among the classes.*'corner'.*got \['slash'"):
        FewShotClassifier(PICTURES).partial_fit(images, names, ["bar", "corner", "cross"])
    with pytest.raises(ValueError, match="Give the same targets"):
        FewShotRegressor().partial_fit(np.eye(3), np.eye(3)).partial_fit(np.eye(3), np.ones(3))


def test_steps_are_searched_and_validated_like_any_parameter(sine):
    x, y, *_ = sine
    pipeline = make_pipeline(FunctionTransformer(np.negative), FewShotRegressor.from_run(SINE))
    assert cross_val_score(pipeline, x, y, cv=2, error_score="raise").shape == (2,)
    search = GridSearchCV(FewShotRegressor.from_run(SINE), {"steps": [0, 10]}, cv=2, error_score="raise").fit(x, y)
    assert search.best_params_ == {"steps": 10}
    assert search.best_estimator_.steps_ == 10


def test_predictions_need_the_run_no_more(drawings, tmp_path):
    images, names = drawings
    run = shutil.copytree(READY / PICTURES, tmp_path / "run")
    classifier = FewShotClassifier.from_run(run, steps=1, head="zero").fit(images, names)
    before = classifier.predict_proba(images)
    shutil.rmtree(run)
    np.testing.assert_array_equal(classifier.predict_proba(images), before)


def test_fitted_estimators_are_kept_on_disk_and_unfitted_ones_are_cloned(drawings, tmp_path):
    images, names = drawings
    classifier = FewShotClassifier.from_run(PICTURES, steps=1, head="zero").fit(images, names)
    joblib.dump(classifier, tmp_path / "classifier.joblib")
    kept = joblib.load(tmp_path / "classifier.joblib")
    np.testing.assert_array_equal(kept.predict_proba(images), classifier.predict_proba(images))
    copy = clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert not hasattr(copy, "module_")


def test_a_run_on_a_table_is_used_in_the_users_units(tmp_path, caplog):
    rng = np.random.default_rng(0)
    rows = [
        f"t{task},{a:.3f},{b:.3f},{1000 + 100 * task * a:.3f},{b - task:.3f}"
        for task in range(8)
        for a, b in rng.normal(size=(6, 2))
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["task,a,b,big,small", *rows]))
    recipe = {
        "tasks": {
            "kind": "table",
            "path": str(tmp_path / "mine.csv"),
            "task": "task",
            "inputs": ["a", "b"],
            "targets": ["big", "small"],
            "shots": 3,
            "queries": 3,
        },
        "model": {"kind": "mlp"},
        "algorithm": {"kind": "maml", "inner_lr": 0.1},
        "meta": {"iterations": 20, "batch_size": 4},
    }
    run = fewstep.train(recipe, out=tmp_path / "run")
    x, y = rng.normal(size=(5, 2)), rng.normal([1000, 0], size=(5, 2))
    regressor = FewShotRegressor.from_run(run, steps=3).fit(x, y)
    learner, scale = fewstep.load(run), fewstep.standardization(run)
    adapted = learner.adapt(scale.standardize(fewstep.Batch(torch.tensor(x), torch.tensor(y))), 3)
    expected = scale.restore(adapted(scale.inputs(torch.tensor(x))))
    np.testing.assert_allclose(regressor.predict(x), expected, rtol=1e-5)
    assert "lie far" not in caplog.text
    regressor.predict(1000 * x)
    assert (
        "Inputs lie far from those that the run was trained with, in standard deviations of these: a (" in caplog.text
    )
    with pytest.raises(ValueError, match="2 in X and 2 in y: got 2 and 1"):
        regressor.fit(x, y[:, 0])
    with pytest.raises(ValueError, match="2 in X and 2 in y: got 1 and 2"):
        clone(regressor).fit(x[:, :1], y)


def test_a_module_of_ones_own_classifies_features(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(body=nn.Linear(6, 16), relu=nn.ReLU(), head=nn.Linear(16, 5)))
    recipe = {"tasks": {"kind": "custom"}, "loss": {"kind": "cross_entropy"}, "model": {"kind": "custom"}}
    recipe |= {"algorithm": {"kind": "maml", "inner_lr": 0.1}}
    RunFolder.create(tmp_path, recipe_values(load_recipe(recipe)), {})
    learner = fewstep.SupervisedLearner(module, nn.functional.cross_entropy, fewstep.maml(fewstep.Sgd(0.1)))
    save_meta(tmp_path / "params.safetensors", learner.meta, {"constants": learner.constants()})
    x = np.random.default_rng(0).normal(size=(40, 6))
    y = np.where(x[:, 0] > 0, "right", "left")
    x[:, 0] *= 9
    classifier = FewShotClassifier.from_run(tmp_path, model=module).fit(x[:20], y[:20])
    assert classifier.head_ == "prototype"
    assert classifier.score(x[20:], y[20:]) > 0.9
    untrained = FewShotClassifier(model=module, random_state=None).fit(x[:20], y[:20])
    assert untrained.score(x[:20], y[:20]) == 1


def test_runs_that_learned_something_else_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"must have learned.*loss.kind = 'mse'\. Use another run"):
        FewShotClassifier.from_run(SINE)
    with pytest.raises(RecipeError, match=r"loss.kind = 'cross_entropy'\. Use another run"):
        FewShotRegressor.from_run(PICTURES)
    with pytest.raises(RunError):
        FewShotRegressor.from_run(tmp_path / "none")


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "fewstep.estimators")
    with pytest.raises(ImportError, match=r"pip install 'fewstep\[sklearn\]'"):
        fewstep.FewShotClassifier  # noqa: B018


def test_reversed_views_are_as_good_as_copies(sine):
    x, y, new, _ = sine
    whole = FewShotRegressor(steps=5, random_state=0).fit(x[::-1].copy(), y[::-1].copy()).predict(new[::-1].copy())
    assert FewShotRegressor(steps=5, random_state=0).fit(x[::-1], y[::-1]).predict(new[::-1]) == pytest.approx(whole)
    FewShotClassifier(steps=5, random_state=0).fit(x[::-1], (y > 0)[::-1]).predict(new[::-1])
