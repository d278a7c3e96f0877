"""What a trust-region step gains from better curvature: more time steps, more products. From the root of the checkout:

python -m benchmarks.curvature runs/ant-direction --every 1,10 --iterations 10,20

Samples meta-batches with the last meta-parameters of a run, and takes the same step from there, found on the first of
them, with the curvature of every so many-th time step and so many iterations of the conjugate gradient. What the step
gains on the batch that it was found on says little, since it fits that batch's noise; so it is measured on the others.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from fewstep.core.rng import generator
from fewstep.core.trees import mean as over_tasks_mean
from fewstep.core.trust_region import trust_region_step
from fewstep.experiments.data import find_data
from fewstep.experiments.runs import load_learner, open_run, recipe_of
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.learners.stopwatch import Stopwatch


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _interval(values: list[float]) -> float:
    return 1.96 * stdev(values) / math.sqrt(len(values))


def main() -> None:
    """Print a Markdown table, line by line."""
    parser = argparse.ArgumentParser("python -m benchmarks.curvature", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder of reinforcement learning")
    parser.add_argument("--every", type=_numbers, default=[1, 10], help="time steps of the curvature, by commas")
    parser.add_argument("--iterations", type=_numbers, default=[10], help="of the conjugate gradient, by commas")
    parser.add_argument("--batches", type=int, default=8, help="new meta-batches, at least 2")
    args = parser.parse_args()
    if args.batches < 2:
        parser.error(f"--batches must be at least 2, for an interval: got {args.batches}")
    folder = open_run(args.run)
    recipe = recipe_of(folder)
    data = find_data(recipe, None, None, None, "cpu")
    learner = load_learner(folder, recipe, "final", environment=data.environment)
    if not isinstance(learner, ReinforcementLearner):
        parser.error(f"{args.run} is no run of reinforcement learning")
    tasks = data.distribution("train", None, None)
    batches = (
        tasks.sample(recipe.meta.batch_size, generator(recipe.seed, "train", recipe.meta.iterations + i))
        for i in range(1 + args.batches)
    )
    recording, *others = [learner._collect(batch, Stopwatch())[0] for batch in batches]
    surrogate, kl = learner._over_tasks(learner._surrogate), learner._over_tasks(learner._kl)
    before = [over_tasks_mean(surrogate(learner.meta, other)).item() for other in others]
    print("| every | iterations | step | falls by | KL | on new batches | KL there | seconds |", flush=True)
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for every, iterations in product(args.every, args.iterations):
        config = replace(learner._trust_region, iterations=iterations)
        once = replace(config, iterations=1)  # what is recorded in first calls is not timed
        for how in (once, config):
            begun = time.perf_counter()
            reached, report = trust_region_step(
                learner._surrogate,
                learner._kl,
                learner.meta,
                recording,
                how,
                learner._over_tasks,
                learner._thinned(recording, every),
            )
        seconds = time.perf_counter() - begun
        after = [over_tasks_mean(surrogate(reached, other)).item() for other in others]
        falls = [b - a for b, a in zip(before, after, strict=True)]
        kls = [over_tasks_mean(kl(reached, other)).item() for other in others]
        here = f"{report.step_fraction:.2f} | {report.objective_before - report.objective_after:.4f}"
        there = f"{mean(falls):.5f} ± {_interval(falls):.5f} | {mean(kls):.4f}"
        print(f"| {every} | {iterations} | {here} | {report.divergence:.4f} | {there} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
