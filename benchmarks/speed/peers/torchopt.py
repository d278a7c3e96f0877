"""`torchopt`: the differentiable optimizer `MetaSGD`, as in its own example of few-shot learning.

First-order by its `stop_gradient` after every inner step, and the gradient at the adapted parameters mapped back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torchopt
from benchmarks.speed.problem import adam
from torch import nn

if TYPE_CHECKING:
    from benchmarks.speed.problem import Problem
    from torch import Tensor


class TorchOpt:
    """Adapts the module in place and recovers it for the next task."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.parameters = problem.parameters()
        self.optimizer = adam(list(self.parameters.values()))
        # MetaSGD takes a module: this one is of the layers that adapt, not of normalisation, which does not.
        layers = [m for m in problem.model.modules() if m._parameters and not isinstance(m, nn.BatchNorm2d)]
        self.inner_optimizer = torchopt.MetaSGD(nn.ModuleList(layers), lr=problem.workload.inner_lr)

    def step(self) -> float:
        p = self.problem
        self.optimizer.zero_grad()
        module_state = torchopt.extract_state_dict(p.model, by="reference", detach_buffers=True)
        inner_state = torchopt.extract_state_dict(self.inner_optimizer, by="reference")
        losses = []
        for i in range(p.workload.tasks):
            for _ in range(p.workload.steps):
                self.inner_optimizer.step(p.loss(p.model(p.support_inputs[i]), p.support_targets[i]))
                if not p.second_order:
                    torchopt.stop_gradient(p.model)
            loss = p.loss(p.model(p.query_inputs[i]), p.query_targets[i])
            losses.append(loss if p.second_order else self._accumulated(loss / p.workload.tasks))
            torchopt.recover_state_dict(p.model, module_state)
            torchopt.recover_state_dict(self.inner_optimizer, inner_state)
        mean = torch.stack(losses).mean()
        if p.second_order:
            mean.backward()
        self.optimizer.step()
        return mean.item()

    def gradient(self) -> dict[str, Tensor]:
        return self.problem.gradient()

    def _accumulated(self, loss: Tensor) -> Tensor:
        adapted = self.problem.parameters()
        grads = torch.autograd.grad(loss, list(adapted.values()))
        for name, grad in zip(adapted, grads, strict=True):
            value = self.parameters[name]
            value.grad = grad if value.grad is None else value.grad.add_(grad)
        return self.problem.workload.tasks * loss.detach()
