"""JAX and optax: one jitted function from parameters and tasks to updated parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import optax
from benchmarks.speed.peers.jax_models import Params, as_torch, forward, meta_batch, parameter
from benchmarks.speed.problem import META_LR

if TYPE_CHECKING:
    import numpy as np
    from benchmarks.speed.problem import Problem

    Batch = tuple[jax.Array, jax.Array]
    Tasks = tuple[Batch, Batch]


class Jax:
    """The map over tasks is `jax.vmap`, or `jax.lax.map`, which keeps convolutions from becoming grouped ones."""

    def __init__(self, problem: Problem, *, vectorized: bool = True) -> None:
        self.workload, self.second_order = problem.workload, problem.second_order
        self.vectorized = vectorized
        self.network = forward(problem.workload)
        self.params = {name: parameter(value.detach().numpy()) for name, value in problem.parameters().items()}
        self.optimizer = optax.adam(META_LR)
        self.state = self.optimizer.init(self.params)
        support_inputs, support_targets, query_inputs, query_targets = map(meta_batch, problem.workload.make_tasks())
        self.tasks = ((support_inputs, support_targets), (query_inputs, query_targets))
        self.update = jax.jit(self._update)

    def step(self) -> float:
        self.params, self.state, loss = jax.block_until_ready(self.update(self.params, self.state, self.tasks))
        return float(loss)

    def gradient(self) -> dict[str, np.ndarray]:
        """After one meta-iteration, Adam's first moment is a tenth of the meta-gradient."""
        return {name: 10 * as_torch(value) for name, value in self.state[0].mu.items()}

    def _update(self, params: Params, state: optax.OptState, tasks: Tasks) -> tuple[Params, optax.OptState, jax.Array]:
        loss, grads = jax.value_and_grad(self._mean_query_loss)(params, tasks)
        updates, state = self.optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    def _mean_query_loss(self, params: Params, tasks: Tasks) -> jax.Array:
        if self.vectorized:
            return jax.vmap(self._query_loss, in_axes=(None, 0))(params, tasks).mean()
        return jax.lax.map(lambda task: self._query_loss(params, task), tasks).mean()

    def _query_loss(self, params: Params, task: tuple[Batch, Batch]) -> jax.Array:
        support, query = task
        others = {name: value for name, value in params.items() if not self.workload.adapts(name)}
        adapted = {name: value for name, value in params.items() if self.workload.adapts(name)}
        for _ in range(self.workload.steps):
            grads = jax.grad(lambda chosen: self._loss(chosen | others, support))(adapted)
            if not self.second_order:
                grads = jax.lax.stop_gradient(grads)
            adapted = {name: value - self.workload.inner_lr * grads[name] for name, value in adapted.items()}
        return self._loss(adapted | others, query)

    def _loss(self, params: Params, batch: Batch) -> jax.Array:
        inputs, targets = batch
        outputs = self.network(params, inputs)
        if self.workload.classifies:
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        else:
            losses = (outputs - targets) ** 2
        return self.workload.loss_scale * losses.mean()
