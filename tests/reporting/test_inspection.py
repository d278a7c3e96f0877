"""An inspection as tables and a figure."""

from __future__ import annotations

import pytest

from fewstep.errors import RunError
from fewstep.reporting import inspection as report
from fewstep.reporting.tables import plain

from .runs import omniglot


def curve(*means, ci95=0.01):
    return [{"step": step, "mean": mean, "ci95": ci95} for step, mean in enumerate(means)]


def layer(name, adapted=10, **changes):
    moved = curve(0, 0.1, 0.25, 0.3) if adapted else curve(0, 0, 0, 0)
    gain = curve(0, 1.5, 1.6, 1.7) if adapted else None
    measured = {"relative_movement": moved, "rms_movement": moved, "gain": gain, "untrained_gain": gain}
    return {"layer": name, "parameters": 10, "adapted": adapted} | measured | changes


def views(high):
    parts = {"everything": curve(0.2, high, high, high), "head": curve(0.2, 0.5, 0.4, 0.3), "rest": curve(*[0.2] * 4)}
    return {"parts": parts, "head_share": [{"step": 0, "mean": None, "ci95": None}, *curve(0, 0.4, 0.3, 0.2)[1:]]}


def inspection(**changes):
    layers = [layer("body.0.conv"), layer("body.0.norm", adapted=0), layer("head", adapted=4)]
    measured = {"layers": layers, "untrained": views(0.3), "head": {"pattern": None, "parameters": ["head.weight"]}}
    return omniglot([0.2, 0.98, 0.98, 0.98]) | measured | views(0.98) | changes


def test_the_layers_show_movement_and_gain_and_which_are_not_adapted():
    text = plain(report.layers_table(inspection()))
    assert "10.0 ± 1.0" in text  # after one step, in percent
    assert "30.0 ± 1.0" in text
    assert "1.500 ± 0.010" in text
    [fixed] = [line for line in text.splitlines() if "body.0.norm" in line]
    assert "not adapted" in fixed
    [partly] = [line for line in text.splitlines() if line.strip().startswith("head")]
    assert "4 of 10" in partly


def test_the_parts_show_the_share_of_the_head_and_all_that_the_numbers_depend_on():
    text = plain(report.parts_table(inspection()))
    assert "98.0 ± 1.0" in text
    assert "the head's share of the gain, %" in text
    assert "40.0 ± 1.0" in text
    assert "1f3a9c0277aa01bb" in text
    assert "head: head.weight" in text


def test_numbers_that_are_none_are_shown_as_absent():
    broken = inspection()
    broken["layers"][0]["gain"][1]["mean"] = None
    broken["head_share"][3]["mean"] = None
    assert "None" not in plain(report.layers_table(broken)) + plain(report.parts_table(broken))


def test_the_figure_has_a_panel_for_each_view():
    figure = report._inspection(inspection())
    movement, gains, parts = figure.axes
    assert [label.get_text() for label in movement.get_yticklabels()] == ["body.0.conv", "body.0.norm", "head"]
    assert [text.get_text() for text in movement.texts] == ["not adapted"]
    assert [text.get_text() for text in gains.get_legend().get_texts()] == ["meta-trained", "untrained"]
    assert max(parts.lines[0].get_ydata()) == pytest.approx(98)


def test_the_figure_is_written_even_where_nothing_is_finite(tmp_path):
    lost = [layer("head", relative_movement=curve(0, None), gain=curve(0, None), untrained_gain=curve(0, None))]
    report.inspection_figure(inspection(layers=lost), tmp_path / "lost.png")
    assert (tmp_path / "lost.png").stat().st_size > 5000


def test_a_figure_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"\.png, \.svg, \.pdf: got 'figure\.bmp'"):
        report.inspection_figure(inspection(), tmp_path / "figure.bmp")
