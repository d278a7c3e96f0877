"""How much of a policy gradient is signal, by the lambda of its advantages. From the root of the checkout:

python -m benchmarks.gradient_noise ant-direction --lambdas 1,0.95,0.9

Samples every task twice with the same policy, that of a run's last checkpoint or a recipe's first, and takes the inner
gradient of each. What both have in common is signal: the cosine between them is |g|^2 / (|g|^2 + the noise), which
would be 1 with endless trajectories.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import mean, stdev

import torch

from fewstep.core.context import vmapped
from fewstep.core.rng import generator
from fewstep.core.trees import leaves
from fewstep.experiments.build import build_learner
from fewstep.experiments.data import find_data
from fewstep.experiments.recipe_files import load_recipe, recipe_values
from fewstep.experiments.runs import open_run, recipe_of
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.training.checkpoint import load_checkpoint


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def main() -> None:
    """Print a Markdown table, line by line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gradient_noise", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("run", help="a run folder of reinforcement learning, or the name of a recipe")
    parser.add_argument("--lambdas", type=_numbers, default=[1.0, 0.97, 0.95, 0.9, 0.8, 0.5], help="by commas")
    parser.add_argument("--tasks", type=int, default=16, help="at least 2")
    args = parser.parse_args()
    checkpoint = Path(args.run) / "checkpoint.pt"
    recipe = recipe_of(open_run(args.run)) if checkpoint.is_file() else load_recipe(args.run)
    data = find_data(recipe, None, None, None, "cpu")
    tasks = data.distribution("train", None, None).sample(args.tasks, generator(recipe.seed, "gradient noise"))
    learners: list[ReinforcementLearner] = []
    for factor in args.lambdas:
        each = load_recipe(recipe_values(recipe), [f"loss.gae_lambda={factor}"])
        learner = build_learner(each, environment=data.environment)
        if not isinstance(learner, ReinforcementLearner):
            parser.error(f"{args.run} is not of reinforcement learning")
        if checkpoint.is_file():
            learner.load_state_dict(load_checkpoint(checkpoint)["learner"])
        learners.append(learner)
    sampled = [
        next(learners[0].rollouts(tasks._replace(seed=tasks.seed + shift), 0))
        for shift in (0, 1 + int(tasks.seed.max()))
    ]
    print(
        f"iteration {learners[0].iteration}, {args.tasks} tasks, {recipe.tasks.trajectories} trajectories each, twice\n"
    )
    print("| lambda | cosine between two gradients of a task | length of a gradient |\n|---|---|---|")
    for factor, learner in zip(args.lambdas, learners, strict=True):
        gradient = vmapped(torch.func.grad(learner._rollouts.inner_loss))
        one, other = (
            torch.cat(
                [leaf.flatten(1) for leaf in leaves(gradient(r.params, learner._rollouts.experience(r.trajectories)))],
                1,
            )
            for r in sampled
        )
        cosines = torch.nn.functional.cosine_similarity(one, other).tolist()
        interval = 1.96 * stdev(cosines) / math.sqrt(len(cosines))
        print(f"| {factor:g} | {mean(cosines):.3f} ± {interval:.3f} | {one.norm(dim=1).mean():.2f} |", flush=True)


if __name__ == "__main__":
    main()
