"""Tables: which rows, columns and numbers they show, and what they say about them."""

from __future__ import annotations

import math

import pytest
from rich.text import Text

from fewstep.errors import RunError
from fewstep.experiments.recipe_files import bundled_recipes
from fewstep.reporting.published import published
from fewstep.reporting.report import compare_runs
from fewstep.reporting.tables import evaluation_table, plain, recipes_table

from .runs import MAML_CURVE, evaluation, make_run, omniglot


def cells(table) -> list[list[str]]:
    """Rows, the headers first."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def pretrained(**changes):
    means = [2.5 - 0.02 * step for step in range(11)]
    return evaluation(means, [0.21] * 11, algorithm="joint", recipe="sinusoid-pretrained", **changes)


# --- rows and columns


def test_a_row_shows_the_usual_steps_with_their_intervals_and_the_paper_below():
    assert cells(evaluation_table([("mine", evaluation(MAML_CURVE))])) == [
        ["run", "algorithm", "step 0", "step 1", "step 5", "step 10"],
        ["mine", "maml", "3.10 ± 0.31", "0.690 ± 0.069", "0.390 ± 0.039", "0.351 ± 0.035"],
        ["paper", "", "", "0.67", "0.38", "0.35"],
    ]


def test_title_and_caption_name_what_all_rows_share():
    table = evaluation_table([("maml", evaluation(MAML_CURVE)), ("pre", pretrained())])
    assert str(table.title) == "Mean squared error, meta-test, 600 tasks, 5-shot, 5 queries"
    details = "transductive normalization, best meta-parameters, inner rate 0.01"
    assert str(table.caption).splitlines() == [
        f"{details}, fingerprint of tasks 1f3a9c0277aa01bb",
        "±: 95 % confidence interval over tasks",
        "paper: Table 2 (600 tasks)",
    ]


@pytest.mark.parametrize(
    ("field", "value", "header", "shown"),
    [
        ("metric", "loss", "metric", ["mse", "loss"]),
        ("split", "val", "split", ["test", "val"]),
        ("tasks", 60, "tasks", ["600", "60"]),
        ("ways", 5, "ways", ["-", "5"]),
        ("shots", 20, "shots", ["5", "20"]),
        ("queries", None, "queries", ["5", "all others"]),
        ("normalization", "support", "normalized", ["transductive", "support"]),
        ("checkpoint", "final", "checkpoint", ["best", "final"]),
        ("inner_lr", [0.01, 0.02], "rate", ["0.01", "0.01, 0.02"]),
        ("fingerprint", "ffff", "fingerprint", ["1f3a9c0277aa01bb", "ffff"]),
    ],
)
def test_what_rows_do_not_share_is_a_column(field, value, header, shown):
    one, other = evaluation([1.0], recipe="mine"), evaluation([1.0], recipe="mine")
    headers, *rows = cells(evaluation_table([("one", one), ("other", other | {field: value})]))
    assert headers == ["run", "algorithm", header, "step 0"]
    assert [row[2] for row in rows] == shown


def test_rows_on_different_tasks_are_said_to_be():
    entries = [("one", evaluation([1.0])), ("other", evaluation([1.0], fingerprint="ffff"))]
    assert "not all measured on the same tasks" in str(evaluation_table(entries).caption)
    assert "same tasks" not in str(evaluation_table(entries[:1]).caption)


def test_the_last_step_of_every_row_is_shown():
    entries = [("a", evaluation([1.0] * 4, recipe="x")), ("b", evaluation([2.0] * 8, recipe="x"))]
    headers, first, second = cells(evaluation_table(entries))
    assert headers[2:] == ["step 0", "step 1", "step 3", "step 5", "step 7"]
    assert [cell != "-" for cell in first[2:]] == [True, True, True, False, False]
    assert "-" not in second


def test_steps_can_be_chosen():
    table = evaluation_table([("mine", evaluation(MAML_CURVE))], steps=[3, 2])
    assert cells(table)[0][2:] == ["step 2", "step 3"]


def test_steps_that_nothing_was_evaluated_at_are_refused():
    with pytest.raises(RunError, match=r"0 to 10: got 12, 20\. .* `fewstep evaluate RUN --steps 20`"):
        evaluation_table([("mine", evaluation(MAML_CURVE))], steps=[1, 12, 20])


def test_a_table_of_nothing_says_what_to_run():
    with pytest.raises(RunError, match=r"got none\. Run `fewstep evaluate RUN` first"):
        evaluation_table([])


def test_several_seeds_are_labelled_and_show_their_spread():
    step = {"step": 0, "mean": 0.5, "spread": 0.02, "ci95": 0.3}
    table = evaluation_table([("maml", evaluation([0.5]) | {"steps": [step], "seeds": [0, 1, 2]})])
    assert cells(table)[1][:3] == ["maml, 3 seeds, ± spread", "maml", "0.500 ± 0.020"]
    assert "±: standard deviation over training seeds" in str(table.caption)


# --- numbers


@pytest.mark.parametrize(
    ("mean", "ci95", "shown"),
    [
        (0.35162, 0.0407, "0.352 ± 0.041"),
        (3.1004, 0.25, "3.10 ± 0.25"),
        (1234.5, 45.2, "1234 ± 45"),
        (-40.41, 4.0, "-40.4 ± 4.0"),
        (0.35162, None, "0.3516"),
        (0.35162, math.nan, "0.3516"),
        (0.5, 0.0, "0.5 ± 0"),
        (1.234e-7, 2e-8, "1.234e-07 ± 2.0e-08"),
        (2.5e12, 1e11, "2.500e+12 ± 1.0e+11"),
        (math.inf, math.nan, "not finite"),
        (math.nan, 1.0, "not finite"),
        (None, None, "not finite"),
    ],
)
def test_means_have_the_digits_that_their_intervals_warrant(mean, ci95, shown):
    values = evaluation([0.0], [0.0]) | {"steps": [{"step": 0, "mean": mean, "ci95": ci95}]}
    assert cells(evaluation_table([("mine", values)]))[1][-1] == shown


def test_accuracy_is_shown_in_percent():
    table = evaluation_table([("mine", omniglot([0.2, 0.95, 0.97, 0.983], [0.001, 0.01, 0.005, 0.0035]))])
    assert str(table.title) == "Accuracy (%), meta-test, 600 tasks, 5-way, 1-shot, 1 query per class"
    assert cells(table)[1:] == [
        ["mine", "maml", "20.00 ± 0.10", "95.0 ± 1.0", "98.30 ± 0.35"],
        ["paper", "", "", "", "98.7 ± 0.4"],
    ]


# --- the paper's numbers


@pytest.mark.parametrize(
    ("algorithm", "regularizer", "numbers"),
    [
        ("maml", None, [0.67, 0.38, 0.35]),
        ("joint", None, [2.41, 2.23, 2.19]),
        ("averaging", "none", [4.19, 3.85, 3.69]),
        ("averaging", "l2", [7.18, 5.69, 5.60]),
        ("averaging", "to_mean", [2.91, 2.72, 2.71]),
    ],
)
def test_published_sinusoid_errors_are_those_of_table_2(algorithm, regularizer, numbers):
    recipe = {"maml": "sinusoid-10shot", "joint": "sinusoid-pretrained", "averaging": "sinusoid-averaging"}
    found = published(evaluation([1.0], algorithm=algorithm, regularizer=regularizer, recipe=recipe[algorithm]))
    assert found is not None
    assert found.source == "Table 2"
    assert found.values == dict(zip([1, 5, 10], [(number, None) for number in numbers], strict=True))


@pytest.mark.parametrize(
    ("recipe", "ways", "shots", "step", "accuracy"),
    [
        ("omniglot-5way-1shot", 5, 1, 3, (0.987, 0.004)),
        ("omniglot-5way-1shot", 5, 5, 3, (0.999, 0.001)),
        ("omniglot-20way-1shot", 20, 1, 5, (0.958, 0.003)),
        ("omniglot-20way-1shot", 20, 5, 5, (0.989, 0.002)),
        ("miniimagenet-5way-1shot", 5, 1, 10, (0.4870, 0.0184)),
        ("miniimagenet-5way-5shot", 5, 5, 10, (0.6311, 0.0092)),
        ("miniimagenet-5way-1shot-first-order", 5, 1, 10, (0.4807, 0.0175)),
        ("miniimagenet-5way-5shot-first-order", 5, 5, 10, (0.6315, 0.0091)),
    ],
)
def test_published_accuracies_are_those_of_table_1(recipe, ways, shots, step, accuracy):
    algorithm = "fomaml" if "first-order" in recipe else "maml"
    found = published(omniglot([0.2], recipe=recipe, algorithm=algorithm, ways=ways, shots=shots, queries=shots))
    assert found is not None
    assert (found.source, found.metric, found.values) == ("Table 1", "accuracy", {step: accuracy})


@pytest.mark.parametrize(
    ("changes", "source", "values"),
    [
        ({"recipe": "omniglot-5way-1shot-nonconv"}, "Table 1", {3: (0.897, 0.011)}),
        ({"recipe": "omniglot-5way-1shot-nonconv", "shots": 5}, "Table 1", {3: (0.975, 0.006)}),
        ({"recipe": "omniglot-5way-1shot-context"}, "Table 3", {3: (0.949, 0.009)}),
        ({"recipe": "omniglot-5way-1shot-context", "shots": 5}, "Table 3", {3: (0.977, 0.003)}),
        (
            {"recipe": "miniimagenet-5way-pretrained", "algorithm": "finetune"},
            "Table 1",
            {10: (0.2886, 0.0054)},
        ),
        (
            {"recipe": "miniimagenet-5way-pretrained", "algorithm": "nearest_neighbour", "shots": 5},
            "Table 1",
            {0: (0.5104, 0.0065)},
        ),
    ],
)
def test_published_accuracies_of_other_networks_and_of_the_baselines(changes, source, values):
    found = published(omniglot([0.2], **changes))
    assert found is not None
    assert (found.source, found.values) == (source, values)


def returns(recipe="navigation", **changes):
    return evaluation([1.0], recipe=recipe, algorithm="maml", metric="return", shots=None, **changes)


def test_published_returns_are_of_the_papers_episodes():
    assert published(returns(horizon=100))
    assert published(returns(recipe="cheetah-direction", horizon=200, physics="paper"))
    assert published(returns())  # evaluated before the length was stored


@pytest.mark.parametrize(
    "other",
    [
        evaluation([1.0], recipe="sinusoid-oracle", algorithm="joint"),
        evaluation([1.0], recipe="dose-response"),
        evaluation([1.0], algorithm="fomaml"),
        evaluation([1.0], algorithm="averaging", recipe="sinusoid-averaging"),
        evaluation([1.0], shots=10),
        evaluation([1.0], split="val"),
        evaluation([1.0], metric="loss"),
        omniglot([0.2], ways=10),
        omniglot([0.2], normalization="support"),
        omniglot([0.2], normalization=None),
        omniglot([0.2], recipe="omniglot-5way-1shot-context", normalization="support"),
        returns(horizon=50),
        returns(recipe="cheetah-direction", horizon=100),
        returns(recipe="cheetah-direction", horizon=200, physics="gymnasium"),
    ],
)
def test_settings_that_the_paper_does_not_report_have_no_published_numbers(other):
    assert published(other) is None


def test_the_published_step_is_shown_even_if_it_is_not_a_usual_one():
    table = evaluation_table([("mine", omniglot([0.2] * 11))])
    assert [header for header in cells(table)[0] if header.startswith("step")] == [
        "step 0", "step 1", "step 3", "step 5", "step 10",
    ]  # fmt: skip


def test_the_paper_is_named_once_below_rows_of_one_setting_and_dimmed():
    entries = [("a", evaluation(MAML_CURVE)), ("b", evaluation(MAML_CURVE)), ("c", pretrained())]
    table = evaluation_table(entries)
    assert [row[0] for row in cells(table)] == ["run", "a", "b", "paper", "c", "paper"]
    assert [row.style for row in table.rows] == [None, None, "dim", None, "dim"]


def test_the_regularizer_of_averaging_is_part_of_the_algorithm():
    row = evaluation([4.2], algorithm="averaging", recipe="sinusoid-averaging", regularizer="to_mean")
    assert cells(evaluation_table([("mine", row)]))[1][1] == "averaging (to_mean)"


# --- text


def test_plain_text_has_every_cell_and_no_escape_codes():
    text = plain(evaluation_table([("mine", evaluation(MAML_CURVE))]), width=90)
    assert "Mean squared error, meta-test" in text
    assert "0.351 ± 0.035" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 90


def test_square_brackets_in_labels_are_no_markup():
    assert "runs/[red]x" in plain(evaluation_table([("runs/[red]x", evaluation([1.0]))]))


def test_recipes_are_listed_with_what_they_are():
    table = recipes_table(bundled_recipes())
    assert ["sinusoid-10shot", bundled_recipes()["sinusoid-10shot"]] in cells(table)
    assert all(isinstance(cell, Text) for column in table.columns for cell in column.cells)


def test_runs_with_different_metrics_have_a_table_and_no_figure(tmp_path):
    runs = [
        make_run(tmp_path / "sine", evaluation([1.0]), name="sine").path,
        make_run(tmp_path / "pictures", omniglot([0.9]), name="pictures").path,
    ]
    tables, path = compare_runs(runs, tmp_path / "compare.png")
    assert path is None
    assert not (tmp_path / "compare.png").exists()
    assert "accuracy" in plain(tables[0])
    assert compare_runs(runs[:1], tmp_path / "compare.png")[1].exists()
