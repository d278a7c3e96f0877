"""Figures: the curves, bands, labels and limits in them, and the files they are written to."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.colors import to_hex

from fewstep.errors import RunError
from fewstep.reporting import drawing, plots
from fewstep.reporting.groups import grouped_by_seed
from fewstep.reporting.reading import illustrations

from .runs import MAML_CURVE, evaluation, make_run, omniglot, write_illustration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNATURES = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-", "PNG": b"\x89PNG\r\n"}


def example(**predictions):
    chosen = {"0": [0.0, 0.0, 0.0], "1": [0.5, 0.5, 0.5], "10": [1.0, 0.1, -1.0]}
    return {
        "shots": 2,
        "grid": [-5.0, 0.0, 5.0],
        "truth": [1.0, 0.0, -1.0],
        "support": {"inputs": [-4.0, 1.0], "targets": [0.8, -0.2]},
        "predictions": {name.removeprefix("s"): y for name, y in predictions.items()} or chosen,
    }


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    """Data by label."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def colours(axes) -> dict[str, str]:
    return {line.get_label(): line.get_color() for line in axes.lines}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def bands(axes) -> list[np.ndarray]:
    """Lowest and highest value of each band, by step."""
    found = []
    for collection in axes.collections:
        for path in collection.get_paths():
            x, y = path.vertices.T
            found.append(np.array([(y[x == step].min(), y[x == step].max()) for step in np.unique(x)]))
    return found


def train(iteration: int, loss: float | None):
    return {
        "iteration": iteration,
        "split": "train",
        "query_loss": loss,
        "gradient_norm": 1.0,
        "seconds": 1.0,
    }


def validated(iteration: int, score: float, **more):
    return {"iteration": iteration, "split": "val", "score": score, "loss": score, "steps": 1, **more}


# --- adaptation to one task


def test_each_run_has_a_panel_with_truth_support_and_predictions():
    named = example() | {"columns": ["x", "y"]}
    figure = plots._adaptation({"MAML": named, "pretrained": named})
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["MAML, 2 shots", "pretrained, 2 shots"]
    assert lines(left) == {
        "truth": ([-5, 0, 5], [1, 0, -1]),
        "before adaptation": ([-5, 0, 5], [0, 0, 0]),
        "after 1 gradient step": ([-5, 0, 5], [0.5, 0.5, 0.5]),
        "after 10 gradient steps": ([-5, 0, 5], [1, 0.1, -1]),
        "support examples": ([-4, 1], [0.8, -0.2]),
    }
    assert left.get_ylim() == right.get_ylim()
    assert (left.get_ylabel(), left.get_xlabel(), right.get_xlabel()) == ("y", "x", "x")
    assert legend(figure) == list(lines(left))


def test_only_steps_that_were_predicted_are_drawn_and_look_alike_in_all_panels():
    few, many = example(s0=[0.0] * 3, s10=[1.0] * 3), example()
    figure = plots._adaptation({"few": few, "many": many})
    assert "after 1 gradient step" not in lines(figure.axes[0])
    assert len(legend(figure)) == 5
    drawn = [{line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes]
    assert drawn[0].items() <= drawn[1].items()


def test_a_prediction_that_diverges_does_not_flatten_the_task(tmp_path):
    wild = example(s0=[0.0] * 3, s1=[1e9] * 3, s10=[math.nan, math.inf, -math.inf])
    figure = plots._adaptation({"wild": wild})
    low, high = figure.axes[0].get_ylim()
    assert -2.5 < low < -1
    assert 1 < high < 2.5
    plots.adaptation_figure({"wild": wild}, tmp_path / "wild.png")


def test_a_flat_task_has_limits():
    flat = example(s0=[0.0] * 3) | {"truth": [0.0] * 3, "support": {"inputs": [1.0], "targets": [0.0]}}
    low, high = plots._adaptation({"flat": flat}).axes[0].get_ylim()
    assert low < 0 < high


def test_illustrations_are_read_from_the_run(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"needs an example task: .*run has none .*Run `fewstep evaluate .*run`"):
        illustrations(run)
    write_illustration(run, [example()])
    assert illustrations(run) == [example()]
    with pytest.raises(RunError, match="at least one example: got none"):
        plots.adaptation_figure({}, tmp_path / "adaptation.png")


# --- curves over gradient steps


def test_a_curve_shows_the_metric_with_its_interval_and_the_paper():
    values = evaluation([3.0, 0.7, 0.5], [0.3, 0.1, 0.05])
    figure = plots._learning_curves([("mine", values)])
    (axes,) = figure.axes
    assert lines(axes)["mine"] == ([0, 1, 2], [3.0, 0.7, 0.5])
    assert bands(axes)[0] == pytest.approx(np.array([[2.7, 3.3], [0.6, 0.8], [0.45, 0.55]]))
    (paper,) = axes.containers
    assert [list(values) for values in paper.lines[0].get_data()] == [[1, 5, 10], [0.67, 0.38, 0.35]]
    assert legend(figure) == ["mine", "paper, Table 2"]
    assert axes.get_title(loc="left") == "5-shot meta-test tasks"
    assert figure.get_supylabel() == "Mean squared error"
    assert figure.get_supxlabel() == "Bands: 95 % confidence interval over tasks."


def test_accuracy_is_drawn_in_percent():
    figure = plots._learning_curves([("mine", omniglot([0.2, 0.95, 0.97, 0.983]))])
    (axes,) = figure.axes
    assert lines(axes)["mine"][1] == pytest.approx([20, 95, 97, 98.3])
    assert axes.get_ylim()[1] <= 102
    assert axes.containers[0].lines[0].get_ydata() == pytest.approx([98.7])
    assert axes.get_title(loc="left") == "5-way 1-shot meta-test tasks"


def test_every_setting_has_a_panel_and_every_label_one_colour():
    entries = [
        (label, evaluation([1.0, 0.5], shots=shots, recipe="x"))
        for shots in (5, 10, 20, 40)
        for label in ("maml", "joint")
    ]
    figure = plots._learning_curves(entries)
    assert [axes.get_title(loc="left")[:7] for axes in figure.axes] == [
        "5-shot ",
        "10-shot",
        "20-shot",
        "40-shot",
    ]
    assert len({tuple(sorted(colours(axes).items())) for axes in figure.axes}) == 1
    assert len(set(colours(figure.axes[0]).values())) == 2
    assert legend(figure) == ["maml", "joint"]


def test_more_labels_than_colours_are_still_told_apart():
    styles = drawing.styles_of([str(i) for i in range(15)])
    assert len(set(styles.values())) == 15
    assert all(to_hex(style.colour) for style in styles.values())


def test_seeds_are_drawn_as_one_curve_with_their_spread(tmp_path):
    runs = [
        make_run(tmp_path / f"seed{seed}", evaluation([3.0, mean], [9.0, 9.0]), seed=seed)
        for seed, mean in enumerate([0.5, 0.7])
    ]
    figure = plots._learning_curves(grouped_by_seed(runs))
    (axes,) = figure.axes
    assert lines(axes)["sinusoid-5shot, 2 seeds"][1] == pytest.approx([3.0, 0.6])
    spread = math.sqrt(0.02)
    assert bands(axes)[0][1] == pytest.approx([0.6 - spread, 0.6 + spread])
    assert figure.get_supxlabel() == "Bands: standard deviation over training seeds."


def test_labels_name_the_settings_that_panels_do_not():
    entries = [
        ("a", evaluation([1.0, 0.5], recipe="x")),
        ("b", evaluation([1.0, 0.5], recipe="x", queries=1)),
    ]
    assert list(lines(plots._learning_curves(entries).axes[0])) == ["a, 5 queries", "b, 1 query"]


def test_one_run_with_its_rows_divided_once_and_several_times_has_two_curves():
    entries = [("a", evaluation([1.0, 0.5], recipe="x", **again)) for again in ({}, {"repeats": 10})]
    assert list(lines(plots._learning_curves(entries).axes[0])) == ["a", "a, mean of 10 divisions of each task's rows"]


def test_one_run_at_two_rates_has_two_curves_that_name_them():
    entries = [("a", evaluation([1.0, rate], recipe="x", inner_lr=rate)) for rate in (0.1, 0.2)]
    assert list(lines(plots._learning_curves(entries).axes[0])) == ["a, inner rate 0.1", "a, inner rate 0.2"]


def test_curves_on_different_tasks_are_said_to_be():
    entries = [("a", evaluation([1.0])), ("b", evaluation([1.0], fingerprint="ffff"))]
    assert "Not all curves" in " ".join(plots._learning_curves(entries).get_supxlabel().split())


def test_the_paper_is_drawn_once_for_runs_of_one_setting():
    entries = [("a", evaluation(MAML_CURVE)), ("b", evaluation(MAML_CURVE))]
    assert len(plots._learning_curves(entries).axes[0].containers) == 1


def test_one_task_or_a_diverged_step_leaves_a_gap_and_is_named(tmp_path):
    broken = evaluation([1.0, 0.9, math.inf, math.nan], [None, math.nan, math.nan, None], recipe="x")
    figure = plots._learning_curves([("a", broken)])
    (y,) = [y for _, y in lines(figure.axes[0]).values()]
    assert legend(figure) == ["a (not finite from step 2)"]
    assert y[:2] == [1.0, 0.9]
    assert all(map(math.isnan, y[2:]))
    plots.learning_curve_figure([("a", broken)], tmp_path / "broken.png")
    lost = evaluation([math.nan], [None])
    plots.learning_curve_figure([("lost", lost)], tmp_path / "lost.png")


def test_what_is_not_adapted_is_one_point_with_its_interval(tmp_path):
    figure = plots._learning_curves([("a", evaluation([-2.0], [0.3], metric="return", recipe="x"))])
    (axes,) = figure.axes
    ((x, y),) = lines(axes).values()
    assert (x, y) == ([0], [-2.0])
    assert [tuple(segment[:, 1]) for segment in axes.containers[0][2][0].get_segments()] == [(-2.3, -1.7)]
    low, high = axes.get_xlim()
    assert high - low >= 1


def test_one_record_of_training_is_a_point(tmp_path):
    figure = plots._training({"a": make_run(tmp_path / "a", metrics=[train(100, 3.0)])})
    assert figure.axes[0].lines[0].get_marker() == "o"


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.01, "log"), (1e6, "log"), (-1.0, "linear")])
def test_errors_far_apart_get_a_logarithmic_axis(last, scale, tmp_path):
    entries = [("a", evaluation([1.0, last], [0.1, 5.0], recipe="x"))]
    axes = plots._learning_curves(entries).axes[0]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= min(1.0, last)
    assert high >= max(1.0, last)
    plots.learning_curve_figure(entries, tmp_path / "scale.png")


@pytest.mark.parametrize("measure", ["return", "return_after"])
def test_returns_far_apart_stay_on_a_linear_axis(measure):
    axes = drawing.new_figure(3, 3).subplots()
    plots._set_scale(axes, [2.0, 250.0], measure)
    assert axes.get_yscale() == "linear"


def test_the_papers_numbers_are_within_a_logarithmic_axis():
    axes = plots._learning_curves([("far", evaluation([500.0, 5.0]))]).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < 0.35


def test_different_metrics_cannot_share_a_figure(tmp_path):
    entries = [("a", evaluation([1.0])), ("b", omniglot([0.2]))]
    with pytest.raises(RunError, match=r"one metric: got mse \(a\), accuracy \(b\)\. Plot them apart"):
        plots.learning_curve_figure(entries, tmp_path / "mixed.png")
    with pytest.raises(RunError, match=r"got none\. Run `fewstep evaluate RUN` first"):
        plots.learning_curve_figure([], tmp_path / "none.png")


# --- training


def test_training_shows_losses_and_validations_of_every_run(tmp_path):
    first = make_run(
        tmp_path / "a",
        metrics=[train(100, 3.0), train(200, 2.0), validated(200, 2.5), train(300, 1.0), validated(300, 1.5)],
    )
    second = make_run(tmp_path / "b", metrics=[train(100, 4.0), validated(100, 3.5), validated(200, 3.75)])
    figure = plots._training({"a": first, "b": second})
    above, below = figure.axes
    assert lines(above) == {"a": ([100, 200, 300], [3, 2, 1]), "b": ([100], [4])}
    assert lines(below) == {"a": ([200, 300], [2.5, 1.5]), "b": ([100, 200], [3.5, 3.75])}
    assert [tuple(map(float, line.get_xydata()[0])) for line in below.lines if line.get_marker() == "o"] == [
        (300, 1.5),
        (100, 3.5),
    ]
    assert {label: colours(above)[label] for label in "ab"} == {label: colours(below)[label] for label in "ab"}
    assert legend(figure) == ["a", "b"]
    assert below.get_ylabel() == "Meta-validation score\n(lower is better)"


def test_many_records_are_drawn_faintly_below_their_running_mean(tmp_path):
    records = [train(i, 1.0 + (-1) ** i) for i in range(1, 201)]
    above = plots._training({"a": make_run(tmp_path / "a", metrics=records)}).axes[0]
    raw, smooth = above.lines
    assert raw.get_alpha() < 0.5
    assert list(raw.get_ydata()) == [record["query_loss"] for record in records]
    assert smooth.get_ydata()[50:150] == pytest.approx([1.0] * 100, abs=0.12)


def test_validation_accuracy_is_shown_in_percent_and_its_best_is_the_lowest_score(tmp_path):
    records = [validated(100, -0.9, accuracy=0.9), validated(200, -0.95, accuracy=0.95)]
    run = make_run(tmp_path / "a", metrics=[train(100, 0.4), *records, validated(300, -0.94, accuracy=0.94)])
    below = plots._training({"a": run}).axes[1]
    assert lines(below)["a"][1] == pytest.approx([90, 95, 94])
    assert below.lines[1].get_xydata().tolist() == [[200, 95]]
    assert below.get_ylabel() == "Meta-validation accuracy (%)"


def test_a_run_that_was_not_yet_validated_has_one_panel(tmp_path):
    figure = plots._training({"a": make_run(tmp_path / "a", metrics=[train(100, 3.0)])})
    assert len(figure.axes) == 1
    assert figure.axes[0].get_xlabel() == "Meta-iterations"


def test_a_run_without_metrics_says_so(tmp_path):
    run = make_run(tmp_path / "a")
    with pytest.raises(RunError, match=r"metrics of every run: .*a has recorded none yet\. Train it further"):
        plots.training_figure({"a": run}, tmp_path / "training.png")
    with pytest.raises(RunError, match="at least one run: got none"):
        plots.training_figure({}, tmp_path / "training.png")


def test_losses_that_are_not_finite_are_gaps(tmp_path):
    records = [train(100, 1.0), train(200, math.inf), train(300, None), validated(300, math.nan)]
    run = make_run(tmp_path / "a", metrics=[*records, validated(400, 1.0)])
    above, below = plots._training({"a": run}).axes
    assert [math.isnan(loss) for loss in lines(above)["a"][1]] == [False, True, True]
    assert below.lines[1].get_xydata().tolist() == [[400, 1.0]]
    plots.training_figure({"a": run}, tmp_path / "training.png")


# --- files


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_the_suffix_chooses_the_format(tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    plots.learning_curve_figure([("a", evaluation(MAML_CURVE))], path)
    assert path.read_bytes().startswith(SIGNATURES[suffix])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "png"])
def test_other_suffixes_are_refused_before_anything_is_drawn(tmp_path, name):
    with pytest.raises(RunError, match=rf"written as \.png, \.svg, \.pdf: got '{name}'\. Give a name"):
        plots.learning_curve_figure([], tmp_path / name)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RunError, match=r"existing folder: .*absent is none\. Make it"):
        plots.learning_curve_figure([("a", evaluation([1.0]))], tmp_path / "absent" / "figure.png")


def test_a_figure_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    with pytest.raises(RunError):
        plots.learning_curve_figure([], path)
    assert path.read_text() == "old"


def test_labels_are_no_mathematics_and_never_hidden(tmp_path):
    entries = [(label, evaluation([1.0, 0.5], recipe="x")) for label in ("$x^$", "_scratch")]
    plots.learning_curve_figure(entries, tmp_path / "labels.png")
    assert legend(plots._learning_curves(entries)) == [r"\$x^\$", " _scratch"]


def test_long_labels_stay_within_the_figure():
    entries = [(f"a-rather-long-name-of-a-run-{i}", evaluation([1.0, 0.5], recipe="x")) for i in range(4)]
    figure = plots._learning_curves(entries)
    figure.draw_without_rendering()
    drawn = figure.legends[0].get_window_extent()
    assert drawn.x0 >= 0
    assert drawn.x1 <= figure.bbox.width
    assert figure.axes[0].get_window_extent().height > 150


def test_drawing_imports_neither_torch_nor_pyplot(tmp_path):
    script = (
        "import sys\n"
        "from fewstep.reporting import groups, inspection, plots, tables\n"
        "plots.adaptation_figure({'a': dict(shots=1, grid=[0, 1], truth=[0, 1], "
        "support=dict(inputs=[0], targets=[0]), predictions={'0': [0, 0]})}, sys.argv[1])\n"
        "print(sorted({'torch', 'matplotlib.pyplot'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "figure.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
