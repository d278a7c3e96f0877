"""Recipes: what is impossible is refused in words that help."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep
from fewstep.core import running
from fewstep.core.rng import generator
from fewstep.errors import RecipeError
from fewstep.experiments.build import FromPython, build_learner
from fewstep.experiments.config import Recipe, validated_every
from fewstep.experiments.data import load_data
from fewstep.experiments.recipe_files import bundled_recipes, differing_keys, load_recipe, recipe_values
from fewstep.models.mlp import mlp
from fewstep.tasks.sinusoid import Sinusoid

MINIMAL = {
    "tasks": {"kind": "sinusoid"},
    "model": {"kind": "mlp"},
    "algorithm": {"kind": "maml"},
}


def refusal(*settings, source="sinusoid-10shot"):
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, settings)
    return str(caught.value)


@pytest.mark.parametrize("name", bundled_recipes())
def test_every_recipe_parses_and_runs_two_tiny_iterations(
    name, tmp_path, monkeypatch, request, small_miniimagenet, shared_cache
):
    if "omniglot" in name and not os.environ.get("FEWSTEP_DATA"):
        pytest.skip("set FEWSTEP_DATA to a folder that holds omniglot/")
    if "miniimagenet" in name:
        monkeypatch.setenv("FEWSTEP_DATA", str(small_miniimagenet))
        monkeypatch.setenv("FEWSTEP_CACHE", str(shared_cache))
    if "glyphs" in name:
        request.getfixturevalue("few_scripts")
    small = ["meta.iterations=2", "validation.tasks=2", "evaluate.tasks=3", "evaluate.steps=1"]
    small += ["meta.batch_size=3", "tasks.pool=3"] if "averaging" in name else ["meta.batch_size=2"]
    if load_recipe(name).tasks.kind in ("sinusoid", "table"):
        small += ["model.hidden=[4]"]
    elif load_recipe(name).loss.kind == "reinforce":
        small += ["model.hidden=[4]", "tasks.trajectories=2", "tasks.horizon=5", "evaluate.trajectories=3"]
        small += ["execution.over_tasks=vectorized"]
    else:
        # One task after the other: recording them together takes longer than running them twice.
        small += ["model.filters=4"] if load_recipe(name).model.kind == "convnet" else ["model.hidden=[4]"]
        small += ["algorithm.steps=1", "execution.over_tasks=sequential"]
    run = fewstep.train(name, out=tmp_path / "run", settings=small)
    result = fewstep.evaluate(run)
    assert len(result["steps"]) == 2
    assert result["recipe"] == name


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_resolved_recipe_reads_back_as_itself(name):
    recipe = load_recipe(name)
    assert load_recipe(recipe_values(recipe)) == recipe
    assert differing_keys(recipe, load_recipe(recipe_values(recipe))) == []


def test_an_unknown_key_is_named_with_file_and_valid_keys(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('tasks = { kind = "sinusoid", shotz = 3 }\nmodel = { kind = "mlp" }\nalgorithm = { kind = "maml" }')
    message = refusal(source=path)
    assert "mine.toml" in message
    assert "tasks.shotz: unknown key" in message
    assert "kind, shots, queries, reveal, pool" in message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tasks.shots=-1", "tasks.shots: Input should be greater than 0, got -1"),
        ("tasks.shots='a'", "tasks.shots: Input should be a valid integer, got 'a'"),
        ("tasks.shots=1.5", "tasks.shots"),
        ("meta.lr=true", "meta.lr: Input should be a valid number, got True"),
        ("meta.optimizer=adagrad", "meta.optimizer"),
        ("tasks.kind=sin", "tasks.kind: 'sin' is unknown"),
        ("model={}", "model: `kind` is missing. Valid kinds: 'mlp', 'convnet', 'custom'"),
        ("loss.scale=foo", "loss.scale"),
        ("loss.scale=-1", "loss.scale must be positive"),
        ("loss.scale=ways", "needs tasks with ways"),
        ("loss.kind=cross_entropy", "does not fit tasks.kind"),
        ("model={kind='convnet'}", "needs tasks of images"),
        ("algorithm.steps=0", "at least one inner step"),
        ("algorithm={kind='joint', steps=3}", "joint takes no inner steps"),
        (["algorithm.kind=joint", "algorithm.steps=3"], "joint takes no inner steps"),
        (["algorithm.steps=3", "algorithm.kind=joint"], "joint takes no inner steps"),
        ("algorithm={kind='meta_sgd', rule='adam'}", "remove algorithm.rule"),
        ("algorithm={kind='reptile', rule='learned_sgd'}", "cannot learn rates"),
        ("algorithm.per=tensor", "algorithm.per goes with"),
        ("algorithm.head='x'", "algorithm.head goes with"),
        ("algorithm.momentum=0.5", "algorithm.momentum goes with"),
        ("meta.momentum=0.5", "meta.momentum goes with"),
        ("algorithm={kind='averaging'}", "set tasks.pool"),
        ("execution={over_tasks='sequential', chunk_size=3}", "execution.chunk_size"),
        ("algorithm.except=[1]", "algorithm.except[0]"),
        ("meta.nested.key=1", "meta.nested: unknown key"),
        ("meta.lr.deeper=1", "--set meta.lr.deeper=1: lr is a value"),
        ("nonsense", "--set must look like key=value"),
        ("meta.lr=[1", "must be TOML"),
    ],
)
def test_what_cannot_run_is_refused_by_key(setting, words):
    assert words in refusal(*([setting] if isinstance(setting, str) else setting))


def test_all_faults_are_told_at_once():
    message = refusal("tasks.shots=0", "foo=1", "meta.iterations=-2")
    assert all(key in message for key in ("tasks.shots", "foo", "meta.iterations"))


def test_a_bundled_name_may_be_a_path():
    assert load_recipe(Path("sinusoid-10shot")) == load_recipe("sinusoid-10shot")


def test_an_unknown_name_lists_the_bundled_ones():
    assert "sinusoid-10shot" in refusal(source="sinusoid-11shot")


def test_a_run_in_the_place_of_a_recipe_is_told_what_to_say(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"is a run\. Give the recipe that it began with"):
        load_recipe(tmp_path)


def test_settings_that_are_one_string_are_refused():
    with pytest.raises(RecipeError, match="Put it in brackets"):
        load_recipe("sinusoid-5shot", "seed=1")


def test_a_missing_or_broken_file_is_named(tmp_path):
    assert "No such file" in refusal(source=tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("tasks = {")
    assert "not valid TOML" in refusal(source=tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "readable TOML" in refusal(source=tmp_path / "binary.toml")


def test_settings_take_toml_and_bare_words():
    recipe = load_recipe(
        MINIMAL,
        [
            *("algorithm.kind=fomaml", "model.hidden=[3, 4]", 'algorithm.only=["head.*"]', "meta.lr=0.5"),
            *("meta.iterations=1e4", "loss.scale=1e1"),
        ],
    )
    assert recipe.algorithm.kind == "fomaml"
    assert recipe.model.hidden == [3, 4]
    assert recipe.algorithm.only == ["head.*"]
    assert recipe.meta.lr == 0.5
    assert recipe.meta.iterations == 10_000
    assert recipe.loss.scale == 10.0


def test_the_values_passed_from_python_are_not_changed():
    load_recipe(MINIMAL, ["tasks.shots=3"])
    assert MINIMAL["tasks"] == {"kind": "sinusoid"}


def test_a_table_path_is_relative_to_the_recipe(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'tasks = { kind = "table", path = "t.csv", task = "a", inputs = ["b"], targets = ["c"] }\n'
        'model = { kind = "mlp" }\nalgorithm = { kind = "maml" }'
    )
    assert load_recipe(tmp_path / "mine.toml").tasks.path == str((tmp_path / "t.csv").resolve())


def test_patterns_that_match_nothing_are_refused_with_the_names():
    recipe = load_recipe("sinusoid-10shot", ['algorithm.only=["haed.*"]'])
    with pytest.raises(RecipeError, match=re.escape("'haed.*' chooses none of body.0.linear.weight")):
        build_learner(recipe)


def test_custom_objects_and_kinds_go_together():
    with pytest.raises(RecipeError, match=r"tasks\.kind"):
        load_data(load_recipe(MINIMAL), custom=object())
    with pytest.raises(RecipeError, match="model="):
        build_learner(load_recipe(MINIMAL | {"model": {"kind": "custom"}}))


def test_the_same_seed_gives_the_same_initialisation_whatever_was_drawn_before():
    import torch

    first = build_learner(load_recipe("sinusoid-10shot")).meta.model
    torch.rand(3)
    second = build_learner(load_recipe("sinusoid-10shot")).meta.model
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_recipes_are_documented_in_their_first_line():
    assert all(len(line) > 20 for line in bundled_recipes().values())
    assert isinstance(load_recipe("sinusoid-10shot"), Recipe)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("evaluate.variants=[{shotz=3}]", "evaluate.variants[0].shotz"),
        ("evaluate.variants=[3]", "evaluate.variants[0]"),
        ("meta.lr=inf", "meta.lr"),
        ("algorithm.inner_lr=nan", "algorithm.inner_lr"),
        ("tasks.pool=100", "tasks.pool goes with"),
        ("normalization=running", "model.kind = 'custom'"),
        ("execution.threads=100000000000", "execution.threads"),
        ("meta.batch_size=100000000000000", "meta.batch_size"),
        ("tasks.shots=100000000000000000000", "tasks.shots"),
    ],
)
def test_more_that_cannot_run_is_refused_by_key(setting, words):
    assert words in refusal(setting)


@pytest.mark.parametrize(
    "key", ["meta.clip_norm=1.0", "meta.schedule=cosine", "loss.scale=3.0", "model={kind='custom'}"]
)
def test_averaging_refuses_what_it_would_ignore(key):
    assert "has no meaning with algorithm.kind = 'averaging'" in refusal(key, source="sinusoid-averaging")


def test_learned_rates_are_not_tuned():
    message = refusal("algorithm={kind='meta_sgd'}", "evaluate.tune_inner_lr=[0.1]")
    assert "cannot tune rates that the outer loop learns" in message


def test_fractions_of_a_table_sum_to_one():
    assert "must sum to 1" in refusal("tasks.fractions=[0.5, 0.5, 0.5]", source="dose-response")


def test_a_table_evaluates_each_of_its_tasks_once(tmp_path):
    small = ["meta.iterations=2", "meta.batch_size=2", "model.hidden=[4]", "evaluate.tasks=600"]
    run = fewstep.train("dose-response", out=tmp_path / "run", settings=small)
    assert fewstep.evaluate(run)["tasks"] == 36


def test_an_impossible_evaluation_is_refused_like_a_recipe(tmp_path):
    run = fewstep.train(MINIMAL, out=tmp_path / "run", settings=["meta.iterations=0"])
    for asked in ({"normalization": "none"}, {"steps": -1}, {"tasks": 0}, {"split": "tset"}):
        with pytest.raises(RecipeError):
            fewstep.evaluate(run, **asked)
    with pytest.raises(RecipeError, match="cannot be evaluated with 'running'"):
        fewstep.evaluate(run, normalization="running")


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sinusoid-10shot", [], True),  # 70,000 iterations
        ("sinusoid-10shot", ["meta.iterations=19_999"], False),
        ("sinusoid-10shot", ["meta.iterations=100", "execution.compile=true"], True),
        ("sinusoid-10shot", ["execution.compile=false"], False),
        ("cheetah-direction", [], True),
        ("cheetah-direction", ["meta.iterations=12"], False),
        ("cheetah-direction", ["execution.over_tasks=vectorized"], False),
        ("navigation", [], True),
        ("navigation-random", [], False),
        ("glyphs-5way-1shot", ["model.filters=64", "meta.iterations=2000"], True),
        ("glyphs-5way-1shot", ["model.filters=8", "meta.iterations=2000"], False),
        ("sinusoid-10shot", ["execution.over_tasks=sequential"], False),
        ("sinusoid-averaging", [], False),
        ("omniglot-5way-1shot", [], True),
        ("glyphs-5way-1shot", [], True),
        ("omniglot-5way-1shot", ["meta.iterations=1_999"], False),
        ("dose-response", ["meta.iterations=100_000", "tasks.queries=5"], True),
    ],
)
def test_a_run_is_compiled_where_it_is_long_enough_to_pay_for_it(name, settings, expected):
    recipe = load_recipe(name, settings)
    assert recipe.execution.compile is expected
    assert recipe_values(recipe)["execution"]["compile"] is expected  # stored in the run


def test_a_model_of_the_users_own_is_compiled_only_where_asked_for(monkeypatch):
    compiled_functions = []
    monkeypatch.setattr(running, "_compile", lambda function, **_: compiled_functions.append(function) or function)
    custom = {"tasks": {"kind": "custom"}, "model": {"kind": "custom"}, "loss": {"kind": "mse"}}
    values = custom | {"algorithm": {"kind": "maml"}, "meta": {"iterations": 10**6}}
    assert load_recipe(values).execution.compile is False
    settings = ["meta.iterations=2", "meta.batch_size=3"]
    plain, compiled = (load_recipe(values, [*settings, f"execution.compile={choice}"]) for choice in ("false", "true"))
    tasks = Sinusoid(5, 5).sample(3, generator(0))
    learners = [build_learner(recipe, FromPython(mlp(1, 1, (8,)))) for recipe in (plain, compiled)]
    learners[1].load_meta(learners[0].meta)
    losses = [learners[0].step(tasks)["query_loss"] for _ in range(2)]
    assert not compiled_functions
    assert [learners[1].step(tasks)["query_loss"] for _ in range(2)] == pytest.approx(losses, rel=1e-5)
    assert compiled_functions


@pytest.mark.parametrize("source", [None, [], 3, {1: 2}])
def test_what_is_no_recipe_is_told_what_one_is(source):
    with pytest.raises(RecipeError, match="A recipe is a bundled name, the path of a TOML file, or a dict"):
        load_recipe(source)


def test_the_home_of_nobody_is_no_path():
    assert "meta.start must be a path: got '~nobody-here/run'" in refusal("meta.start=~nobody-here/run")


def test_settings_may_be_a_dict():
    recipe = load_recipe("sinusoid-10shot", {"meta.lr": 0.5, "model": {"hidden": [3, 4]}, "name": "mine"})
    assert (recipe.meta.lr, list(recipe.model.hidden), recipe.name) == (0.5, [3, 4], "mine")
    varied = load_recipe("sinusoid-10shot", {"evaluate.variants": [{"shots": 7}], "name": "a\U0001f600", "seed": 3})
    assert (varied.evaluate.variants[0].shots, varied.name, varied.seed) == (7, "a\U0001f600", 3)
    swept = load_recipe("sinusoid-10shot", {"meta.lr": np.float32(0.5), "seed": np.int64(3), "algorithm.steps": 2})
    assert (swept.meta.lr, swept.seed, swept.algorithm.steps) == (0.5, 3, 2)
    for value in (torch.tensor(0.5), None):
        with pytest.raises(RecipeError, match=r"got (tensor\(0\.5000\)|None) for meta\.lr"):
            load_recipe("sinusoid-10shot", {"meta.lr": value})


def test_short_runs_are_validated_too():
    for iterations, every in ((60, 6), (5, 1), (0, 1), (70_000, 1000)):
        assert validated_every(load_recipe(MINIMAL, [f"meta.iterations={iterations}"])) == every
    assert validated_every(load_recipe(MINIMAL, ["meta.iterations=60", "validation.every=50"])) == 50


def test_data_are_no_recipe(tmp_path):
    (tmp_path / "sensors.csv").write_text("a,b")
    with pytest.raises(RecipeError, match=r"sensors.csv is a table. Write tasks = \{ kind = \"table\""):
        load_recipe(tmp_path / "sensors.csv")
    with pytest.raises(RecipeError, match=r"is a folder\. Write tasks"):
        load_recipe(tmp_path)


def test_a_list_is_told_with_an_example():
    said = refusal("tasks.inputs=signal", source="dose-response")
    assert '--set \'tasks.inputs=["a", "b"]\'' in said
