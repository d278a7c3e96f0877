from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.over_tasks import auto, sequential, vectorized
from fewstep.core.running import RECORDINGS
from fewstep.core.stages import Repeated, in_stages
from fewstep.core.tracing import record

from .problems import assert_same, draw

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from fewstep.core.running import Function

EARLY = ({"a": draw(3, 4), "b": draw(4, 2)}, draw(5, 3))
LATE = [draw(5, 4, seed=1)]


def two_layers(early: Any, late: Any) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    weights, inputs = early
    hidden = (inputs @ weights["a"]).tanh()
    return {"outputs": hidden @ weights["b"]}, (late[0] * hidden, late[0].sum())


def calls(recording: GraphModule, name: str) -> int:
    return sum(name in str(node.target) for node in recording.graph.nodes)


def test_a_function_in_stages_gives_both_results_and_makes_no_product_twice() -> None:
    parts: list[GraphModule] = []

    def noting(function: Any) -> Function:
        parts.append(function)
        return function

    first, second = in_stages(two_layers, EARLY, LATE, noting)
    expected = two_layers(EARLY, LATE)
    result, kept = first(EARLY)
    assert_same(result, expected[0])
    assert_same(second(EARLY, kept, LATE), expected[1])
    assert [calls(part, "aten.mm") for part in parts] == [2, 0]
    assert [calls(part, "aten.tanh") for part in parts] == [1, 1]
    assert [value.shape for value in kept] == [(5, 4)]  # the product within the tanh, and not the other


def test_the_stages_serve_for_other_numbers_than_those_they_were_recorded_with() -> None:
    first, second = in_stages(two_layers, EARLY, LATE)
    early, late = ({"a": draw(3, 4, seed=2), "b": draw(4, 2, seed=3)}, draw(5, 3, seed=4)), [draw(5, 4, seed=5)]
    expected = two_layers(early, late)
    result, kept = first(early)
    assert_same(result, expected[0])
    assert_same(second(early, kept, late), expected[1])


def test_random_numbers_of_the_first_stage_are_the_same_in_the_second() -> None:
    def masked(early: Tensor, late: Tensor) -> tuple[Tensor, Tensor]:
        dropped = nn.functional.dropout(early, 0.5)
        return dropped.exp(), dropped * late

    ones = torch.ones(100)
    first, second = in_stages(masked, ones, ones)
    for _ in range(2):
        result, kept = first(ones)
        assert_same(second(ones, kept, ones), result.log())


def of_layers(weights: Any, inputs: Tensor, new: Tensor) -> Tensor:
    hidden = (inputs @ weights["a"]).tanh()
    return hidden @ weights["b"] * new


TASKS = draw(6, 5, 3, seed=6)


def expected(weights: Any, tasks: Tensor, new: Tensor) -> Tensor:
    return torch.stack([of_layers(weights, task, new) for task in tasks])


@pytest.mark.parametrize("over_tasks", [vectorized(), vectorized(4), sequential(), auto()])
def test_a_repeated_function_is_the_function_for_all_that_is_new(over_tasks: Any) -> None:
    repeated, new = Repeated(of_layers), draw(2, seed=7)
    for weights in (EARLY[0], {name: leaf + 1 for name, leaf in EARLY[0].items()}):
        mapped = repeated.over(over_tasks, weights, TASKS, new)
        for seed in range(2):
            new = draw(2, seed=seed)
            assert_same(mapped(new), expected(weights, TASKS, new))


def test_a_repeated_function_makes_products_of_what_does_not_change_once() -> None:
    parts: list[GraphModule] = []

    def noting(function: Any) -> Function:
        def run(*args: Any) -> Any:
            parts.append(record(function, *args))
            return function(*args)

        return run

    mapped = Repeated(of_layers).over(vectorized(run=noting), EARLY[0], TASKS, draw(2))
    for seed in range(2):
        mapped(draw(2, seed=seed))
    products = [calls(part, "aten.mm") + calls(part, "aten.bmm") for part in parts]
    assert products == [2, 0, 0]


def test_a_repeated_function_that_cannot_be_recorded_runs_as_it_is() -> None:
    def branches(weights: Any, inputs: Tensor, new: Tensor) -> Tensor:
        result = of_layers(weights, inputs, new)
        return result if inputs.sum() > 0 else -result

    mapped, new = Repeated(branches).over(sequential(), EARLY[0], TASKS, draw(2)), draw(2, seed=7)
    assert_same(mapped(new), torch.stack([branches(EARLY[0], task, new) for task in TASKS]))
    assert len({bool(task.sum() > 0) for task in TASKS}) == 2


def test_a_repeated_function_of_ever_other_sizes_records_some_of_them() -> None:
    counted: list[int] = []

    def counting(weights: Any, inputs: Tensor, new: Tensor) -> Tensor:
        counted.append(len(inputs))
        return of_layers(weights, inputs, new)

    repeated, new = Repeated(counting), draw(2, seed=7)
    for size in range(1, RECORDINGS + 3):
        tasks = draw(2, size, 3, seed=size)
        for _ in range(2):
            mapped = repeated.over(sequential(), EARLY[0], tasks, new)
            assert_same(mapped(new), expected(EARLY[0], tasks, new))
    assert [counted.count(size) for size in range(1, RECORDINGS + 3)] == [1] * RECORDINGS + [4] * 2


def test_what_is_computed_twice_is_recorded_once() -> None:
    def twice(inputs: Tensor) -> Tensor:
        return (inputs @ inputs).exp() + (inputs @ inputs).exp()

    recording = record(twice, draw(3, 3))
    assert calls(recording, "aten.mm") == calls(recording, "aten.exp") == 1
    assert_same(recording(draw(3, 3, seed=1)), twice(draw(3, 3, seed=1)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.add(x, x) - torch.add(x, x, alpha=0),
        lambda x: x.var(1, correction=0) - x.var(1),
        lambda x: torch.zeros_like(x) + 1 + (1 + torch.zeros_like(x)),
        lambda x: (torch.zeros(4, 3, dtype=x.dtype) + x.t()).view(12),
        lambda x: (torch.zeros_like(x) + x).float() + torch.zeros_like(x),
    ],
    ids=["alpha", "correction", "number", "strides", "type"],
)
def test_operations_that_only_look_alike_are_all_recorded(function: Any) -> None:
    recording, other = record(function, draw(3, 4)), draw(3, 4, seed=1)
    assert_same(recording(other), function(other), atol=0, rtol=0)


def test_results_that_are_equal_do_not_share_memory() -> None:
    def sums(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return inputs.sum(0), inputs.sum(0), inputs.sum(0).view(4, 1)

    results = record(sums, draw(3, 4))(draw(3, 4, seed=1))
    assert_same(results, sums(draw(3, 4, seed=1)))
    assert len({result.data_ptr() for result in results}) == 3


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ((product := x @ x), product.view(-1)),
        lambda x: (x.mul(2), x.mul(2).split(2)[0]),
        lambda x: (x.mul(2), x.mul(2).unbind()[0]),
    ],
    ids=["view of a product", "split", "unbind"],
)
def test_a_view_that_comes_of_a_merged_operation_is_copied(function: Any) -> None:
    first, second = record(function, draw(4, 4))(draw(4, 4, seed=1))
    assert_same([first, second], list(function(draw(4, 4, seed=1))))
    assert first.data_ptr() != second.data_ptr()


def test_an_input_is_not_handed_back_for_a_sum_with_zeros() -> None:
    inputs = draw(3)
    result = record(lambda x: x + torch.zeros_like(x), inputs)(inputs)
    assert result.data_ptr() != inputs.data_ptr()


def test_random_numbers_are_drawn_each_time() -> None:
    recording = record(lambda inputs: torch.rand_like(inputs) - torch.rand_like(inputs), draw(3))
    first, second = recording(draw(3)), recording(draw(3))
    assert first.abs().min() > 0  # not one draw for both
    assert (first - second).abs().min() > 0  # nor for both replays


def test_products_with_zeros_are_left_out() -> None:
    images = draw(2, 1, 5, 5)

    def gradient(weight: Tensor) -> Tensor:
        return torch.func.grad(lambda w: nn.functional.conv2d(images, w).square().sum())(weight)

    def curvature(weight: Tensor, along: Tensor) -> Tensor:
        return torch.func.jvp(gradient, (weight,), (along,))[1]

    weight, along = draw(3, 1, 3, 3), draw(3, 1, 3, 3, seed=1)
    recording = record(curvature, weight, along, for_compiler=True)
    assert calls(recording, "aten.convolution.default") == 2  # of the weight and of the direction, not of zero images
    assert_same(recording(weight, along), curvature(weight, along))
