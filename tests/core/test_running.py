from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core import algorithms, running
from fewstep.core.functional import FunctionalModule
from fewstep.core.meta import meta_gradient
from fewstep.core.over_tasks import sequential, vectorized
from fewstep.core.rules import Sgd
from fewstep.core.running import compiled, traced
from fewstep.core.stepwise import stepwise
from fewstep.core.tracing import record
from fewstep.core.trees import leaves, tree_map

from .problems import SmallNet, assert_same, draw, meta_params, regression_tasks, seeded, supervised

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewstep.core.types import OverTasks, Params

SHARED: Params = {"w": draw(3)}
TASKS = draw(5, 3)


def squares(shared: Params, task: Tensor) -> Tensor:
    return (shared["w"] * task).square().sum()


def own(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("fewstep")]


def stand_in(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """For torch.compile: what it returns gives the function's results, changed."""
    return lambda function, **_: lambda *args: tree_map(change, function(*args))


@pytest.mark.parametrize("over_tasks", [vectorized(run=compiled()), stepwise(run=compiled())])
def test_a_compiled_meta_gradient_is_the_meta_gradient(over_tasks: OverTasks, caplog: pytest.LogCaptureFixture) -> None:
    model = FunctionalModule(seeded(SmallNet))
    algorithm, tasks = algorithms.maml(Sgd(0.3), 2), regression_tasks(3)
    task_gradient = algorithm.gradient(*supervised(model), algorithm.rule, algorithm.steps)
    meta = meta_params(model.params, algorithm.rule)
    expected = meta_gradient(task_gradient, meta, tasks, vectorized())
    assert_same(meta_gradient(task_gradient, meta, tasks, over_tasks), expected, atol=1e-10, rtol=0)
    assert_same(meta_gradient(task_gradient, meta, tasks, over_tasks), expected, atol=1e-10, rtol=0)
    assert not own(caplog)


def test_without_a_compiler_a_function_runs_as_it_is_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler\nfound, in many lines")

    calls: list[Params] = []

    def counted(shared: Params, task: Tensor) -> Tensor:
        calls.append(shared)
        return squares(shared, task)

    monkeypatch.setattr(running, "_compile", failing)
    mapped = vectorized(run=compiled())(counted)
    for _ in range(3):
        assert_same(mapped(SHARED, TASKS), vectorized()(squares)(SHARED, TASKS), atol=0, rtol=0)
    assert len(calls) == 1  # to record what it does, which is replayed
    (record,) = own(caplog)
    assert record.levelno == logging.WARNING
    assert "no C++ compiler" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_compiled_function_that_is_wrong_is_not_used_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(running, "_compile", stand_in(lambda leaf: 1.02 * leaf))
    mapped = vectorized(run=compiled())(squares)
    for _ in range(2):
        assert_same(mapped(SHARED, TASKS), vectorized()(squares)(SHARED, TASKS), atol=0, rtol=0)
    (record,) = own(caplog)
    assert "off by 2.0e-02 when compiled" in record.getMessage()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_compiled_function_that_gives_no_numbers_is_not_used(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_compile", stand_in(lambda leaf: leaf + bad))
    mapped = vectorized(run=compiled())(squares)
    assert_same(mapped(SHARED, TASKS), vectorized()(squares)(SHARED, TASKS), atol=0, rtol=0)


def test_a_compiled_function_that_rounds_differently_on_one_input_only_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def flipping(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def fast(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return tree_map(lambda leaf: leaf * (1.1 if calls == 1 else 1.0), function(*args))

        return fast

    monkeypatch.setattr(running, "_compile", flipping)
    mapped = vectorized(run=compiled())(squares)
    assert_same(mapped(SHARED, TASKS), vectorized()(squares)(SHARED, TASKS))
    assert calls == 3  # the first input, one near it, the call itself
    assert not own(caplog)


def test_steps_that_do_the_same_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings: list[Any] = []

    def counting(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        recordings.append(function)
        return function

    monkeypatch.setattr(running, "_compile", counting)
    model = FunctionalModule(seeded(SmallNet))
    algorithm = algorithms.maml(Sgd(0.3), 4)
    task_gradient = algorithm.gradient(*supervised(model), algorithm.rule, algorithm.steps)
    meta = meta_params(model.params, algorithm.rule)
    meta_gradient(task_gradient, meta, regression_tasks(3), stepwise(run=compiled()))
    assert len(recordings) == 3  # a step, its derivative, the query loss


def test_each_size_is_compared_also_where_the_operations_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_for_many(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return lambda values: tree_map(lambda leaf: (1.0 if len(values) < 4 else 2.0) * leaf, function(values))

    monkeypatch.setattr(running, "_compile", wrong_for_many)
    doubled = compiled()(lambda values: values + values)
    for count in (3, 5):
        assert_same(doubled(torch.ones(count)), 2 * torch.ones(count), atol=0, rtol=0)


def test_a_recording_takes_tensors_that_lie_otherwise_in_memory_than_the_first() -> None:
    run = traced(lambda x: x.reshape(-1) * 2)
    rows, columns = draw(3, 4), draw(4, 3, seed=1).mT  # of one shape
    for x in (rows, columns):
        assert torch.equal(run(x), x.reshape(-1) * 2)


def test_batch_normalisation_is_written_out_for_the_compiler_only() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    model = FunctionalModule(module)
    args = (model.params, draw(6, 2))
    kept = record(model, *args)
    written_out = record(model, *args, for_compiler=True)
    assert "batch_norm" in kept.code
    assert "batch_norm" not in written_out.code
    assert_same(list(leaves(kept(*args))), list(leaves(written_out(*args))), atol=1e-12, rtol=0)


def test_the_reason_is_told_where_an_error_begins_with_a_heading(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without_compiler(*_: Any, **__: Any) -> None:
        raise RuntimeError("backend='inductor' raised:\nno such file: c++\nSet a flag for more.")

    monkeypatch.setattr(running, "_compile", without_compiler)
    assert torch.equal(compiled()(lambda x: x + 1)(torch.ones(2)), torch.full((2,), 2.0))
    assert "(backend='inductor' raised: no such file: c++)" in caplog.text


def test_what_cannot_be_recorded_runs_as_it_is_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def branching(shared: Params, task: Tensor) -> Tensor:
        return squares(shared, task) if task.sum() > 0 else -squares(shared, task)

    mapped = sequential(run=compiled())(branching)
    for _ in range(2):
        assert_same(mapped(SHARED, TASKS), sequential()(branching)(SHARED, TASKS), atol=0, rtol=0)
    (record,) = own(caplog)
    assert "is not compiled" in record.getMessage()


def test_an_own_error_of_the_function_is_not_taken_for_the_compilers() -> None:
    def failing(shared: Params, task: Tensor) -> Tensor:
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        vectorized(run=compiled())(failing)(SHARED, TASKS)


def test_memory_that_does_not_suffice_is_not_taken_for_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(running, "_compile", failing)
    with pytest.raises(torch.OutOfMemoryError):
        vectorized(run=compiled())(squares)(SHARED, TASKS)
