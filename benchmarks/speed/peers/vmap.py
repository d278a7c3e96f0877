"""By hand: `torch.func.vmap` over tasks of `grad` inside `grad`, as in PyTorch's own example of MAML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.speed.problem import adam, math_attention
from torch.func import functional_call, grad, grad_and_value, vmap

if TYPE_CHECKING:
    from benchmarks.speed.problem import Problem
    from torch import Tensor

    Params = dict[str, Tensor]


class Vmap:
    """All tasks as one batched computation."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.parameters = problem.parameters()
        self.optimizer = adam(list(self.parameters.values()))
        self.meta_gradient = grad_and_value(self._mean_query_loss)

    def step(self) -> float:
        params = {name: value.detach() for name, value in self.parameters.items()}
        with math_attention():
            grads, loss = self.meta_gradient(params)
        for name, value in self.parameters.items():
            value.grad = grads[name]
        self.optimizer.step()
        return loss.item()

    def gradient(self) -> Params:
        return self.problem.gradient()

    def _mean_query_loss(self, params: Params) -> Tensor:
        p = self.problem
        tasks = (p.support_inputs, p.support_targets, p.query_inputs, p.query_targets)
        return vmap(self._query_loss, in_dims=(None, 0, 0, 0, 0))(params, *tasks).mean()

    def _query_loss(
        self, params: Params, support_inputs: Tensor, support_targets: Tensor, inputs: Tensor, targets: Tensor
    ) -> Tensor:
        p, workload = self.problem, self.problem.workload

        def support_loss(chosen: Params, others: Params) -> Tensor:
            return p.loss(functional_call(p.model, chosen | others, (support_inputs,)), support_targets)

        others = {name: value for name, value in params.items() if not workload.adapts(name)}
        adapted = {name: value for name, value in params.items() if workload.adapts(name)}
        for _ in range(workload.steps):
            grads = grad(support_loss)(adapted, others)
            if not p.second_order:
                grads = {name: value.detach() for name, value in grads.items()}
            adapted = {name: value - workload.inner_lr * grads[name] for name, value in adapted.items()}
        return p.loss(functional_call(p.model, adapted | others, (inputs,)), targets)
