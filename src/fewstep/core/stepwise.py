"""Compute the outer gradient one inner step at a time: another execution of what `core.meta` defines.

The inner loop runs forwards, step by step. Then the gradient of the query loss goes backwards through the same steps:
each has a `Pullback`, which turns the outer gradient after it into the one before it. What is recorded or compiled is
one step, however many there are.

A pullback needs what its step computed. There are two ways to have that:

- recompute it (`Recomputed`) from the parameters before the step, of which only some are kept. Memory hardly grows
  with the number of steps;
- keep the results of the step's products (`_keeping`), and recompute only the cheap rest. This is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from fewstep.core.adapt import inner_step, support_gradient, updated
from fewstep.core.context import vmapped
from fewstep.core.meta import Displacement, QueryGradient
from fewstep.core.over_tasks import auto, side_by_side
from fewstep.core.rng import RandomStreams
from fewstep.core.rules import State, UpdateRule, selected
from fewstep.core.running import RECORDINGS, Function, Run, plain
from fewstep.core.stages import in_stages
from fewstep.core.trees import chunks, concatenate, leaves, length, signature, subtract, tree_map
from fewstep.core.types import MetaParams, Params, Task

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.types import OverTasks

Point: TypeAlias = tuple[Params, State, Params]
"""Where the inner loop stands: parameters, the rule's state, its learned hyper-parameters."""

Pullback: TypeAlias = Callable[[Point], Point]
Step: TypeAlias = Callable[[Point, Any], tuple[Point, Pullback]]
Linearize: TypeAlias = Callable[[QueryGradient, int, Point, Any], tuple[Point, Pullback]]


def stepwise(
    *,
    vectorize: bool = True,
    chunk_size: int | None = None,
    run: Run = plain,
    keep: bool = False,
    forward_mode: bool = False,
) -> OverTasks:
    """Outer gradients one inner step at a time; any other function as `auto` maps it.

    Args:
        vectorize: Whether tasks are computed together, or one after the other.
        chunk_size: Tasks computed together when vectorized: bounds memory.
        run: How a step and its derivative run: `compiled()` fuses their operations.
        keep: Whether the results of products are kept from a step for its derivative: faster, with memory that
            grows with the steps, if less than autograd takes. The step is recorded, however it runs: for functions
            that depend on nothing but their arguments. Else parameters are kept, for S steps at most sqrt(2 S) + 1
            times, and steps computed again.
        forward_mode: Whether the inner gradient is differentiated forwards: faster for convolutions. Not
            every operation of PyTorch has a right forward derivative of its gradient, and random numbers are not
            repeated: for bundled networks and cross-entropy, or after a comparison of your own.
    """

    @cache  # what was recorded or compiled for a function serves each time that it is mapped
    def over(function: Any) -> Callable[[Any, Any], Any]:
        lift: Run = vmapped if vectorize else plain
        if isinstance(function, Displacement):
            gradient = _displacement(function, lift, run)
        else:
            linearize = _linearized_forwards if forward_mode else _linearized
            gradient = _query_gradient(function, lift, run, keep, linearize)
        apart = side_by_side()(gradient)

        @torch.no_grad()  # derivatives are taken inside the pieces
        def mapped(meta: MetaParams, tasks: Task) -> tuple[MetaParams, Tensor]:
            if vectorize:
                return concatenate([gradient(_copies(meta, length(t)), t) for t in chunks(tasks, chunk_size)])
            return apart(meta, tasks)

        return mapped

    return outer_gradients(over, auto(chunk_size))


def outer_gradients(over: OverTasks, others: OverTasks) -> OverTasks:
    """Outer gradients one way, all other functions, evaluation for one, another way.

    Args:
        over: How outer gradients are mapped, worth preparing since they run in every iteration.
        others: How all else is mapped.
    """
    return lambda function: (over if isinstance(function, QueryGradient | Displacement) else others)(function)


def _displacement(outer: Displacement, lift: Run, run: Run) -> Function:
    start, query_loss = lift(partial(_start, outer.rule)), run(lift(outer.query_loss))
    steps = [run(lift(partial(_step, outer, k))) for k in range(outer.steps)]

    def displacement(meta: MetaParams, task: Task) -> tuple[MetaParams, Tensor]:
        point: Point = (meta.model, start(meta.model), meta.rule)
        for step in steps:
            point = step(point, task.support)
        moved = MetaParams(subtract(meta.model, point[0]), tree_map(torch.zeros_like, meta.rule))
        return moved, query_loss(point[0], task)

    return displacement


def _query_gradient(outer: QueryGradient, lift: Run, run: Run, keep: bool, linearize: Linearize) -> Function:
    start, end = lift(partial(_start, outer.rule)), run(lift(partial(_end, outer, linearize)))
    how = [(outer, index, linearize, lift, run) for index in range(outer.steps - 1)]
    steps: list[Step] = [_keeping(*each) for each in how] if keep else _blocks([_recomputing(*each) for each in how])

    def gradient(meta: MetaParams, task: Task) -> tuple[MetaParams, Tensor]:
        state, back_to_start = _started(start, meta.model)
        point, pullback = _chain(steps, (meta.model, state, meta.rule), task.support)
        cotangent, losses = end(point, task)
        of_params, of_state, of_learned = pullback(cotangent)
        return MetaParams(back_to_start(of_params, of_state), of_learned), losses

    return gradient


def _started(start: Function, params: Params) -> tuple[State, Callable[[Params, State], Params]]:
    """The rule's state before the first step, and the way back from it: it may hold the parameters themselves."""
    state = start(params)
    if not leaves(state):
        return state, lambda of_params, _: of_params
    state, back = cast("Any", torch.func.vjp(start, params))
    return state, lambda of_params, of_state: tree_map(torch.add, of_params, back(of_state)[0])


def _chain(steps: Sequence[Step], point: Point, support: Any) -> tuple[Point, Pullback]:
    """Steps one after the other, and the way back through all of them, which can be gone once."""
    pullbacks: list[Pullback] = []
    for step in steps:
        point, pullback = step(point, support)
        pullbacks.append(pullback)

    def back(cotangent: Point) -> Point:
        while pullbacks:  # what a step kept is freed once it has served
            cotangent = pullbacks.pop()(cotangent)
        return cotangent

    return point, back


def _blocks(steps: list[Recomputed]) -> list[Step]:
    """The steps in blocks that each keep only where they begin, n, n - 1, ... steps long, and the last ones singly.

    On the way back a block is gone through once more. The earlier it stands, the fewer blocks before it still keep
    their beginning, so the longer it may be: never are more than n points kept, n (n + 1) / 2 being the steps.
    """
    size = next(n for n in range(len(steps) + 1) if n * (n + 1) // 2 >= len(steps))
    blocks: list[Step] = []
    while len(steps) > size:
        blocks.append(_block(steps[:size]))
        steps, size = steps[size:], size - 1
    return [*blocks, *steps]


def _block(steps: list[Recomputed]) -> Step:
    def forward(start: Point, support: Any) -> tuple[Point, Pullback]:
        random, point = RandomStreams(support), start
        for step in steps:
            point = step.ahead(point, support)

        def back(cotangent: Point) -> Point:
            with random.again():
                before_last, pullback = _chain(steps[:-1], start, support)
                pullback_of_last = steps[-1].back_to(before_last, support)
            return pullback(pullback_of_last(cotangent))

        return point, back

    return forward


@dataclass(frozen=True)
class Recomputed:
    """A step that keeps where it began, and is made again for its derivative."""

    ahead: Callable[[Point, Any], Point]
    pullback: Callable[[Point, Any, Point], Point]

    def __call__(self, point: Point, support: Any) -> tuple[Point, Pullback]:
        """The point after, and the way back from it."""
        back = self.back_to(point, support)  # before the step draws random numbers
        return self.ahead(point, support), back

    def back_to(self, point: Point, support: Any) -> Pullback:
        """The way back to a point, with the random numbers that are next now."""
        random = RandomStreams(support)

        def back(cotangent: Point) -> Point:
            with random.again():
                return self.pullback(point, support, cotangent)

        return back


def _recomputing(outer: QueryGradient, index: int, linearize: Linearize, lift: Run, run: Run) -> Recomputed:
    return Recomputed(run(lift(partial(_step, outer, index))), run(lift(partial(_pullback, outer, linearize, index))))


def _keeping(outer: QueryGradient, index: int, linearize: Linearize, lift: Run, run: Run) -> Step:
    """A step that keeps the results of its products for its derivative; recorded once for each size of tasks."""
    both = lift(partial(_step_and_pullback, outer, linearize, index))
    otherwise = _recomputing(outer, index, linearize, lift, run)
    known: dict[Any, Any] = {}

    def forward(point: Point, support: Any) -> tuple[Point, Pullback]:
        early = (point, support)
        key = signature(early)
        if key not in known:
            if len(known) == RECORDINGS:
                return otherwise(point, support)
            known[key] = in_stages(both, early, point, run)  # the gradient at a point has the shape of the point
        first, second = known[key]
        after, kept = first(early)
        return after, partial(second, early, kept)

    return forward


def _start(rule: UpdateRule, params: Params) -> State:
    return rule.init(selected(params, rule))


def _step(outer: QueryGradient | Displacement, step: int, point: Point, support: Any) -> Point:
    params, state, learned = point
    return (*inner_step(outer.support_loss, params, support, outer.rule, state, learned, step), learned)


def _end(outer: QueryGradient, linearize: Linearize, point: Point, task: Task) -> tuple[Point, Tensor]:
    """The outer gradient before the last inner step, and the query loss: what both need is computed once."""
    if outer.steps == 0:
        gradient, loss = torch.func.grad_and_value(outer.query_loss)(point[0], task)
        return (gradient, *tree_map(torch.zeros_like, point[1:])), loss
    last, pullback = linearize(outer, outer.steps - 1, point, task.support)
    gradient, loss = torch.func.grad_and_value(outer.query_loss)(last[0], task)
    return pullback((gradient, *tree_map(torch.zeros_like, last[1:]))), loss


def _step_and_pullback(
    outer: QueryGradient, linearize: Linearize, step: int, early: tuple[Point, Any], cotangent: Point
) -> tuple[Point, Point]:
    after, pullback = linearize(outer, step, *early)
    return after, pullback(cotangent)


def _pullback(
    outer: QueryGradient, linearize: Linearize, step: int, point: Point, support: Any, cotangent: Point
) -> Point:
    """The outer gradient before an inner step, from the one after it."""
    return linearize(outer, step, point, support)[1](cotangent)


def _linearized(outer: QueryGradient, step: int, point: Point, support: Any) -> tuple[Point, Pullback]:
    """An inner step, and the function from the outer gradient after it to the one before it."""

    def step_of(*point: Any) -> Point:
        return _step(outer, step, point, support)

    after, back = cast("Any", torch.func.vjp(step_of, *point))
    return after, back


def _linearized_forwards(outer: QueryGradient, step: int, point: Point, support: Any) -> tuple[Point, Pullback]:
    """The same, with fewer and better convolutions.

    The step depends on theta directly, and through the inner gradient g. The way through g is the Hessian times the
    outer gradient in g, which is the derivative of g along it, since the Hessian is symmetric: a forward derivative.
    """
    loss, rule = outer.support_loss, outer.rule
    params, state, learned = point

    def gradient(params: Params) -> Params:
        return torch.func.grad(loss)(params, support)

    def update(params: Params, grads: Params, state: State, learned: Params) -> tuple[Params, State]:
        return updated(params, grads, rule, state, learned, step)

    grads = support_gradient(loss, params, support, rule)
    after, back = cast("Any", torch.func.vjp(update, params, grads, state, learned))

    def pullback(cotangent: Point) -> Point:
        of_params, of_grads, of_state, of_learned = back(cotangent[:2])
        if rule.second_order:
            along = {name: of_grads.get(name, torch.zeros_like(value)) for name, value in params.items()}
            curvature = torch.func.jvp(gradient, (params,), (along,))[1]
            of_params = tree_map(torch.add, of_params, curvature)
        return of_params, of_state, tree_map(torch.add, of_learned, cotangent[2])

    return (*after, learned), pullback


def _copies(meta: MetaParams, count: int) -> MetaParams:
    """The meta-parameters once for each task, so that each gets a gradient of its own."""

    def copies(leaf: Tensor) -> Tensor:
        return leaf.expand(count, *leaf.shape).contiguous()

    return tree_map(copies, meta)
