"""Trust-region steps (Schulman et al. 2015), for any objective and divergence that are means over tasks.

    minimise mean_i f_i(theta)  subject to  mean_i d_i(theta) <= delta

Each d_i is least, and zero, at the present theta. To second order in d and first order in f that is a step along
H^-1 g: g the gradient of f, H the Hessian of d. The conjugate gradient needs products with H alone, and a backtracking
line search holds what the expansion promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

import torch

from fewstep.core.expect import expect_number, expect_whole
from fewstep.core.stages import Repeated
from fewstep.core.trees import detach, flatten, mean, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fewstep.core.types import OverTasks

    Objective = Callable[[Any, Any], Tensor]
    """Scalar of a tree of parameters and one task, f_i(theta)."""


@final
@dataclass(frozen=True)
class Divergence:
    """d_i(theta) = distance(outputs(theta)), which is least, and zero, at the present theta.

    Naming the two parts makes products with the Hessian cheap. With A the Jacobian of the outputs and K the Hessian of
    the distance, H = A^T K A + (gradient of the distance) * (second derivative of the outputs), and at the minimum the
    gradient is zero: so H = A^T K A, exactly, without the outputs' second derivative. Outputs that detach something, as
    a first-order adaptation does, have another A than finite differences would see: the product is then that of the
    detached outputs, and the line search holds the divergence itself to the radius.

    Both depend on nothing but their arguments: what a product needs of them is recorded.

    Attributes:
        outputs: Of parameters and one task, any tree: an adapted policy's distributions, say.
        distance: Scalar of such outputs and the task.
    """

    outputs: Callable[[Any, Any], Any]
    distance: Callable[[Any, Any], Tensor]

    def __call__(self, params: Any, task: Any) -> Tensor:
        """d_i(theta)."""
        return self.distance(self.outputs(params, task), task)

    @cached_property
    def curvature(self) -> Repeated:
        """Products with the Hessian, v -> A^T (K (A v)): along the outputs, bent by the distance, and back."""
        return Repeated(self._curved)

    def _curved(self, params: Any, task: Any, vector: Any) -> Any:
        def outputs(params: Any) -> Any:
            return self.outputs(params, task)

        def pull(outputs: Any) -> Any:
            return torch.func.grad(self.distance)(outputs, task)

        reached, back, *_ = torch.func.vjp(outputs, params)
        moved = torch.func.jvp(outputs, (params,), (vector,))[1]
        bent = torch.func.jvp(pull, (reached,), (moved,))[1]
        return back(bent)[0]


@final
@dataclass(frozen=True)
class TrustRegion:
    """How a trust-region step is found; the defaults are those of the paper's code, but for the curvature.

    Attributes:
        max_divergence: delta, the radius.
        curvature: Products with the Hessian "exact"; or by "finite_differences" of gradients, as in the paper
            (section 5.3).
        damping: Added to the Hessian's diagonal.
        iterations: Of the conjugate gradient.
        tolerance: Squared norm of the residual at which it stops.
        shrink: Factor from one candidate of the line search to the next.
        candidates: Steps that the line search tries, the longest first.
        displacement: Norm of the step between gradients for finite differences.
    """

    max_divergence: float = 0.01
    curvature: Literal["exact", "finite_differences"] = "exact"
    damping: float = 1e-5
    iterations: int = 10
    tolerance: float = 1e-10
    shrink: float = 0.8
    candidates: int = 15
    displacement: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("max_divergence", "damping", "tolerance", "displacement"):
            expect_number(name, getattr(self, name))
        expect_number("shrink", self.shrink, 0, 1)
        for name in ("iterations", "candidates"):
            expect_whole(name, getattr(self, name), 0)


class TrustRegionReport(NamedTuple):
    """What came of a trust-region step.

    Attributes:
        accepted: Whether a candidate improved the objective within the region; else nothing changed.
        step_fraction: Of the longest candidate; 0 where none was accepted.
        objective_before: Mean of f.
        objective_after: The same after the step.
        divergence: Mean of d after the step.
        slope: Norm of the gradient of the mean of f; where it is not finite, nothing was tried.
    """

    accepted: bool
    step_fraction: float
    objective_before: float
    objective_after: float
    divergence: float
    slope: float


def trust_region_step(
    objective: Objective,
    divergence: Divergence,
    params: Any,
    tasks: Any,
    config: TrustRegion,
    over_tasks: OverTasks,
    curved_on: Any = None,
) -> tuple[Any, TrustRegionReport]:
    """Lower the objective as far as the divergence allows.

    Args:
        objective: f_i(theta), scalar.
        divergence: d_i(theta), with its minimum 0 at `params`.
        params: theta, a tree.
        tasks: What both see of each task, with a leading `tasks` axis; both are averaged over it.
        config: How the step is found.
        over_tasks: How the map over tasks is executed, for every value, gradient and product.
        curved_on: What the divergence sees in products with the Hessian, by default `tasks`; less of each task,
            say. Products are most of the cost, and the line search checks on `tasks` what comes of them.

    Returns:
        The new tree, or `params` itself where the line search accepts nothing, and what came of it.
    """
    params = detach(params)
    gradient, before = mean(over_tasks(_Gradient(objective))(params, tasks))
    values = over_tasks(_Values(objective, divergence))

    def value(candidate: Any) -> tuple[float, float]:
        f, d = mean(values(candidate, tasks))
        return f.item(), d.item()

    slope = flatten(gradient)
    curved_on = tasks if curved_on is None else curved_on
    product = curvature_product(divergence, params, curved_on, config, over_tasks)
    direction, residual = conjugate_gradient(product, slope, config.iterations, config.tolerance)
    bend = direction.dot(slope - residual)  # H times the direction is slope - residual
    steepness = slope.dot(slope).sqrt().item()
    if not bend > 0:  # there is no slope, hence no direction; or it is not finite
        return params, TrustRegionReport(False, 0.0, before.item(), before.item(), 0.0, steepness)
    longest = direction * (2 * config.max_divergence / bend).sqrt()  # where d, to second order, is the radius
    return _line_search(value, before.item(), params, longest, steepness, config)


def curvature_product(
    divergence: Divergence, params: Any, tasks: Any, config: TrustRegion, over_tasks: OverTasks
) -> Callable[[Tensor], Tensor]:
    """Products with the damped Hessian of the mean divergence at its minimum, v -> (H + damping I) v.

    Takes the arguments of `trust_region_step`. Vectors are `flatten`ed trees.
    """
    start = flatten(params)

    if config.curvature == "exact":
        product = divergence.curvature.over(over_tasks, params, tasks, like=params)

        def curved(vector: Tensor) -> Tensor:
            return flatten(mean(product(unflatten(vector, params))))

    else:
        gradients = over_tasks(_Gradient(divergence))

        def curved(vector: Tensor) -> Tensor:
            step = config.displacement / vector.dot(vector).sqrt()
            ahead, behind = (
                flatten(mean(gradients(unflatten(start + sign * step * vector, params), tasks)[0])) for sign in (1, -1)
            )
            return (ahead - behind) / (2 * step)

    return lambda vector: curved(vector) + config.damping * vector


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """Solve A x = b for a symmetric positive definite A that is only known by its products (Hestenes and Stiefel 1952).

    Args:
        product: v -> A v, of vectors.
        target: b.
        iterations: At most; in exact arithmetic as many as b has elements suffice.
        tolerance: Squared norm of the residual b - A x at which to stop; 0 stops at the solution itself.

    Returns:
        x, from zero, and the residual.
    """
    solution, residual, along = torch.zeros_like(target), target.clone(), target.clone()
    squared = residual.dot(residual)
    for _ in range(iterations):
        if squared <= tolerance:
            break
        curved = product(along)
        length = squared / along.dot(curved)
        solution, residual = solution + length * along, residual - length * curved
        before, squared = squared, residual.dot(residual)
        along = residual + squared / before * along
    return solution, residual


def _line_search(
    value: Callable[[Any], tuple[float, float]],
    before: float,
    params: Any,
    longest: Tensor,
    slope: float,
    config: TrustRegion,
) -> tuple[Any, TrustRegionReport]:
    start = flatten(params)
    for i in range(config.candidates):
        fraction = config.shrink**i
        candidate = unflatten(start - fraction * longest, params)
        after, divergence = value(candidate)
        if after < before and divergence <= config.max_divergence:  # false for nan
            return candidate, TrustRegionReport(True, fraction, before, after, divergence, slope)
    return params, TrustRegionReport(False, 0.0, before, before, 0.0, slope)


@final
@dataclass(frozen=True)
class _Gradient:
    """Of the parameters, and the value. Two that hold equal functions are equal, so what was recorded serves again."""

    function: Objective

    def __call__(self, params: Any, task: Any) -> tuple[Any, Tensor]:
        return torch.func.grad_and_value(self.function)(params, task)


@final
@dataclass(frozen=True)
class _Values:
    objective: Objective
    divergence: Divergence

    def __call__(self, params: Any, task: Any) -> tuple[Tensor, Tensor]:
        return self.objective(params, task), self.divergence(params, task)
