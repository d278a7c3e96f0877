"""Environment steps per second, a policy's forward pass and recording included. From the root of the checkout:

python -m benchmarks.environments --json benchmarks/environments.json

Beside fewstep: Gymnasium's SyncVectorEnv and AsyncVectorEnv over fewstep's environment as Gymnasium's own, both over
Gymnasium's HalfCheetah-v5 or Ant-v5, and MuJoCo's batch alone, with the same model, sensors, stages and threads, under
controls that are drawn beforehand. Every contender acts by the same policy: an MLP of 100-100 whose parameters differ
by task. Rounds are interleaved, so what else the machine does meets all of them; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch.func import functional_call, stack_module_state, vmap

from fewstep.core.rng import generator
from fewstep.rl.envs import GYMNASIUM, HORIZON
from fewstep.rl.envs.locomotion import LOCOMOTION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

TASKS, TRAJECTORIES = 40, 20
GYMS = {"SyncVectorEnv": 40, "AsyncVectorEnv": 16}
"""Environments of a vector environment: of 2, 4, 8, 16, 40 and 80, the number with which it was fastest on 2 cores."""
RAW, OURS = "MuJoCo's batch alone", "fewstep"
OWN = {f"{kind}, Gymnasium's own": kind for kind in GYMS}


class Policy:
    """Mean actions of an MLP 100-100, for observations `[tasks, trajectories, features]`; parameters differ by task."""

    def __init__(self, features: int, actions: int, tasks: int) -> None:
        torch.manual_seed(0)
        sizes = (features, 100, 100, actions)
        layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        self._net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
        self._parameters, _ = stack_module_state([self._net] * tasks)
        self._noise = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Sample actions, with standard deviation 1 as at the beginning of training."""
        mean = vmap(partial(functional_call, self._net))(self._parameters, observations)
        return mean + torch.randn(mean.shape, generator=self._noise)


def ours(name: str, physics: Any, threads: int) -> Callable[[int], int]:
    """Plays so many time steps of 40 x 20 episodes, recorded in tensors; the number of environment steps."""
    environment = LOCOMOTION[name](physics, threads=threads)
    policy = Policy(environment.observation_size, environment.actions.size, TASKS)
    tasks = environment.sample_tasks(TASKS, generator(0, "tasks"))

    def play(horizon: int) -> int:
        episodes, observations = environment.reset(tasks, TRAJECTORIES, generator(0, "start"))
        shape = (TASKS, TRAJECTORIES, horizon)
        seen = torch.empty(*shape, environment.observation_size)
        acted = torch.empty(*shape, environment.actions.size)
        paid, over = torch.empty(shape), torch.zeros(shape, dtype=torch.bool)
        for t in range(horizon):
            seen[:, :, t] = observations
            acted[:, :, t] = actions = policy(observations)
            observations, paid[:, :, t], over[:, :, t] = episodes.step(actions)
        return int((~over).sum()) + int(over.any(-1).sum())  # only steps of episodes that went on

    return play


def raw(name: str, physics: Any, threads: int) -> Callable[[int], int]:
    """The simulation alone, with controls drawn beforehand and nothing read but what sensors and stages compute."""
    environment = LOCOMOTION[name](physics, threads=threads)
    tasks = environment.sample_tasks(TASKS, generator(0, "tasks"))
    shape = (HORIZON, TASKS * TRAJECTORIES, environment.actions.size)
    controls = torch.randn(shape, generator=generator(0, "controls")).double().clamp(-1, 1).numpy()
    going = np.ones(TASKS * TRAJECTORIES, dtype=bool)

    def play(horizon: int) -> int:
        episodes, _ = environment.reset(tasks, TRAJECTORIES, generator(0, "start"))
        for t in range(horizon):
            episodes.simulation.step(controls[t], going)
        return horizon * len(going)

    return play


def vector(make: Callable[[], Any], kind: str) -> Callable[[int], int]:
    """Plays a vector environment of Gymnasium's; each environment is one task's, with the task's own policy."""
    count = GYMS[kind]
    environments = getattr(gymnasium.vector, kind)([make] * count)
    features = environments.single_observation_space.shape[0]
    size = environments.single_action_space.shape[0]
    policy = Policy(features, size, count)

    def play(horizon: int) -> int:
        observations, _ = environments.reset(seed=0)
        seen, acted = torch.empty(count, horizon, features), torch.empty(count, horizon, size)
        paid, over = torch.empty(count, horizon), torch.zeros(count, horizon, dtype=torch.bool)
        for t in range(horizon):
            seen[:, t] = tensor = torch.from_numpy(observations).float()
            acted[:, t] = actions = policy(tensor.unsqueeze(1)).squeeze(1)
            observations, rewards, terminated, truncated, _ = environments.step(actions.clamp(-1, 1).numpy())
            paid[:, t] = torch.from_numpy(rewards)
            over[:, t] = torch.from_numpy(terminated | truncated)
        return horizon * count

    play.close = environments.close  # type: ignore[attr-defined]
    return play


def make_ours(name: str, physics: Any) -> Any:
    """fewstep's environment as Gymnasium's."""
    identity = next(theirs for theirs, own in GYMNASIUM.items() if own == name)
    return gymnasium.make(f"fewstep.rl.envs:{identity}", physics=physics)


def make_theirs(name: str) -> Any:
    """Gymnasium's own robot, without a goal."""
    sys.modules.setdefault("imageio", sys)  # imported by Gymnasium to save what a window shows, and not needed here
    return gymnasium.make("HalfCheetah-v5" if name.startswith("cheetah") else "Ant-v5")


@contextmanager
def contenders(name: str, physics: Any, threads: int) -> Iterator[dict[str, Callable[[int], int]]]:
    """All that are compared, by name."""
    face, own = partial(make_ours, name, physics), partial(make_theirs, name)
    plays = {OURS: ours(name, physics, threads), RAW: raw(name, physics, threads)}
    plays |= {kind: vector(face, kind) for kind in GYMS}
    if physics == "gymnasium":
        plays |= {name: vector(own, kind) for name, kind in OWN.items()}
    try:
        yield plays
    finally:
        for play in plays.values():
            getattr(play, "close", lambda: None)()


def measure(name: str, physics: Any, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Steps per second of every contender in every round."""
    with contenders(name, physics, threads) as plays:
        for play in plays.values():
            play(3)
        horizons = dict.fromkeys(plays, 0)
        for contender, play in plays.items():
            start = time.perf_counter()
            play(10)
            horizons[contender] = max(20, min(HORIZON, int(10 * seconds / (time.perf_counter() - start))))
        rates: dict[str, list[float]] = {contender: [] for contender in plays}
        for _ in range(rounds):
            for contender, play in plays.items():
                start = time.perf_counter()
                steps = play(horizons[contender])
                rates[contender].append(steps / (time.perf_counter() - start))
    return {"environment": name, "physics": physics, "threads": threads, "rates": rates}


def row(case: dict[str, Any]) -> str:
    """One line of the table: rates, and fewstep's ratios within each round."""
    rates = case["rates"]
    cells = [f"{statistics.median(rates[n]) / 1000:.1f}" if n in rates else "-" for n in (OURS, *GYMS, *OWN, RAW)]
    ratios = [f"{ratio(rates, kinds):.1f}" if set(kinds) <= set(rates) else "-" for kinds in (GYMS, OWN)]
    where = f"{case['environment']}, {case['physics']}"
    return f"| {where} | {' | '.join((*cells, *ratios))} | {100 * ratio(rates, [RAW]):.0f} % |"


def ratio(rates: dict[str, list[float]], others: Iterable[str]) -> float:
    """fewstep's rate over the best of the others', the median over rounds."""
    best = [max(values) for values in zip(*(rates[other] for other in others), strict=True)]
    return statistics.median(a / b for a, b in zip(rates[OURS], best, strict=True))


HEADER = (
    "| thousands of steps per second | fewstep | Sync | Async | Sync, Gymnasium's own | Async, Gymnasium's own "
    "| MuJoCo alone | fewstep over the better vector environment | over Gymnasium's own | of MuJoCo alone "
    "|\n" + "|---" * 10 + "|"
)


def main() -> None:
    """Measure, print a Markdown table, and write all rounds."""
    parser = argparse.ArgumentParser("python -m benchmarks.environments", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="where all rounds are written")
    parser.add_argument("--only", nargs="*", default=["cheetah-velocity", "ant-velocity"], choices=sorted(LOCOMOTION))
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="that step fewstep's simulation and MuJoCo's"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long one contender plays in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)  # for everybody: the policy is too small to be divided
    print(HEADER)
    cases = []
    for name in options.only:
        for physics in ("paper", "gymnasium"):
            cases.append(measure(name, physics, options.threads, options.rounds, options.seconds))
            print(row(cases[-1]), flush=True)
    if options.json:
        machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        options.json.write_text(json.dumps({"machine": machine, "cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
