"""fewstep itself, through its public learner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from benchmarks.speed.problem import adam, plain_loss

import fewstep
from fewstep.core import convolution
from fewstep.core.over_tasks import side_by_side
from fewstep.core.running import captured, compiled, traced
from fewstep.core.stepwise import stepwise
from fewstep.experiments.execution import build_execution
from fewstep.experiments.recipe_files import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.speed.problem import Problem
    from torch import Tensor


def _fast(problem: Problem, precision: str = "float32") -> dict[str, Any]:
    """As a compiled recipe of that kind runs."""
    workload = problem.workload
    images = "miniimagenet" if workload.downsample == "max_pool" else "omniglot"
    tasks, model = {"mlp": ("sinusoid", "mlp"), "convnet": (images, "convnet")}.get(workload.network, ("custom",) * 2)
    loss = "cross_entropy" if workload.classifies else "mse"
    kinds = {"tasks": tasks, "model": model, "loss": loss, "algorithm": "maml"}
    settings = ["execution.compile=true", f"execution.precision={precision}"]
    recipe = load_recipe({name: {"kind": kind} for name, kind in kinds.items()}, settings)
    over_tasks, run = build_execution(recipe, problem.support_inputs.device.type)
    return {"over_tasks": over_tasks, "run": run}


def _tensor_float(problem: Problem) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        True  # for the rest of this process, as below
    )
    return _fast(problem, "tf32")


def _grouped(problem: Problem) -> dict[str, Any]:
    convolution.pays = lambda _: False  # for the rest of this process
    return _fast(problem)


def _stepwise(problem: Problem, **how: Any) -> dict[str, Any]:
    one_by_one = problem.workload.name.startswith("miniimagenet") and not problem.on_gpu
    chosen = {"vectorize": not one_by_one, "forward_mode": problem.workload.classifies} | how
    return {"over_tasks": stepwise(**chosen)}


EXECUTIONS: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "fewstep": _fast,
    "fewstep-eager": lambda _: {"over_tasks": fewstep.auto()},
    "fewstep-remat": _stepwise,  # `execution.remat`
    "fewstep-recomputing": lambda problem: _stepwise(problem, run=compiled()),
    "fewstep-reverse": lambda problem: _stepwise(problem, run=compiled(), keep=True, forward_mode=False),
    "fewstep-grouped": _grouped,
    "fewstep-bf16": lambda problem: _fast(problem, "bf16"),
    "fewstep-tf32": _tensor_float,
    "fewstep-captured": lambda _: {"over_tasks": fewstep.auto(), "run": captured()},
    "fewstep-side": lambda _: {"over_tasks": side_by_side(traced), "run": captured()},
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
