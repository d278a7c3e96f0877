"""fewstep itself, through its public learner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.speed.problem import adam, plain_loss

import fewstep
from fewstep.core.running import compiled, traced
from fewstep.core.stepwise import stepwise

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.speed.problem import Problem
    from benchmarks.speed.workloads import Workload
    from torch import Tensor


def _compiled(workload: Workload) -> dict[str, Any]:
    """By the rule that recipes follow where a run is long enough to compile."""
    if workload.name in ("lstm", "transformer"):
        return _eager(workload)
    if workload.name.startswith("sinusoid"):
        return {"over_tasks": fewstep.vectorized(), "run": compiled()}
    return _stepwise(workload, run=compiled(), keep=True)


def _eager(workload: Workload) -> dict[str, Any]:  # noqa: ARG001
    return {"over_tasks": fewstep.auto()}


def _stepwise(workload: Workload, **how: Any) -> dict[str, Any]:
    large = workload.name.startswith("miniimagenet")
    return {"over_tasks": stepwise(**({"vectorize": not large, "forward_mode": workload.classifies} | how))}


EXECUTIONS: dict[str, Callable[[Workload], dict[str, Any]]] = {
    "fewstep": _compiled,
    "fewstep-eager": _eager,
    "fewstep-remat": lambda workload: _stepwise(workload, run=traced),  # `execution.remat`
    "fewstep-recomputing": lambda workload: _stepwise(workload, run=compiled()),
    "fewstep-reverse": lambda workload: _stepwise(workload, run=compiled(), keep=True, forward_mode=False),
}


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
