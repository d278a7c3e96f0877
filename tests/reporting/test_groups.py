"""Pooling over seeds: which runs and evaluations belong together, and what is made of them."""

from __future__ import annotations

import math
import statistics

import pytest

from fewstep.errors import RunError
from fewstep.reporting.groups import grouped_by_seed
from fewstep.reporting.reading import curve, interval_note
from fewstep.reporting.tables import evaluation_table, plain

from .runs import evaluation, make_run


def seeded(folder, *first_means: float, **config):
    """One run per mean, with seeds 0, 1, 2 ..."""
    return [
        make_run(folder / f"seed{seed}", evaluation([3.0, mean], [0.2, 0.1]), seed=seed, **config)
        for seed, mean in enumerate(first_means)
    ]


def test_runs_that_differ_only_in_the_seed_are_pooled(tmp_path):
    [(label, pooled)] = grouped_by_seed(seeded(tmp_path, 0.6, 0.7, 0.9))
    assert label == "sinusoid-5shot"
    assert pooled["seeds"] == [0, 1, 2]
    after = pooled["steps"][1]
    assert after["mean"] == pytest.approx(2.2 / 3)
    assert after["spread"] == pytest.approx(statistics.stdev([0.6, 0.7, 0.9]))
    assert pooled["steps"][0] == {"step": 0, "mean": 3, "spread": 0, "ci95": pytest.approx(0.2)}
    assert "seed" not in pooled
    assert "iteration" not in pooled


def test_the_pooled_task_interval_bounds_that_of_the_mean_over_seeds(tmp_path):
    """Task scores of two seeds, fully known: the interval of their mean is narrower than theirs are."""
    scores = [[0.1, 0.5, 0.3, 0.9], [0.2, 0.4, 0.8, 0.6]]

    def half_width(values):
        return 1.96 * statistics.stdev(values) / math.sqrt(len(values))

    runs = [
        make_run(tmp_path / str(seed), evaluation([statistics.mean(s)], [half_width(s)]), seed=seed)
        for seed, s in enumerate(scores)
    ]
    [(_, pooled)] = grouped_by_seed(runs)
    exact = half_width([statistics.mean(pair) for pair in zip(*scores, strict=True)])
    assert pooled["steps"][0]["ci95"] == pytest.approx(statistics.mean(map(half_width, scores)))
    assert pooled["steps"][0]["ci95"] > exact


def test_plus_minus_is_the_task_interval_of_one_seed_and_the_spread_of_several(tmp_path):
    runs = seeded(tmp_path, 0.6, 0.8)
    single, pooled = grouped_by_seed(runs[:1]), grouped_by_seed(runs)
    assert curve(single[0][1])[1].plus_minus == 0.1
    assert curve(pooled[0][1])[1].plus_minus == pytest.approx(statistics.stdev([0.6, 0.8]))
    assert interval_note(single) == "95 % confidence interval over tasks"
    assert interval_note(pooled) == "standard deviation over training seeds"
    assert interval_note(single + pooled) == (
        "95 % confidence interval over tasks; with several seeds, standard deviation over training seeds"
    )


def test_an_interval_over_tasks_of_few_classes_is_told_to_be_of_these():
    note = interval_note([("mine", evaluation([0.9], metric="accuracy", ways=2, classes=3))])
    assert note.endswith("all of the same 3 classes: it does not tell of others")
    assert "classes" not in interval_note([("mine", evaluation([0.9], metric="accuracy", ways=2, classes=6))])


def test_a_run_that_is_unfinished_is_told_to_be(tmp_path):
    runs = [
        make_run(tmp_path / name, evaluation([1.0]), name=name, finished=name == "done") for name in ("done", "cut")
    ]
    lines = plain(evaluation_table(grouped_by_seed(runs))).splitlines()
    assert any("cut, unfinished" in line for line in lines)
    assert not any("done, unfinished" in line for line in lines)


def test_an_interval_over_few_tasks_is_told_to_be_narrow():
    few = evaluation([0.5], [0.1]) | {"tasks": 12}
    assert interval_note([("few", few)]).endswith("(1.96 standard errors: somewhat narrow for so few)")


def test_a_run_alone_keeps_its_evaluation_and_its_folder_name(tmp_path):
    run = make_run(tmp_path / "mine", evaluation([3.0, 0.6], [0.2, None]))
    assert grouped_by_seed([run]) == [("mine", evaluation([3.0, 0.6], [0.2, None]) | {"seeds": [0]})]


def test_runs_of_different_recipes_stay_apart_in_the_order_given(tmp_path):
    slow = make_run(tmp_path / "slow", evaluation([1.0]), meta={"lr": 0.0001})
    entries = grouped_by_seed([slow, *seeded(tmp_path, 0.6, 0.7)])
    assert [(label, e["seeds"]) for label, e in entries] == [("slow", [0]), ("sinusoid-5shot", [0, 1])]


def test_groups_of_one_recipe_name_are_told_apart_by_what_differs(tmp_path):
    runs = seeded(tmp_path / "a", 0.6, 0.7) + seeded(tmp_path / "b", 0.6, 0.7, meta={"lr": 0.01})
    labels = [label for label, _ in grouped_by_seed(runs)]
    assert labels == ["sinusoid-5shot meta.lr=0.001", "sinusoid-5shot meta.lr=0.01"]


def test_single_runs_of_one_folder_name_are_told_apart_by_their_paths(tmp_path):
    runs = [make_run(tmp_path / parent / "run", evaluation([1.0]), name=parent) for parent in "ab"]
    assert [label for label, _ in grouped_by_seed(runs)] == [str(run.path) for run in runs]


def test_two_runs_of_one_seed_are_not_two_seeds(tmp_path):
    again = make_run(tmp_path / "again", evaluation([3.0, 0.6]), seed=0)
    entries = grouped_by_seed([*seeded(tmp_path, 0.6, 0.7), again])
    assert [(label, e["seeds"]) for label, e in entries] == [("seed0", [0]), ("seed1", [1]), ("again", [0])]


def test_a_run_given_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "run", evaluation([1.0]))
    assert len(grouped_by_seed([run, run])) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"shots": 10},
        {"queries": 15},
        {"tasks": 60},
        {"split": "val"},
        {"fingerprint": "0"},
        {"checkpoint": "final"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_evaluations_of_different_kinds_are_not_pooled(tmp_path, other):
    runs = [
        make_run(tmp_path / str(seed), evaluation([0.6 + seed]), evaluation([9.0], **other), seed=seed)
        for seed in range(2)
    ]
    entries = grouped_by_seed(runs)
    assert [e["steps"][0]["mean"] for _, e in entries] == pytest.approx([1.1, 9.0])
    assert [e["seeds"] for _, e in entries] == [[0, 1], [0, 1]]


def test_evaluations_over_different_numbers_of_steps_are_not_pooled(tmp_path):
    runs = [make_run(tmp_path / str(seed), evaluation([1.0] * (2 + seed)), seed=seed) for seed in range(2)]
    assert [e["seeds"] for _, e in grouped_by_seed(runs)] == [[0], [1]]


def test_seeds_may_differ_in_the_rate_tuned_for_them(tmp_path):
    rates = [0.02, 0.01]
    runs = [
        make_run(tmp_path / str(seed), evaluation([1.0], inner_lr=rate), seed=seed) for seed, rate in enumerate(rates)
    ]
    assert [e["inner_lr"] for _, e in grouped_by_seed(runs)] == [[0.01, 0.02]]


def test_evaluations_at_several_rates_are_pooled_rate_by_rate(tmp_path):
    runs = [
        make_run(
            tmp_path / str(seed),
            evaluation([1.0 + seed], inner_lr=0.1),
            evaluation([5.0 + seed], inner_lr=0.2),
            seed=seed,
        )
        for seed in range(2)
    ]
    assert [(e["inner_lr"], e["steps"][0]["mean"]) for _, e in grouped_by_seed(runs)] == [
        (0.1, 1.5),
        (0.2, 5.5),
    ]


def test_one_diverged_seed_makes_the_pooled_mean_not_finite(tmp_path):
    runs = [
        make_run(tmp_path / str(seed), evaluation([mean], [None]), seed=seed)
        for seed, mean in enumerate([0.5, math.inf, 1e200])
    ]
    [(_, pooled)] = grouped_by_seed(runs)
    assert not math.isfinite(pooled["steps"][0]["mean"])
    assert math.isnan(curve(pooled)[0].mean)


def test_a_run_without_evaluations_says_how_to_make_one(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"an evaluation of every run: .*run has none\. Run `fewstep evaluate .*run`"):
        grouped_by_seed([run])


def test_evaluations_that_training_has_outdated_are_left_out(tmp_path):
    from safetensors.numpy import save_file

    run = make_run(
        tmp_path / "run", evaluation([1.0], iteration=10), evaluation([0.5], iteration=30, shots=7), recipe="x"
    )
    save_file({}, run.path / "params.safetensors", metadata={"iteration": "30"})
    assert [e["iteration"] for _, e in grouped_by_seed([run])] == [30]
    save_file({}, run.path / "params.safetensors", metadata={"iteration": "40"})
    with pytest.raises(RunError, match="earlier meta-parameters"):
        grouped_by_seed([run])


def test_of_evaluations_that_differ_in_their_number_of_steps_the_longest_counts(tmp_path):
    short, long, other = evaluation([3.1]), evaluation([3.1, 0.7, 0.5]), evaluation([3.0], fingerprint="another")
    found = grouped_by_seed([make_run(tmp_path / "run", short, long, other)])
    assert sorted(len(each["steps"]) for _, each in found) == [1, 3]


def test_of_several_seeds_too_the_longest_counts(tmp_path):
    runs = [make_run(tmp_path / f"seed{s}", evaluation([3.1]), evaluation([3.1, 0.7]), seed=s) for s in (0, 1)]
    assert [len(each["steps"]) for _, each in grouped_by_seed(runs)] == [2]


def test_errors_of_targets_are_pooled_and_shortened_as_the_metric_is(tmp_path):
    def told(*means):
        steps = evaluation([*means])["steps"]
        return evaluation([*means], rmse={"dose": [{**row, "mean": 10 * row["mean"]} for row in steps]})

    runs = [make_run(tmp_path / f"seed{s}", told(3.0), told(3.0, m), seed=s) for s, m in enumerate((0.5, 0.7))]
    [(_, alone)] = grouped_by_seed(runs[:1])
    assert len(alone["steps"]) == len(alone["rmse"]["dose"]) == 2
    [(_, pooled)] = grouped_by_seed(runs)
    assert pooled["rmse"]["dose"][1]["mean"] == pytest.approx(6)
