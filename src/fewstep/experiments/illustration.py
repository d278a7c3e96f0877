"""Examples of adaptation that an evaluation leaves behind, to be drawn later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.core.rng import generator
from fewstep.errors import NonFiniteError
from fewstep.files import read_json, write_json
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.rl.sampling import Mdps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fewstep.core.types import Batch
    from fewstep.experiments.build import BuiltLearner
    from fewstep.experiments.data import Data
    from fewstep.experiments.sections import Evaluate
    from fewstep.learners.adapted import Adapted
    from fewstep.tasks.task import Curve, TaskDistribution
    from fewstep.training.records import RunFolder

_WALKS = 5
"""Episodes of each task to draw."""


def illustrate(
    run: RunFolder, distribution: TaskDistribution, data: Data, learner: BuiltLearner, plan: Evaluate
) -> None:
    """Store what can be drawn of the adaptation to two tasks: one-dimensional predictions, or walks in the plane.

    Args:
        run: Where.
        distribution: The tasks.
        data: Says in which units.
        learner: Adapts.
        plan: Steps and trajectories.
    """
    curve = getattr(distribution, "curve", None)
    if isinstance(learner, ReinforcementLearner):
        from fewstep.rl.envs.navigation import Navigation
        from fewstep.rl.envs.revealed import Revealed

        environment = learner.environment
        seen = environment.environment if isinstance(environment, Revealed) else environment
        if isinstance(seen, Navigation) and isinstance(distribution, Mdps):
            _keep(run, learner, _walks(distribution, learner, plan))
    elif curve is not None and (data.standardization is None or data.standardization.columns == (1, 1)):
        tasks = run.config["tasks"]
        columns = {"columns": [tasks["inputs"][0], tasks["targets"][0]]} if tasks["kind"] == "table" else {}
        _keep(run, learner, [example | columns for example in _predictions(curve, data, learner.adapt, plan)])


def is_stored(run: RunFolder, iteration: int | None) -> bool:
    """Whether there is something to be drawn; of the meta-parameters of an iteration, if one is given."""
    path = run.path / "illustration.json"
    stored = read_json(path) if path.is_file() else []
    return bool(stored) and iteration in (None, stored[0].get("iteration", iteration))  # none in those of before


def _keep(run: RunFolder, learner: BuiltLearner, examples: list[dict[str, Any]]) -> None:
    """Write what there is; without any, that of an evaluation before goes."""
    path = run.path / "illustration.json"
    if examples:
        write_json(path, [{"iteration": learner.iteration} | example for example in examples])
    else:
        path.unlink(missing_ok=True)


def _walks(distribution: Mdps, learner: ReinforcementLearner, plan: Evaluate) -> list[dict[str, Any]]:
    """Positions of a few episodes, to the end of each."""
    tasks = distribution.sample(2, generator(plan.seed, "illustrate"))
    examples: list[dict[str, Any]] = [{"goal": goal, "walks": {}} for goal in tasks.parameters.tolist()]
    try:
        rollouts = list(learner.rollouts(tasks, plan.steps, plan.trajectories))
    except NonFiniteError:  # the evaluation itself says so, with returns that are none
        return []
    for step in sorted({0, min(1, plan.steps), plan.steps}):
        rollout = rollouts[step]
        positions, mask = rollout.trajectories.observations[..., :2], rollout.trajectories.mask > 0
        for i, example in enumerate(examples):
            walks = zip(positions[i, :_WALKS], mask[i, :_WALKS], strict=True)
            example["walks"][str(step)] = [walk[taken].tolist() for walk, taken in walks]
    return examples


def _predictions(
    curve: Callable[[Any], Curve], data: Data, adapt: Callable[[Batch, int], Adapted], plan: Evaluate
) -> list[dict[str, Any]]:
    inputs, targets = _restorers(data)
    stored = []
    for i in range(2):
        drawn = curve(generator(plan.seed, "illustrate", i))
        support = drawn.task.support
        try:
            adapted = {steps: adapt(support, steps) for steps in sorted({0, min(1, plan.steps), plan.steps})}
        except NonFiniteError:  # the evaluation itself says so, with a loss that is not finite
            continue
        stored.append(
            {
                "shots": plan.shots,
                "grid": inputs(drawn.inputs),
                "truth": targets(drawn.targets),
                "support": {"inputs": inputs(support.inputs), "targets": targets(support.targets)},
                "predictions": {str(steps): targets(model(drawn.inputs).cpu()) for steps, model in adapted.items()},
            }
        )
    return stored


def _restorers(
    data: Data,
) -> tuple[Callable[[Tensor], list[float]], Callable[[Tensor], list[float]]]:
    scale = data.standardization
    if scale is None:
        return (lambda x: x[:, 0].tolist()), (lambda y: y[:, 0].tolist())
    return (
        lambda x: (x.double()[:, 0] * scale.input_std[0] + scale.input_mean[0]).tolist(),
        lambda y: scale.restore(y)[:, 0].tolist(),
    )
