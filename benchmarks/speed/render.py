"""Writes tables and figure of a file of results into a page, between its two markers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from benchmarks.speed.figures import draw
from benchmarks.speed.results import read
from benchmarks.speed.tables import circumstances, reports, series

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"


def render(results: Path, page: Path) -> None:
    """Replace what stands between the markers, and draw the figure beside the page.

    Raises:
        SystemExit: There are no results, or the page lacks the markers.
    """
    cases = read(results)
    if not cases:
        raise SystemExit(f"Results to render must hold a case: {results} has none. Measure first, with --json.")
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"A page must have the lines {BEGIN} and {END}: {page} lacks them. Add them where tables go.")
    figure = page.parent / "figures" / "speed.png"
    draw(cases, figure)
    whole, varied = ([c for c in cases if bool(c["varied"]) is wanted] for wanted in (False, True))
    lines = [f"![Time of one meta-iteration]({os.path.relpath(figure, page.parent)})", "", *reports(whole)]
    lines += ["### Series", "", *series(varied)] if varied else []
    lines += ["### Measured on", "", *circumstances(cases)]
    page.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))
