"""The results as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.speed.peers import PEERS, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.speed.results import Case

    Record = dict[str, Any]


def milliseconds(case: Case, record: Record) -> str:
    """Median and quartiles, and the ratio to fewstep's median."""
    low, high = (number(1e3 * second) for second in record["quartiles"])
    base = case["peers"].get("fewstep", {}).get("median")
    ratio = f", {number(record['median'] / base)}x" if base else ""
    return f"**{number(1e3 * record['median'])}**{ratio} ({low} to {high})"


def iterations(case: Case, record: Record) -> str:  # noqa: ARG001
    """How many were timed."""
    return str(record["iterations"])


def first_call(case: Case, record: Record) -> str:  # noqa: ARG001
    """Seconds of the first meta-iteration, with all that is compiled or recorded in it."""
    return number(record["first"])


def memory(case: Case, record: Record) -> str:  # noqa: ARG001
    """Peak, in MB."""
    return f"{record['memory'] / 1e6:.0f}"


def error(case: Case, record: Record) -> str:  # noqa: ARG001
    """Relative error of the first meta-gradient."""
    small = f" ({record['small_error']:.0e})" if "small_error" in record else ""
    return f"{record['error']:.0e}{small}"


def share(case: Case, record: Record) -> str:
    """Of the machine's matrix-product rate, if every peer did the operations of the loop over tasks."""
    return f"{100 * case['flops'] / record['median'] / case['matmul_rate']:.0f} %"


CELLS: dict[str, Callable[[Case, Record], str]] = {
    "Timed meta-iterations": iterations,
    "First call, seconds": first_call,
    "Peak memory of later meta-iterations beyond imports, parameters and tasks, MB": memory,
    "Relative error of the first meta-gradient against float64 (in a small version, without rounding's flips)": error,
    "Share of the matrix-product rate, convolutional networks": share,
}


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def title(case: Case) -> str:
    """A case in words."""
    return case["workload"] + (" (shrunk)" if case["shrunk"] else "")


def table(rows: Iterable[tuple[str, Case]], cell: Callable[[Case, Record], str]) -> list[str]:
    """A row for each case, a column for each peer."""
    rows = list(rows)
    peers = [peer for peer in (*PEERS, *VARIANTS) if any(peer in case["peers"] for _, case in rows)]
    lines = ["| | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
    for name, case in rows:
        cells = [_cell(case, case["peers"].get(peer), cell) for peer in peers]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(case: Case, record: Record | None, cell: Callable[[Case, Record], str]) -> str:
    if record is None:
        return ""
    if record["status"] == "timed" or (cell is error and "error" in record):
        return cell(case, record)
    if cell is not milliseconds:
        return "-"
    if record["status"] == "disagrees":
        return f"disagrees: error {error(case, record)}"
    return f"cannot: {record['reason']}".replace("|", "\\|")


def reports(cases: list[Case]) -> list[str]:
    """Every table of the measurements that vary nothing, by device and order."""
    lines: list[str] = []
    for device, order in dict.fromkeys((case["device"], case["order"]) for case in cases):
        chosen = [(title(c), c) for c in cases if (c["device"], c["order"]) == (device, order)]
        on = "" if device == "cpu" else f" on {device}"
        caption = "Milliseconds of one meta-iteration: **median**, as a multiple of fewstep's (quartiles):"
        lines += [f"### {order.capitalize()}-order{on}", "", caption, "", *table(chosen, milliseconds)]
        for caption, cell in CELLS.items():
            rows = [row for row in chosen if cell is not share or row[1]["settings"]["network"] == "convnet"]
            lines += [f"{caption}:", "", *table(rows, cell)] if rows else []
    return lines


def series(cases: list[Case]) -> list[str]:
    """Tables for each quantity that was varied."""
    lines: list[str] = []
    for group in dict.fromkeys((title(c), c["device"], c["order"], c["varied"][0]) for c in cases):
        name, device, order, field = group
        chosen = [c for c in cases if (title(c), c["device"], c["order"], c["varied"][0]) == group]
        rows = sorted(((c["varied"][1], c) for c in chosen), key=lambda row: row[0])
        for quantity, cell in (("Milliseconds", milliseconds), ("Peak memory, MB,", memory)):
            lines += [f"{quantity} against {field}, {name}, {order}-order, {device}:", ""]
            lines += table(((str(value), case) for value, case in rows), cell)
    return lines


def circumstances(cases: list[Case]) -> list[str]:
    """On what, when and how long; cases that share them share a line."""
    lines: dict[str, list[Case]] = {}
    for case in cases:
        machine = case["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        device = machine.get("gpu") or case["device"]
        line = (
            f"{case['date'][:10]}, {device}, {machine['cpu']}, {case['threads']} of {machine['cores']} cores, Python "
            f"{machine['python']}, {versions}; matrix products {case['matmul_rate'] / 1e9:.0f} GFLOP/s; "
            f"{case['seconds']:.0f} s for each case in {case['rounds']} rounds"
        )
        lines.setdefault(line, []).append(case)
    return [f"- {', '.join(dict.fromkeys(map(title, same)))}: {line}; {_load(same)}." for line, same in lines.items()]


def _load(cases: list[Case]) -> str:
    loads = [case["load"] for case in cases]
    return f"load average before each case {min(loads):.1f} to {max(loads):.1f}"
