"""By hand: a loop over tasks around `functional_call` and `autograd.grad`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from benchmarks.speed.problem import adam
from torch.func import functional_call

if TYPE_CHECKING:
    from benchmarks.speed.problem import Problem
    from torch import Tensor


class Loop:
    """One task after the other; each one's graph is freed before the next."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.parameters = problem.parameters()
        self.optimizer = adam(list(self.parameters.values()))

    def step(self) -> float:
        p, tasks = self.problem, self.problem.workload.tasks
        self.optimizer.zero_grad()
        losses = []
        for i in range(tasks):
            params = self._adapted(p.support_inputs[i], p.support_targets[i])
            outputs = functional_call(p.model, params, (p.query_inputs[i],))
            loss = p.loss(outputs, p.query_targets[i]) / tasks
            loss.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        return torch.stack(losses).sum().item()

    def gradient(self) -> dict[str, Tensor]:
        return self.problem.gradient()

    def _adapted(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        p, workload = self.problem, self.problem.workload
        params: dict[str, Tensor] = dict(self.parameters)
        for _ in range(workload.steps):
            loss = p.loss(functional_call(p.model, params, (inputs,)), targets)
            names = [name for name in params if workload.adapts(name)]
            grads = torch.autograd.grad(loss, [params[name] for name in names], create_graph=p.second_order)
            params |= {n: params[n] - workload.inner_lr * grad for n, grad in zip(names, grads, strict=True)}
        return params
