"""fewstep itself, through its public learner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.speed.problem import adam, plain_loss

import fewstep
from fewstep.core.running import compiled
from fewstep.core.stepwise import stepwise

if TYPE_CHECKING:
    from benchmarks.speed.problem import Problem
    from benchmarks.speed.workloads import Workload
    from torch import Tensor


def execution_for(workload: Workload) -> dict[str, Any]:
    """How fewstep runs this workload, by the rule that its recipes follow where a run is long enough to compile."""
    if workload.name in ("lstm", "transformer"):
        return {"over_tasks": fewstep.auto()}
    if workload.name.startswith("sinusoid"):
        return {"over_tasks": fewstep.vectorized(), "run": compiled()}
    small = workload.name.startswith("omniglot")
    return {"over_tasks": stepwise(vectorize=small, run=compiled(), keep=True, forward_mode=True)}


class Fewstep:
    """One `SupervisedLearner.step` for each meta-iteration."""

    def __init__(self, problem: Problem, execution: dict[str, Any]) -> None:
        p, workload = problem, problem.workload
        rule = fewstep.Sgd(workload.inner_lr)
        rule = fewstep.Except(workload.fixed, rule) if workload.fixed else rule
        algorithm = fewstep.maml if p.second_order else fewstep.fomaml
        self.learner = fewstep.SupervisedLearner(
            p.model,
            plain_loss(workload),
            algorithm(rule, workload.steps),
            optimizer=adam,
            loss_scale=workload.loss_scale,
            **execution,
            device=p.support_inputs.device,
        )
        support = fewstep.Batch(p.support_inputs, p.support_targets)
        self.tasks = fewstep.Task(support, fewstep.Batch(p.query_inputs, p.query_targets))

    def step(self) -> float:
        return self.learner.step(self.tasks)["query_loss"]

    def gradient(self) -> dict[str, Tensor]:
        return {name: value.grad for name, value in self.learner.meta.model.items() if value.grad is not None}
