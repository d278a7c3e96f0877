"""The results as one figure: bars by workload, curves by what was varied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from benchmarks.speed.peers import PEERS, VARIANTS
from benchmarks.speed.tables import title

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.speed.results import Case

mpl.use("Agg")  # files only, no window

_PALETTE = (*plt.get_cmap("tab10").colors, *plt.get_cmap("Set2").colors)
COLOURS = dict(zip((*PEERS, *VARIANTS), _PALETTE, strict=False))


def medians(case: Case) -> dict[str, float]:
    """Milliseconds of the peers that were timed."""
    return {peer: 1e3 * r["median"] for peer, r in case["peers"].items() if r["status"] == "timed"}


def bars(axes: Any, cases: list[Case]) -> None:
    """A group of bars for each workload."""
    peers = [peer for peer in (*PEERS, *VARIANTS) if any(peer in medians(case) for case in cases)]
    for i, peer in enumerate(peers):
        heights = [(place, medians(case)[peer]) for place, case in enumerate(cases) if peer in medians(case)]
        places = [place + (i - (len(peers) - 1) / 2) * 0.85 / len(peers) for place, _ in heights]
        axes.bar(places, [height for _, height in heights], 0.85 / len(peers), color=COLOURS[peer], label=peer)
    axes.set(yscale="log", ylabel="ms for one meta-iteration", xticks=range(len(cases)))
    axes.set_xticklabels([title(case) for case in cases], rotation=15, ha="right")
    axes.set_title(f"{cases[0]['order'].capitalize()}-order, {cases[0]['device']}")


def curves(axes: Any, cases: list[Case]) -> None:
    """A curve for each peer against what was varied."""
    cases = sorted(cases, key=lambda case: case["varied"][1])
    for peer in (*PEERS, *VARIANTS):
        points = [(case["varied"][1], medians(case)[peer]) for case in cases if peer in medians(case)]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[peer], label=peer)
    axes.set(xscale="log", yscale="log", xlabel=cases[0]["varied"][0], ylabel="ms for one meta-iteration")
    values = [case["varied"][1] for case in cases]
    axes.set_xticks(values, labels=map(str, values))
    axes.minorticks_off()
    axes.set_title(f"{title(cases[0])}, {cases[0]['order']}-order, {cases[0]['device']}")


def draw(cases: list[Case], path: Path) -> None:
    """Bars in rows of their own, curves two to a row."""
    whole: dict[Any, list[Case]] = {}
    varied: dict[Any, list[Case]] = {}
    for case in cases:
        if case["varied"]:
            varied.setdefault((title(case), case["device"], case["order"], case["varied"][0]), []).append(case)
        else:
            whole.setdefault((case["device"], case["order"]), []).append(case)
    rows = len(whole) + (len(varied) + 1) // 2
    figure = plt.figure(figsize=(12, 4 * rows), layout="constrained")
    places = figure.add_gridspec(rows, 2)  # one grid for both, or the layout lets them overlap
    for row, group in enumerate(whole.values()):
        bars(figure.add_subplot(places[row, :]), group)
    for i, group in enumerate(varied.values()):
        curves(figure.add_subplot(places[len(whole) + i // 2, i % 2]), group)
    for axes in figure.axes:
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize="small", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
