"""The file of results: a list of cases, each with its own date and machine, merged run by run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.speed.workloads import WORKLOADS

if TYPE_CHECKING:
    from pathlib import Path

Case = dict[str, Any]


def read(path: Path) -> list[Case]:
    """The cases of a file; none where it does not exist."""
    return json.loads(path.read_text())["cases"] if path.exists() else []


def identity(case: Case) -> tuple[Any, ...]:
    """What makes two cases the same measurement: the later one replaces the earlier."""
    return case["workload"], case["order"], case["device"], case["shrunk"], tuple(case["varied"] or ())


def merge(path: Path, case: Case) -> None:
    """Put a case into the file in place of an earlier one; whole at any moment."""
    cases = read(path)
    places = [i for i, old in enumerate(cases) if identity(old) == identity(case)]
    if places:
        cases[places[0]] = case
    else:
        cases.append(case)
    cases.sort(key=lambda case: list(WORKLOADS).index(case["workload"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    fresh.replace(path)


def best_peers(cases: list[Case], workload: str, order: str, device: str, count: int = 2) -> list[str]:
    """The fastest peers of a workload as measured before, without fewstep and one variant of each tool."""
    for case in cases:
        if identity(case) == (workload, order, device, False, ()):
            timed = {name: peer["median"] for name, peer in case["peers"].items() if peer["status"] == "timed"}
            fastest: dict[str, str] = {}
            for name in sorted(timed, key=lambda name: timed[name]):
                fastest.setdefault(name.partition("-")[0], name)
            fastest.pop("fewstep", None)
            return list(fastest.values())[:count]
    return []
