"""Measures one case, a workload at one order: checks that peers agree, then times them in turn."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from benchmarks.speed.agreement import agrees, check_small, disagreement, reference
from benchmarks.speed.client import Client, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.speed.workloads import Order, Workload

PAUSE = 0.05
"""Seconds between turns, in which the threads of the last peer stop spinning."""


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        seconds: Timed seconds of a case, shared equally by its peers.
        rounds: Turns of each peer.
        patience: Seconds that one answer may take.
        starting: Peers that get ready at a time, on the same cores: on a rented GPU, compiling one by one is most of
            the bill. Their first calls take longer then.
    """

    peers: Sequence[str]
    seconds: float
    rounds: int
    threads: int
    device: str
    patience: float
    starting: int = 1


def measure(
    workload: Workload, order: Order, options: Options, log: IO[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """The floating-point operations of a case, and for each peer what came of it.

    Raises:
        WorkerError: There is no reference to compare with.
    """

    started: list[Client] = []

    def start(problem: Workload, peer: str, mode: str, gradient: Path) -> Client:
        spec = {"workload": asdict(problem), "order": order, "peer": peer, "mode": mode, "gradient": str(gradient)}
        started.append(Client(spec | {"device": options.device, "threads": options.threads}, log, options.patience))
        return started[-1]

    def ready(peer: str) -> tuple[dict[str, Any], Client | None]:
        gradient = folder / f"{peer}.npz"
        with ExitStack() as until_agreed:
            try:
                record = check_small(start, workload, peer, ref, folder)
                worker = until_agreed.enter_context(start(workload, peer, "time", gradient))
                record |= worker.receive()
            except WorkerError as error:
                return {"status": "cannot", "reason": str(error)}, None
            record["error"] = disagreement(gradient, ref.full)
            if not agrees(peer, record, ref):
                return {"status": "disagrees", **record}, None
            until_agreed.pop_all()
            return {"status": "timed", **record}, worker

    peers: dict[str, dict[str, Any]] = {}
    clients: dict[str, Client] = {}
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        ref = reference(start, workload, folder)
        with ThreadPoolExecutor(options.starting) as pool:
            try:
                for peer, (record, worker) in zip(options.peers, pool.map(ready, options.peers), strict=True):
                    peers[peer] = record
                    if worker is not None:
                        clients[peer] = stack.enter_context(worker)
                    say(f"  {peer}: {in_words(record)}")
            except BaseException:  # Ctrl-C, say: what waits for an answer ends with the process that it waits for
                pool.shutdown(wait=False, cancel_futures=True)
                for client in started:
                    client.process.kill()
                raise
        take_turns(clients, peers, options)
    return {"flops": ref.flops, "floor": ref.floor, "peers": peers}


def in_words(record: dict[str, Any]) -> str:
    """A peer's record before it is timed."""
    if record["status"] == "cannot":
        return f"cannot: {record['reason']}"
    small = f" ({record['small_error']:.0e} small)" if "small_error" in record else ""
    verdict = "" if record["status"] == "timed" else "disagrees, "
    took = f"first call {record['first']:.3g} s, then {record['estimate']:.3g} s"
    return f"{verdict}error {record['error']:.0e}{small}, {took}"


def turns(estimate: float, share: float, rounds: int) -> list[int]:
    """Meta-iterations for each round: a share of the time, at least five, of slow peers three, at most a thousand."""
    least = 5 if 5 * estimate <= share else 3
    total = max(least, min(1000, int(share / estimate)))
    return [total // rounds + (i < total % rounds) for i in range(rounds)]


def take_turns(clients: dict[str, Client], peers: dict[str, dict[str, Any]], options: Options) -> None:
    """Time every peer in every round, and put what came of it into its record."""
    share = options.seconds / max(len(clients), 1)
    plans = {peer: turns(peers[peer]["estimate"], share, options.rounds) for peer in clients}
    seconds: dict[str, list[list[float]]] = {peer: [] for peer in clients}
    for number in range(options.rounds):
        for peer, worker in clients.items():
            if peers[peer]["status"] != "timed" or not plans[peer][number]:
                continue
            time.sleep(PAUSE)
            try:
                answer = worker.run(plans[peer][number])
            except WorkerError as error:
                peers[peer] |= {"status": "cannot", "reason": str(error)}
                continue
            seconds[peer].append(answer["seconds"])
            peers[peer]["memory"] = answer["memory"]
    for peer, of_rounds in seconds.items():
        if peers[peer]["status"] == "timed":
            peers[peer] |= summary(of_rounds)


def summary(rounds: list[list[float]]) -> dict[str, Any]:
    """Median and quartiles of all iterations, and the median of each round."""
    every = sorted(second for of_round in rounds for second in of_round)
    low, median, high = statistics.quantiles(every, n=4, method="inclusive")
    medians = [statistics.median(of_round) for of_round in rounds]
    return {"median": median, "quartiles": [low, high], "iterations": len(every), "round_medians": medians}


def restrict(threads: int) -> None:
    """Keep this process and its workers on as many cores as they have threads: JAX takes its number from there."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:threads])
