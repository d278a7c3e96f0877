"""Trust-region steps on quadratics, whose answers are known in closed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.core.problems import DTYPE, assert_same, draw

from fewstep.core.over_tasks import sequential, vectorized
from fewstep.core.trees import flatten, unflatten
from fewstep.core.trust_region import Divergence, TrustRegion, conjugate_gradient, curvature_product, trust_region_step
from fewstep.core.types import MetaParams

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 5


def positive_definite(seed: int) -> Tensor:
    root = draw(SIZE, SIZE, seed=seed)
    return root @ root.T + torch.eye(SIZE, dtype=DTYPE)


START = MetaParams({"a": draw(2, seed=1), "b": draw(1, 2, seed=2)}, {"rate": draw(1, seed=3)[0]})
"""Five numbers, as a tree."""


def quadratic_tasks(count: int = 3) -> dict[str, Tensor]:
    """For each task a linear objective and the Hessian of its divergence."""
    return {
        "slope": draw(count, SIZE, seed=4),
        "hessian": torch.stack([positive_definite(10 + i) for i in range(count)]),
    }


def objective(params: Any, task: dict[str, Tensor]) -> Tensor:
    return task["slope"].dot(flatten(params))


def moved(params: Any, task: dict[str, Tensor]) -> Tensor:
    return flatten(params) - flatten(START)


def length(movement: Tensor, task: dict[str, Tensor]) -> Tensor:
    return movement @ task["hessian"] @ movement / 2


DIVERGENCE = Divergence(moved, length)


def test_conjugate_gradient_solves_a_positive_definite_system() -> None:
    matrix, target = positive_definite(0), draw(SIZE, seed=9)
    solution, residual = conjugate_gradient(lambda v: matrix @ v, target, iterations=SIZE)
    assert_same(residual, target - matrix @ solution)
    assert_same(solution, torch.linalg.solve(matrix, target), atol=1e-10, rtol=1e-8)


def test_conjugate_gradient_stops_where_the_residual_is_small() -> None:
    calls = []
    target = draw(SIZE, seed=9)
    solution, _ = conjugate_gradient(lambda v: calls.append(1) or 2 * v, target)
    assert len(calls) == 1  # a multiple of the identity is solved in one iteration
    assert_same(solution, target / 2)


def test_conjugate_gradient_that_is_to_solve_exactly_stops_at_the_solution() -> None:
    solution, _ = conjugate_gradient(lambda v: 2 * v, torch.tensor([1.0, 0.0]), tolerance=0.0)
    assert solution.tolist() == [0.5, 0.0]


def test_conjugate_gradient_of_zero_is_zero() -> None:
    assert_same(conjugate_gradient(lambda v: v, torch.zeros(3))[0], torch.zeros(3))


@pytest.mark.parametrize("curvature", ["exact", "finite_differences"])
@pytest.mark.parametrize("over_tasks", [vectorized(), vectorized(2), sequential()])
def test_step_on_a_quadratic_is_the_natural_gradient_step(curvature: Any, over_tasks: Any) -> None:
    tasks, radius = quadratic_tasks(), 0.02
    config = TrustRegion(radius, curvature, damping=0.0)
    reached, report = trust_region_step(objective, DIVERGENCE, START, tasks, config, over_tasks)
    slope, hessian = tasks["slope"].mean(0), tasks["hessian"].mean(0)
    natural = torch.linalg.solve(hessian, slope)
    expected = flatten(START) - math.sqrt(2 * radius / slope.dot(natural)) * report.step_fraction * natural
    assert isinstance(reached, MetaParams)
    assert_same(flatten(reached), expected, atol=1e-7, rtol=1e-7)
    assert report.accepted
    assert report.divergence == pytest.approx(radius * report.step_fraction**2, rel=1e-6)
    assert report.objective_after == pytest.approx(slope.dot(expected).item())


def test_step_that_leaves_the_region_is_shortened_until_it_does_not() -> None:
    """A divergence that grows faster than its Hessian says."""

    def steeper(movement: Tensor, task: dict[str, Tensor]) -> Tensor:
        quadratic = length(movement, task)
        return quadratic + 1e4 * quadratic.square()

    config = TrustRegion(0.01)
    _, report = trust_region_step(objective, Divergence(moved, steeper), START, quadratic_tasks(), config, vectorized())
    assert report.accepted
    assert 0.8**14 <= report.step_fraction < 1
    assert report.divergence <= 0.01
    assert math.isclose(math.log(report.step_fraction, 0.8) % 1, 0, abs_tol=1e-9)


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("no candidate improves", lambda params, task: objective(params, task).abs() * 0 + flatten(params).sum() * 0),
        ("the objective is nan elsewhere", lambda params, task: (objective(params, task) - 1e9).log()),
    ],
)
def test_rejected_step_leaves_the_parameters_as_they_are(name: str, worse: Any) -> None:
    config = TrustRegion()
    reached, report = trust_region_step(worse, DIVERGENCE, START, quadratic_tasks(), config, vectorized())
    assert_same(reached, START, atol=0, rtol=0)
    assert not report.accepted
    assert report.step_fraction == 0


def test_damping_is_added_to_the_curvature() -> None:
    tasks = quadratic_tasks()
    config = TrustRegion(damping=3.0)
    reached, _ = trust_region_step(objective, DIVERGENCE, START, tasks, config, vectorized())
    damped = tasks["hessian"].mean(0) + 3 * torch.eye(SIZE, dtype=DTYPE)
    along = torch.linalg.solve(damped, tasks["slope"].mean(0))
    went = flatten(START) - flatten(reached)
    assert_same(went / went.norm(), along / along.norm(), atol=1e-9)


def test_curvature_may_be_measured_on_less_than_the_line_search_sees() -> None:
    tasks = quadratic_tasks()
    less = {name: leaf[:2] for name, leaf in tasks.items()}
    config = TrustRegion(damping=0.0)
    reached, report = trust_region_step(objective, DIVERGENCE, START, tasks, config, vectorized(), less)
    along = torch.linalg.solve(less["hessian"].mean(0), tasks["slope"].mean(0))
    went = flatten(START) - flatten(reached)
    assert_same(went / went.norm(), along / along.norm(), atol=1e-9)
    assert report.accepted
    assert report.divergence == pytest.approx(float(went @ tasks["hessian"].mean(0) @ went / 2))


def test_a_tree_survives_being_a_vector() -> None:
    assert_same(unflatten(flatten(START), START), START, atol=0, rtol=0)


def test_curvature_products_are_the_hessian_of_a_divergence_with_nonlinear_outputs() -> None:
    """Against the Hessian that autograd gives, at the minimum."""
    weights = draw(3, SIZE, SIZE, seed=5)

    def outputs(params: Any, task: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(task @ flatten(params))
        return {"mean": hidden[:2] * hidden[2], "scale": hidden[3:].exp()}

    at_start = torch.stack([torch.cat(list(outputs(START, w).values())) for w in weights])

    def distance(found: dict[str, Tensor], task: tuple[Tensor, Tensor]) -> Tensor:
        away = torch.cat(list(found.values())) - task[1]
        return (away.cosh() - 1).sum()

    divergence = Divergence(lambda params, task: outputs(params, task[0]), distance)
    hessian = torch.stack(
        [
            torch.func.hessian(lambda v, w=w, o=o: divergence(unflatten(v, START), (w, o)))(flatten(START))
            for w, o in zip(weights, at_start, strict=True)
        ]
    ).mean(0)
    for curvature, rtol in (("exact", 1e-10), ("finite_differences", 1e-3)):
        config = TrustRegion(curvature=curvature, damping=0.0)
        product = curvature_product(divergence, START, (weights, at_start), config, vectorized())
        for seed in range(3):
            vector = draw(SIZE, seed=seed)
            assert_same(product(vector), hessian @ vector, atol=1e-3 * (curvature != "exact"), rtol=rtol)


def test_without_a_slope_nothing_is_tried() -> None:
    tried: list[float] = []

    def flat(params: Any, task: Any) -> Tensor:
        tried.append(0.0)
        return 0.0 * params["x"].sum()

    divergence = Divergence(lambda params, _: params["x"], lambda x, _: x.square().sum())
    start = {"x": torch.zeros(3)}
    result, report = trust_region_step(flat, divergence, start, torch.zeros(2), TrustRegion(), sequential())
    assert not report.accepted
    assert_same(result, start, atol=0, rtol=0)
    assert len(tried) == 2  # the gradient, of each task
