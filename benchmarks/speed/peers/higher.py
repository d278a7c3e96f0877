"""`higher`: patched modules and differentiable optimizers, as in its own example of MAML.

First-order as its maintainers advise (issue 63): nothing tracked, and the gradient at the adapted parameters mapped
back by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import higher
import torch
from benchmarks.speed.problem import adam

if TYPE_CHECKING:
    from benchmarks.speed.problem import Problem
    from torch import Tensor


class Higher:
    """One `innerloop_ctx` for each task."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.parameters = problem.parameters()
        self.optimizer = adam(list(self.parameters.values()))
        adapting = [value for name, value in self.parameters.items() if problem.workload.adapts(name)]
        self.inner_optimizer = torch.optim.SGD(adapting, lr=problem.workload.inner_lr)

    def step(self) -> float:
        p, losses = self.problem, []
        self.optimizer.zero_grad()
        for i in range(p.workload.tasks):
            with higher.innerloop_ctx(
                p.model, self.inner_optimizer, copy_initial_weights=False, track_higher_grads=p.second_order
            ) as (patched, inner):
                for _ in range(p.workload.steps):
                    inner.step(p.loss(patched(p.support_inputs[i]), p.support_targets[i]))
                loss = p.loss(patched(p.query_inputs[i]), p.query_targets[i]) / p.workload.tasks
                if p.second_order:
                    loss.backward()
                else:
                    self._accumulate(loss, [value for value in patched.parameters() if value.requires_grad])
                losses.append(loss.detach())
        self.optimizer.step()
        return torch.stack(losses).sum().item()

    def gradient(self) -> dict[str, Tensor]:
        return self.problem.gradient()

    def _accumulate(self, loss: Tensor, adapted: list[Tensor]) -> None:
        for value, grad in zip(self.parameters.values(), torch.autograd.grad(loss, adapted), strict=True):
            value.grad = grad if value.grad is None else value.grad.add_(grad)
