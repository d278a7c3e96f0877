"""The outer gradient one inner step at a time, backwards from the last: `core.meta` defines it, here it is executed.

Of the inner loop only the parameters before each step are kept. The outer derivative goes back through one step at a
time, computing that step again: memory does not grow with the activations of all steps, and what is compiled is one
step, whatever their number.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from fewstep.core.adapt import inner_step, support_gradient, updated
from fewstep.core.meta import Displacement, QueryGradient
from fewstep.core.over_tasks import auto
from fewstep.core.rules import State, UpdateRule, selected
from fewstep.core.running import Run, plain
from fewstep.core.trees import chunks, concatenate, index, leaves, length, stack, subtract, tree_map
from fewstep.core.types import MetaParams, Params, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import Tensor

    from fewstep.core.types import OverTasks

Point: TypeAlias = tuple[Params, State, Params]
"""Where the inner loop stands: parameters, the rule's state, its learned hyper-parameters."""


def stepwise(
    *,
    vectorize: bool = True,
    chunk_size: int | None = None,
    run: Run = plain,
    forward_mode: bool = False,
    others: OverTasks | None = None,
) -> OverTasks:
    """Outer gradients one inner step at a time; any other function as `others` maps it.

    Args:
        vectorize: Whether tasks are computed together, or one after the other.
        chunk_size: Tasks computed together when vectorized: bounds memory.
        run: How a step and its derivative run: `compiled()` fuses their operations.
        forward_mode: Whether the inner gradient is differentiated forwards: for convolutions a quarter faster. Not
            every operation of PyTorch has a right forward derivative of its gradient, and random numbers are not
            repeated: for bundled networks and cross-entropy, or after a comparison of your own.
        others: How functions are mapped that are no outer gradients, evaluation for one. By default `auto`.
    """

    @cache  # what was recorded or compiled for a function serves each time that it is mapped
    def over(function: Any) -> Callable[[Any, Any], Any]:
        gradient = _Stepwise(function, vectorize, run, forward_mode)

        @torch.no_grad()  # derivatives are taken inside the pieces
        def mapped(meta: MetaParams, tasks: Task) -> tuple[MetaParams, Tensor]:
            if vectorize:
                return concatenate([gradient(_copies(meta, length(t)), t) for t in chunks(tasks, chunk_size)])
            return stack([gradient(meta, index(tasks, i)) for i in range(length(tasks))])

        return mapped

    return outer_gradients(over, others or auto(chunk_size))


def outer_gradients(over: OverTasks, others: OverTasks) -> OverTasks:
    """Outer gradients one way, all other functions, evaluation for one, another way.

    Args:
        over: How outer gradients are mapped, worth preparing since they run in every iteration.
        others: How all else is mapped.
    """
    return lambda function: (over if isinstance(function, QueryGradient | Displacement) else others)(function)


class _Stepwise:
    """The outer gradient of one task, or of each of several where everything leads with a `tasks` axis."""

    def __init__(self, gradient: QueryGradient | Displacement, vectorize: bool, run: Run, forward_mode: bool) -> None:
        self._outer = gradient
        lift: Run = partial(torch.vmap, randomness="different") if vectorize else plain
        pullback = _forward_mode_pullback if forward_mode else _pullback
        self._start = lift(partial(_start, gradient.rule))
        self._steps = [run(lift(partial(_step, gradient, k))) for k in range(gradient.steps)]
        self._pullbacks = [run(lift(partial(pullback, gradient, k))) for k in range(gradient.steps)]
        self._query_loss = run(lift(gradient.query_loss))
        self._query_gradient = run(lift(torch.func.grad_and_value(gradient.query_loss)))

    def __call__(self, meta: MetaParams, task: Task) -> tuple[MetaParams, Tensor]:
        point: Point = (meta.model, self._start(meta.model), meta.rule)
        path: list[tuple[Point, _Random]] = []
        for step in self._steps:
            path.append((point, _Random(task)))
            point = step(point, task.support)
        adapted, state, learned = point
        if isinstance(self._outer, Displacement):
            moved = MetaParams(subtract(meta.model, adapted), tree_map(torch.zeros_like, meta.rule))
            return moved, self._query_loss(adapted, task)
        gradient, losses = self._query_gradient(adapted, task)
        cotangent: Point = (gradient, *tree_map(torch.zeros_like, (state, learned)))
        for pullback in reversed(self._pullbacks):
            before, random = path.pop()
            with random.again():
                cotangent = pullback(before, task.support, cotangent)
        return MetaParams(cotangent[0], cotangent[2]), losses


def _start(rule: UpdateRule, params: Params) -> State:
    return rule.init(selected(params, rule))


def _step(outer: QueryGradient | Displacement, step: int, point: Point, support: Any) -> Point:
    params, state, learned = point
    return (*inner_step(outer.support_loss, params, support, outer.rule, state, learned, step), learned)


def _pullback(outer: QueryGradient | Displacement, step: int, point: Point, support: Any, cotangent: Point) -> Point:
    """The outer gradient before an inner step, from the one after it."""

    def step_of(*point: Any) -> Point:
        return _step(outer, step, point, support)

    return cast("Any", torch.func.vjp(step_of, *point))[1](cotangent)


def _forward_mode_pullback(
    outer: QueryGradient | Displacement, step: int, point: Point, support: Any, cotangent: Point
) -> Point:
    """The same, with fewer and better convolutions.

    The step depends on theta directly, and through the inner gradient g. The way through g is the Hessian times the
    outer gradient in g, which is the derivative of g along it, since the Hessian is symmetric: a forward derivative.
    """
    loss, rule = outer.support_loss, outer.rule
    params, state, learned = point
    grads = support_gradient(loss, params, support, rule)

    def update(params: Params, grads: Params, state: State, learned: Params) -> tuple[Params, State]:
        return updated(params, grads, rule, state, learned, step)

    def gradient(params: Params) -> Params:
        return torch.func.grad(loss)(params, support)

    back = cast("Any", torch.func.vjp(update, params, grads, state, learned))[1]
    of_params, of_grads, of_state, of_learned = back(cotangent[:2])
    if rule.second_order:
        along = {name: of_grads.get(name, torch.zeros_like(value)) for name, value in params.items()}
        curvature = torch.func.jvp(gradient, (params,), (along,))[1]
        of_params = tree_map(torch.add, of_params, curvature)
    return of_params, of_state, tree_map(torch.add, of_learned, cotangent[2])


class _Random:
    """Where torch's random streams stand, to draw the same numbers again: a step's derivative repeats its dropout."""

    def __init__(self, task: Task) -> None:
        self._devices = sorted({leaf.device.index for leaf in leaves(task) if leaf.is_cuda})
        self._states = [torch.cuda.get_rng_state(device) for device in self._devices]
        self._state = torch.get_rng_state()

    @contextmanager
    def again(self) -> Generator[None]:
        with cast("Any", torch.random).fork_rng(self._devices):
            torch.set_rng_state(self._state)
            for device, state in zip(self._devices, self._states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def _copies(meta: MetaParams, count: int) -> MetaParams:
    """The meta-parameters once for each task, so that each gets a gradient of its own."""

    def copies(leaf: Tensor) -> Tensor:
        return leaf.expand(count, *leaf.shape).contiguous()

    return tree_map(copies, meta)
