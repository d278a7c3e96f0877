"""A run, adapted to the user's own pictures: any number of classes and of pictures, kept, loaded and continued."""

from __future__ import annotations

import json
import re
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

import fewstep
from fewstep.adapting import classifier as classifier_module
from fewstep.adapting.classifier import load_adapted
from fewstep.adapting.initialisation import preparation_of
from fewstep.errors import DataError, FewstepError, RecipeError, RunError
from fewstep.experiments.recipe_files import load_recipe, recipe_values
from fewstep.experiments.runs import open_run
from fewstep.learners.heads import with_ways
from fewstep.training.checkpoint import save_meta
from fewstep.training.records import RunFolder

from .drawn import SHAPES, draw, draw_support

READY = "omniglot-5way-1shot"
RAGGED = {"bar": 1, "cross": 3, "square": 2}


@pytest.fixture
def support(tmp_path):
    return draw_support(tmp_path / "support", RAGGED)


@pytest.fixture
def queries(tmp_path):
    return [draw(name, tmp_path / "new" / f"{name}.png", moved=-3, size=(60, 60)) for name in RAGGED]


def same(one, other, files):
    """Whether two classifiers are one."""
    left, right = one.predict(files), other.predict(files)
    return left == right and all(
        torch.equal(value, other.module.state_dict()[name]) for name, value in one.module.state_dict().items()
    )


def custom_run(folder, module, **changed):
    """The folder of a run on pictures with a module from Python, as training would leave it."""
    recipe = {
        "tasks": {"kind": "omniglot", "ways": 5},
        "model": {"kind": "custom"},
        "algorithm": {"kind": "maml", "inner_lr": 0.4},
    } | changed
    values = recipe_values(load_recipe(recipe))
    folder.mkdir(exist_ok=True)
    RunFolder.create(folder, values, {})
    learner = fewstep.SupervisedLearner(module, nn.functional.cross_entropy, fewstep.maml(fewstep.Sgd(0.1)))
    save_meta(folder / "params.safetensors", learner.meta, {"iteration": "3", "constants": learner.constants()})
    return folder


def small_module(tracks=False, head="head"):
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(1, 8, 5, stride=4), "norm": nn.BatchNorm2d(8, track_running_stats=tracks)}
    layers |= {"relu": nn.ReLU(), "flat": nn.Flatten(), head: nn.Linear(288, 5)}
    return nn.Sequential(OrderedDict(layers))


def test_new_classes_are_told_apart_from_a_few_pictures_each(support, queries):
    classifier = fewstep.adapt(READY, support)
    assert classifier.classes == ("bar", "cross", "square")
    assert classifier.head == "prototype"
    assert [prediction.label for prediction in classifier.predict(queries)] == list(RAGGED)
    for prediction in classifier.predict(queries):
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.probabilities[prediction.label] == max(prediction.probabilities.values())


def test_ink_may_be_dark_on_light_or_light_on_dark(tmp_path, support, queries):
    classifier = fewstep.adapt(READY, support)
    for file in queries:
        with Image.open(file) as drawn:
            ImageOps.invert(drawn).save(tmp_path / "light.png")
        assert classifier.predict([tmp_path / "light.png"])[0].label == file.stem


def test_as_many_classes_as_trained_use_the_trained_head(tmp_path):
    support = draw_support(tmp_path / "support", dict.fromkeys(list(SHAPES)[:5], 1))
    assert fewstep.adapt(READY, support).head == "trained"
    assert fewstep.adapt(READY, support, head="zero").head == "zero"


def test_steps_are_those_that_the_recipe_is_evaluated_with_unless_given(support):
    assert fewstep.adapt(READY, support).steps == 3
    assert fewstep.adapt(READY, support, steps=0).steps == 0


def test_steps_may_be_a_number_of_numpy_s(tmp_path, support):
    folder = fewstep.adapt(READY, support).save(tmp_path / "adapted")
    assert fewstep.load(fewstep.adapt(folder, support, steps=np.int64(2)).save(folder)).steps == 2


def test_one_picture_at_a_time_gives_the_same_answer_as_all_at_once(support, queries):
    classifier = fewstep.adapt(READY, support)
    together = classifier.predict(queries)
    for file, expected in zip(queries, together, strict=True):
        [alone] = classifier.predict([file])
        assert alone.label == expected.label
        assert alone.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_prepared_pictures_and_arrays_by_class_do_as_well_as_files(support, queries):
    classifier = fewstep.adapt(READY, support)
    again = fewstep.adapt(READY, dict(reversed(classifier.support.items())))
    assert same(classifier, again, queries)
    images = torch.cat(list(classifier.support.values()))
    assert [each.image for each in classifier.predict(images)] == [str(n) for n in range(6)]


def test_an_adapted_model_is_an_ordinary_module_with_the_statistics_of_its_support(support):
    classifier = fewstep.adapt(READY, support, steps=0, head="prototype")
    images = torch.cat(list(classifier.support.values())).float() / 255
    seen = classifier.module.body[0].conv(images)
    norm = classifier.module.body[0].norm
    assert not classifier.module.training
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3), correction=0))


def test_what_is_saved_loads_as_what_it_was(tmp_path, support, queries):
    classifier = fewstep.adapt(READY, support)
    folder = classifier.save(tmp_path / "adapted")
    loaded = fewstep.load(folder)
    assert same(classifier, loaded, queries)
    with pytest.raises(FewstepError, match="Leave them out"):
        fewstep.load(folder, device="cuda")
    assert loaded.preparation == classifier.preparation
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "init.safetensors",
        "support.safetensors",
    }
    config = json.loads((folder / "config.json").read_text())["adapted"]
    assert config["classes"] == list(RAGGED)
    assert config["pictures"] == list(RAGGED.values())
    assert config["source"]["run"] == READY


def test_continuing_equals_adapting_once_with_all_pictures(tmp_path, support, queries):
    more = draw_support(tmp_path / "more", {"square": 2, "zigzag": 1, "slash": 2}, first=5)
    everything = draw_support(tmp_path / "all", RAGGED)
    draw_support(everything, {"square": 2, "zigzag": 1, "slash": 2}, first=5)
    once = fewstep.adapt(READY, everything)
    folder = fewstep.adapt(READY, support).save(tmp_path / "adapted")
    continued = fewstep.adapt(folder, more)
    assert once.head == continued.head == "trained"  # there are five now
    assert same(once, continued, queries)
    other = fewstep.adapt(fewstep.adapt(READY, more), support)
    assert same(once, other, queries)
    continued.save(folder)
    assert same(once, fewstep.load(folder), queries)


def test_a_chosen_head_and_number_of_steps_are_kept_when_continuing(tmp_path, support):
    more = draw_support(tmp_path / "more", {"square": 1}, first=7)
    continued = fewstep.adapt(fewstep.adapt(READY, support, head="zero", steps=1), more)
    assert (continued.head, continued.steps) == ("zero", 1)
    assert len(continued.support["square"]) == 3


def test_a_picture_that_comes_twice_counts_once(support, queries):
    classifier = fewstep.adapt(READY, support)
    assert same(classifier, fewstep.adapt(classifier, support), queries)


def test_a_folder_with_something_in_it_is_refused_unless_it_is_the_one_continued(tmp_path, support):
    classifier = fewstep.adapt(READY, support)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(RunError, match=r"mine holds notes\.txt"):
        classifier.save(tmp_path / "mine")
    folder = classifier.save(tmp_path / "adapted")
    with pytest.raises(RunError, match="holds an adapted model"):
        classifier.save(folder)
    loaded = load_adapted(folder)
    loaded.save(folder)
    shutil.rmtree(folder)
    assert same(classifier, fewstep.load(loaded.save(folder)), [support / "bar" / "0.png"])
    for name in ("config.json", "model.safetensors"):  # a first save that was killed is begun again
        (folder / name).unlink()
    classifier.save(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "support.safetensors", "init.safetensors"])
def test_a_damaged_folder_is_told_of(tmp_path, support, name):
    folder = fewstep.adapt(READY, support).save(tmp_path / "adapted")
    (folder / name).write_bytes(b"no such thing")
    with pytest.raises(RunError, match="Restore it from a copy"):
        fewstep.load(folder)


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_save_that_is_cut_off_is_told_of(tmp_path, support, monkeypatch, written):
    folder = fewstep.adapt(READY, support).save(tmp_path / "model")
    more = fewstep.adapt(folder, draw_support(tmp_path / "more", {"corner": 1, "slash": 2}))
    files = [*classifier_module._STATE, "config.json"][:written]

    def stop_after(file, *_):
        if file.name not in files:
            raise KeyboardInterrupt
        return replaced(file)

    replaced = classifier_module.replaced
    monkeypatch.setattr(classifier_module, "replaced", stop_after)
    monkeypatch.setattr(classifier_module, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        more.save(folder)
    monkeypatch.undo()
    if written == 1:  # the initialisation is what it was: all is as before
        assert fewstep.load(folder).classes == tuple(RAGGED)
    else:
        with pytest.raises(RunError, match="is not the one that config"):
            fewstep.load(folder)


def test_another_checkpoint_of_an_adapted_model_is_refused(tmp_path, support):
    folder = fewstep.adapt(READY, support).save(tmp_path / "model")
    for model in (folder, fewstep.load(folder)):
        with pytest.raises(RecipeError, match="one initialisation"):
            fewstep.adapt(model, support, checkpoint="final")


def test_an_adapted_model_is_no_run(tmp_path, support):
    folder = fewstep.adapt(READY, support).save(tmp_path / "adapted")
    with pytest.raises(RunError, match="holds an adapted model"):
        open_run(folder)


@pytest.mark.parametrize("tracks", [True, False])
def test_a_module_of_ones_own_is_adapted_saved_and_continued(tmp_path, support, queries, tracks):
    run = custom_run(tmp_path / "run", small_module(tracks))
    classifier = fewstep.adapt(run, support, model=small_module(tracks))
    folder = classifier.save(tmp_path / "adapted")
    assert same(classifier, fewstep.load(folder, model=small_module(tracks)), queries)
    assert same(classifier, fewstep.adapt(folder, support, model=small_module(tracks)), queries)
    with pytest.raises(RecipeError, match="the module comes from Python"):
        fewstep.load(folder)


def test_a_module_without_a_head_is_told_how_to_have_one(tmp_path, support):
    run = custom_run(tmp_path / "run", small_module(head="last"))
    with pytest.raises(RecipeError, match=r"one nn\.Linear called 'head'"):
        fewstep.adapt(run, support, model=small_module(head="last"))


@pytest.mark.parametrize("head", ["zero", "mean"])
def test_a_head_that_is_not_adapted_cannot_begin_without_knowing_the_classes(tmp_path, support, head):
    run = custom_run(tmp_path / "run", small_module(), algorithm={"kind": "boil", "inner_lr": 0.1})
    assert fewstep.adapt(run, support, model=small_module()).head == "prototype"
    with pytest.raises(RecipeError, match="needs a head that the inner loop adapts"):
        fewstep.adapt(run, support, model=small_module(), head=head)


def test_learned_rates_fit_another_number_of_classes(tmp_path, support):
    recipe = {
        "tasks": {"kind": "omniglot"},
        "model": {"kind": "convnet", "filters": 4},
        "algorithm": {"kind": "meta_sgd"},
    }
    loaded = load_recipe(recipe)
    run = RunFolder.create(tmp_path, recipe_values(loaded), {})
    from fewstep.experiments.build import build_learner

    save_meta(tmp_path / "params.safetensors", build_learner(loaded).meta, {})
    assert fewstep.adapt(run, support).classes == tuple(RAGGED)


def test_a_run_that_saw_no_pictures_is_refused(support):
    with pytest.raises(RecipeError, match="trained on sinusoid tasks"):
        fewstep.adapt("sinusoid-10shot", support)


def test_too_few_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="two classes or more"):
        fewstep.adapt(READY, draw_support(tmp_path / "one", {"bar": 4}))
    with pytest.raises(DataError, match="two classes or more"):
        fewstep.adapt(READY, {"bar": torch.zeros(0, 1, 28, 28, dtype=torch.uint8), "x": []})


@pytest.mark.parametrize(
    ("support", "came"),
    [
        (["bar", "cross"], "a list"),
        (None, "a NoneType"),
        ({1: [], 2: []}, "the class 1"),
        ({"bar": [], 2: []}, "the class 2"),
    ],
)
def test_support_of_another_form_is_refused(support, came):
    with pytest.raises(DataError, match=rf"folder or zip archive \(str or Path\), or as a dict .*: got {came}\. Make"):
        fewstep.adapt(READY, support)


def test_of_no_pictures_there_are_no_predictions(support, monkeypatch):
    classifier = fewstep.adapt(READY, support)
    monkeypatch.setattr(classifier.module, "forward", None)  # some modules do not take none
    assert classifier.predict([]) == []
    assert classifier.probabilities(classifier.prepare([])).shape == (0, 3)


def test_pictures_of_another_shape_are_refused(support):
    classifier = fewstep.adapt(READY, support)
    with pytest.raises(DataError, match=r"uint8 \[pictures, 1, 28, 28\]: got float32"):
        classifier.predict(torch.zeros(2, 1, 28, 28))
    with pytest.raises(DataError, match=r"uint8 \[pictures, 1, 28, 28\]"):
        fewstep.adapt(READY, {"a": torch.zeros(1, 1, 30, 30, dtype=torch.uint8), "b": []})


def test_divergence_is_told_of(support):
    classifier = fewstep.adapt(READY, support)
    classifier.initialisation.meta.model["body.0.conv.weight"].fill_(float("nan"))
    with pytest.raises(FewstepError, match="take fewer"):
        fewstep.adapt(classifier, support)


def test_preparation_is_that_of_the_run_or_follows_from_its_recipe(tmp_path):
    assert preparation_of(READY).to_dict()["invert"] == "auto"
    run = custom_run(tmp_path, small_module())
    stored = preparation_of(READY).to_dict() | {"invert": False}
    (tmp_path / "data.json").write_text(json.dumps({"preparation": stored}))
    assert preparation_of(run).invert is False


def test_a_run_on_a_folder_of_colour_pictures_prepares_the_users_as_its_own(tmp_path, support, queries):
    for split, names in {"train": ("bar", "cross"), "val": ("square", "slash"), "test": ("zigzag", "corner")}.items():
        draw_support(tmp_path / "pictures" / split, dict.fromkeys(names, 2))
    tasks = {"kind": "folder", "path": str(tmp_path / "pictures"), "ways": 2, "image_size": 20, "fit": "stretch"}
    recipe = {
        "tasks": tasks,
        "model": {"kind": "convnet", "filters": 4, "blocks": 2, "downsample": "max_pool"},
        "algorithm": {"kind": "fomaml", "inner_lr": 0.1},
        "meta": {"iterations": 1, "batch_size": 2},
    }
    classifier = fewstep.adapt(fewstep.train(recipe, out=tmp_path / "run"), support)
    assert (classifier.preparation.image_size, classifier.preparation.fit) == (20, "stretch")
    assert same(classifier, fewstep.load(classifier.save(tmp_path / "adapted")), queries)


def test_torch_export_computes_the_same_for_any_number_of_pictures(tmp_path, support):
    classifier = fewstep.adapt(READY, support)
    (tmp_path / "model.pt2").write_bytes(classifier.exported("torch"))
    about = {"fewstep.json": ""}
    function = torch.export.load(tmp_path / "model.pt2", extra_files=about).module()
    images = torch.rand(7, 1, 28, 28)
    torch.testing.assert_close(function(images), classifier.module(images), atol=1e-4, rtol=1e-4)
    assert json.loads(about["fewstep.json"])["classes"] == list(RAGGED)


def test_onnx_export_computes_the_same_for_any_number_of_pictures(support):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    classifier = fewstep.adapt(READY, support)
    session = runtime.InferenceSession(classifier.exported("onnx"))
    images = torch.rand(7, 1, 28, 28)
    [logits] = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), classifier.module(images), atol=1e-4, rtol=1e-4)


def test_an_export_that_computes_something_else_is_not_kept(support, monkeypatch):
    from fewstep.adapting import exporting

    monkeypatch.setattr(exporting, "_write_torch", lambda *_: b"")
    monkeypatch.setattr(exporting, "_read_torch", lambda _: lambda images: images.new_zeros(len(images), 3))
    with pytest.raises(FewstepError, match="It was not kept"):
        fewstep.adapt(READY, support).exported("torch")


def test_a_missing_extra_is_named(support, monkeypatch):
    from fewstep.adapting import exporting

    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(FewstepError, match=r"pip install 'fewstep\[export\]'"):
        fewstep.adapt(READY, support).exported("onnx")


def test_with_ways_leaves_the_module_as_it_was():
    module = small_module()
    assert with_ways(module, 9).head.out_features == 9
    assert module.head.out_features == 5


def test_files_and_folders_are_named_by_strings_or_paths(support, queries):
    adapted = fewstep.adapt(READY, {"bar": str(support / "bar"), "cross": [str(support / "cross" / "0.png")]})
    expected = adapted.predict(queries)
    assert adapted.predict([str(query) for query in queries]) == expected
    folder = queries[0].parent
    assert adapted.predict(folder) == adapted.predict(str(folder)) == expected
    assert adapted.predict(str(queries[0])) == adapted.predict(queries[:1])
    assert adapted.predict([folder, str(queries[0])]) == [*expected, expected[0]]


def test_pictures_in_memory_do_as_well_as_files(support, queries):
    def opened(folder):
        return [Image.open(file) for file in sorted(folder.iterdir())]

    adapted = fewstep.adapt(READY, support)
    in_memory = fewstep.adapt(READY, {folder.name: opened(folder) for folder in sorted(support.iterdir())})
    expected = [(each.label, each.probabilities) for each in adapted.predict(queries)]
    images = [Image.open(query) for query in queries]
    arrays = [np.asarray(image.convert("RGB")) for image in images]
    for pictures in (images, arrays, [images[0], arrays[1], queries[2]]):
        found = in_memory.predict(pictures)
        assert [(each.label, each.probabilities) for each in found] == expected
    assert [each.image for each in found] == ["0", "1", str(queries[2])]
    assert in_memory.predict(arrays[0])[0].label == in_memory.predict(images[0])[0].label == expected[0][0]
    assert torch.equal(adapted.prepare(images), adapted.prepare(queries))
    torch.testing.assert_close(
        adapted.probabilities(adapted.prepare(images))[0], torch.tensor(list(expected[0][1].values()))
    )


def test_pictures_of_other_types_are_refused(support):
    adapted = fewstep.adapt(READY, support)
    for pictures in ([3], None, [b"raw"]):
        with pytest.raises(DataError, match=r"str or Path.*got (int|NoneType|bytes)"):
            adapted.predict(pictures)
    with pytest.raises(DataError, match=r"1: an array of a picture is uint8 .* got float64 \[9, 9\]"):
        adapted.predict([np.zeros((9, 9), np.uint8), np.zeros((9, 9))])


def test_a_class_without_any_drawing_is_refused(support):
    (support / "paper").mkdir()
    Image.new("L", (50, 50), 255).save(support / "paper" / "blank.png")
    with pytest.raises(
        DataError, match=r"in those of 'paper' nothing is to be seen, they are of one colour or too faint"
    ):
        fewstep.adapt(READY, support)


def test_a_classifier_is_printed_in_a_line(support):
    assert re.fullmatch(
        r"AdaptedClassifier of 'bar' \(\d\), .*; steps \d, head '\w+'", repr(fewstep.adapt(READY, support))
    )


def test_pictures_without_a_drawing_are_warned_of(support, tmp_path, caplog):
    for file in (support / "bar" / "empty.png", tmp_path / "blank.png"):
        Image.new("L", (50, 50), 255).save(file)
    adapted = fewstep.adapt(READY, support)
    assert "No drawing was found in: " in caplog.text
    assert "empty.png" in caplog.text
    caplog.clear()
    blank, cross = adapted.predict([tmp_path / "blank.png", support / "cross" / "0.png"])
    assert blank.to_dict()["empty"] is True
    assert "empty" not in cross.to_dict()
    assert "blank.png" in caplog.text
    assert "0.png" not in caplog.text


def test_a_class_folder_without_pictures_is_an_error(support):
    (support / "forgotten").mkdir()
    (support / "forgotten" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match="must hold pictures: there are none in forgotten"):
        fewstep.adapt(READY, support)
