"""Speed of one meta-iteration, fewstep beside its peers. From the root of the checkout:

python -m benchmarks.speed --json speed.json                              # every workload, both orders
python -m benchmarks.speed --json speed.json --scaling --seconds 10       # series, added to the same file
python -m benchmarks.speed --render speed.json --into docs/benchmarks.md  # tables and docs/figures/speed.png
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from benchmarks.speed.client import WorkerError, environment
from benchmarks.speed.harness import Options, measure, restrict
from benchmarks.speed.machine import describe
from benchmarks.speed.peers import PEERS, VARIANTS
from benchmarks.speed.results import best_peers, merge, read
from benchmarks.speed.workloads import SWEEPS, WORKLOADS, Order, Workload, shrunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    Varied = tuple[str, int] | None


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("speed.json"), help="results, merged into what is there")
    parser.add_argument("--only", type=_names(WORKLOADS), default=list(WORKLOADS), help="workloads, by commas")
    parser.add_argument("--peers", type=_names((*PEERS, *VARIANTS)), help="peers, by commas; all by default")
    parser.add_argument("--orders", type=_names(("second", "first")), help="both by default; with --scaling, second")
    parser.add_argument("--seconds", type=float, default=60, help="timed seconds for each workload and order")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--patience", type=float, default=1800, help="seconds that one answer of a peer may take")
    parser.add_argument("--starting", type=int, default=1, help="peers that compile at a time, on these threads")
    parser.add_argument("--quick", action="store_true", help="two rounds in two seconds")
    parser.add_argument("--shrink", action="store_true", help="tiny versions of the workloads, to check agreement")
    parser.add_argument("--scaling", action="store_true", help="series over tasks, inner steps and ways")
    parser.add_argument("--vary", type=_series, help="one series only, such as steps=5,50")
    parser.add_argument("--render", type=Path, help="only write the tables and the figure of these results")
    parser.add_argument("--into", type=Path, default=Path("docs/benchmarks.md"), help="page to write them into")
    return parser.parse_args()


def _names(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(known)}: got {', '.join(unknown)}")
        return names

    return parse


def _series(text: str) -> dict[str, tuple[int, ...]]:
    field, _, values = text.partition("=")
    if field not in {f.name for f in fields(Workload) if f.type == "int"} or not values:
        raise argparse.ArgumentTypeError(f"must be such as steps=5,50 or tasks=8,16: got {text!r}")
    return {field: tuple(int(value) for value in values.split(","))}


def cases(args: argparse.Namespace) -> Iterator[tuple[Workload, Order, Varied]]:
    """What to measure, in order."""
    for name in args.only:
        workload = shrunk(WORKLOADS[name]) if args.shrink else WORKLOADS[name]
        for order in args.orders or (["second"] if args.scaling else ["second", "first"]):
            if not args.scaling:
                yield workload, order, None
                continue
            for field, values in (args.vary or SWEEPS.get(name, {})).items():
                for value in values:
                    yield replace(workload, **{field: value}), order, (field, value)


def peers_for(args: argparse.Namespace, workload: Workload, order: Order, *, steps: bool) -> list[str]:
    """Those asked for; in a series by default fewstep and the two best of the workload's own measurement.

    Against inner steps also fewstep's ways to spend memory on them.
    """
    if args.peers:
        return args.peers
    if not args.scaling:
        return list(PEERS)
    others = best_peers(read(args.json), workload.name, order, args.device) or ["loop", "vmap"]
    return ["fewstep", *(["fewstep-eager", "fewstep-remat"] if steps else []), *others]


def run(args: argparse.Namespace, log: IO[str]) -> None:
    """Measure case by case; each is in the file before the next begins."""
    restrict(args.threads)
    command = [sys.executable, "-m", "benchmarks.speed.machine", str(args.threads), args.device]
    rate = float(subprocess.check_output(command, env=environment(args.threads)))
    say(f"matrix products: {rate / 1e9:.0f} GFLOP/s")
    seconds, rounds = (2.0, 2) if args.quick else (args.seconds, args.rounds)
    for workload, order, varied in cases(args):
        load = os.getloadavg()[0]
        say(f"{workload.name}, {order}-order" + (f", {varied[0]} = {varied[1]}" if varied else ""))
        peers = peers_for(args, workload, order, steps=varied is not None and varied[0] == "steps")
        options = Options(peers, seconds, rounds, args.threads, args.device, args.patience, args.starting)
        try:
            measured = measure(workload, order, options, log, say)
        except WorkerError as error:
            say(f"  not measured, for want of a reference: {error}")
            continue
        for peer, record in measured["peers"].items():
            if record["status"] == "timed":
                say(f"  {peer}: {1e3 * record['median']:.3g} ms, {record['iterations']} iterations")
        case = {"workload": workload.name, "order": order, "device": args.device, "shrunk": args.shrink}
        case |= {"varied": varied, "date": datetime.now(UTC).isoformat(timespec="seconds"), "load": load}
        case |= {"threads": args.threads, "seconds": seconds, "rounds": rounds, "matmul_rate": rate}
        merge(args.json, case | {"machine": describe(), "settings": vars(workload)} | measured)


def say(line: str) -> None:
    """Progress, for whoever waits."""
    print(line, flush=True)


def main() -> None:
    """Measure or render."""
    args = arguments()
    args.scaling |= args.vary is not None
    if args.render:
        from benchmarks.speed.render import render

        render(args.render, args.into)
        return
    with args.json.with_suffix(".log").open("a") as log:
        run(args, log)


if __name__ == "__main__":
    main()
