"""What a trust-region step gains from better curvature: more tasks, more products. From the root of the checkout:

python -m benchmarks.curvature runs/ant-direction --tasks 10,20,40 --iterations 10,20

Samples one meta-batch with the last meta-parameters of a run, and takes the same step from there with the curvature of
the first tasks alone, or of all, and with other numbers of iterations of the conjugate gradient.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from fewstep.core.rng import generator
from fewstep.core.trust_region import trust_region_step
from fewstep.experiments.data import find_data
from fewstep.experiments.runs import load_learner, open_run, recipe_of
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.learners.stopwatch import Stopwatch


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Print a Markdown table, line by line."""
    parser = argparse.ArgumentParser("python -m benchmarks.curvature", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder of reinforcement learning")
    parser.add_argument("--tasks", type=_numbers, default=[10, 20, 40], help="of the curvature, by commas")
    parser.add_argument("--iterations", type=_numbers, default=[10], help="of the conjugate gradient, by commas")
    args = parser.parse_args()
    folder = open_run(args.run)
    recipe = recipe_of(folder)
    if max(args.tasks) > recipe.meta.batch_size:
        parser.error(f"--tasks must be at most those of a meta-batch, {recipe.meta.batch_size}: got {max(args.tasks)}")
    data = find_data(recipe, None, None, None, "cpu")
    learner = load_learner(folder, recipe, "final", environment=data.environment)
    if not isinstance(learner, ReinforcementLearner):
        parser.error(f"{args.run} is no run of reinforcement learning")
    stream = generator(recipe.seed, "train", recipe.meta.iterations)
    tasks = data.distribution("train", None, None).sample(recipe.meta.batch_size, stream)
    recording, _ = learner._collect(tasks, Stopwatch())
    print("| tasks | iterations | step, of the longest | surrogate loss falls by | KL | seconds |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    for count, iterations in product(args.tasks, args.iterations):
        config = replace(learner._trust_region, curvature_tasks=count, iterations=iterations)
        once = replace(config, iterations=1)  # what is recorded in first calls is not timed
        for how in (once, config):
            begun = time.perf_counter()
            _, report = trust_region_step(
                learner._surrogate, learner._kl, learner.meta, recording, how, learner._over_tasks
            )
        seconds = time.perf_counter() - begun
        fall = report.objective_before - report.objective_after
        row = f"{report.step_fraction:.2f} | {fall:.5f} | {report.divergence:.4f} | {seconds:.0f}"
        print(f"| {count} | {iterations} | {row} |", flush=True)


if __name__ == "__main__":
    main()
