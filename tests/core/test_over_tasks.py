from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, distributed, nn

from fewstep.core import algorithms
from fewstep.core.context import is_vmapped
from fewstep.core.functional import FunctionalModule
from fewstep.core.groups import Groups
from fewstep.core.meta import meta_gradient
from fewstep.core.over_tasks import auto, sequential, sharded, side_by_side, vectorized
from fewstep.core.rules import Adam, Clipped, Except, LearnedSgd, Momentum, Sgd
from fewstep.core.running import traced
from fewstep.core.stepwise import stepwise
from fewstep.core.trees import index, leaves
from fewstep.core.types import Batch, MetaParams, Task

from .problems import DTYPE, SmallNet, assert_same, draw, meta_params, regression_tasks, seeded, supervised

if TYPE_CHECKING:
    from fewstep.core.algorithms import Algorithm
    from fewstep.core.rules import State
    from fewstep.core.types import OverTasks, Params

MODEL = FunctionalModule(seeded(SmallNet))
TASKS = regression_tasks(5)
MAPPINGS = {
    "sequential": sequential,
    "chunks of 1": lambda: vectorized(1),
    "chunks of 2": lambda: vectorized(2),
    "one chunk": lambda: vectorized(100),
    "auto": auto,
    "auto in chunks": lambda: auto(2),
    "traced": lambda: vectorized(run=traced),
    "traced in chunks": lambda: vectorized(3, traced),
    "auto, traced": lambda: auto(run=traced),
    "sequential, traced": lambda: sequential(traced),
    "side by side, traced": lambda: side_by_side(traced),  # one after the other, but for a GPU
    "stepwise": stepwise,
    "stepwise in chunks": lambda: stepwise(chunk_size=2),
    "stepwise, sequential": lambda: stepwise(vectorize=False),
    "stepwise, traced": lambda: stepwise(run=traced),
    "stepwise, sequential, traced": lambda: stepwise(vectorize=False, run=traced),
}


@dataclass(frozen=True)
class Anchored(Sgd):
    """Pulled back to where the inner loop began, theta itself, which its state remembers (Rajeswaran et al. 2019)."""

    def init(self, params: Params) -> State:
        return {"anchor": params}

    def __call__(self, params: Params, grads: Params, state: State, learned: Params, step: int) -> tuple[Params, State]:
        moved, _ = super().__call__(params, grads, {}, learned, step)
        return {name: value - 0.2 * (params[name] - state["anchor"][name]) for name, value in moved.items()}, state


ALGORITHMS = {
    "maml": algorithms.maml(Sgd(0.3), 3),
    "fomaml": algorithms.fomaml(Momentum(0.3), 3),
    "clipped adam": algorithms.maml(Clipped(Adam(0.1), 0.3), 2),
    "anil": algorithms.anil(Sgd(0.3), 2),
    "meta-sgd": algorithms.meta_sgd(0.3, 2),
    "reptile": algorithms.reptile(LearnedSgd(0.3, per="scalar"), 3),
    "joint": algorithms.joint(),
    "anchored": algorithms.maml(Anchored(0.3), 3),
    "groups": algorithms.maml(Groups({"*weight": Except("*weight", Momentum(0.1)), "*": Sgd(0.3)}), 3),
}


def outer(algorithm: Algorithm, over_tasks: OverTasks, tasks: Task = TASKS) -> tuple[MetaParams, Tensor]:
    task_gradient = algorithm.gradient(*supervised(MODEL), algorithm.rule, algorithm.steps)
    return meta_gradient(task_gradient, meta_params(MODEL.params, algorithm.rule), tasks, over_tasks)


@pytest.mark.parametrize("mapping", [mapping for mapping in MAPPINGS if mapping != "traced in chunks"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_way_to_map_over_tasks_computes_the_same(algorithm: str, mapping: str) -> None:
    expected = outer(ALGORITHMS[algorithm], vectorized())
    assert_same(outer(ALGORITHMS[algorithm], MAPPINGS[mapping]()), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_outputs_lead_with_the_tasks_axis(mapping: str) -> None:
    def function(shared: Params, task: Task) -> dict[str, Tensor]:
        return {
            "sum": task.support.inputs.sum() * shared["w"].sum(),
            "inputs": task.query.inputs,
            "w": shared["w"],
        }

    outputs = MAPPINGS[mapping]()(function)({"w": draw(4)}, TASKS)
    assert outputs["sum"].shape == (5,)
    assert_same(outputs["inputs"], TASKS.query.inputs, atol=0, rtol=0)
    assert_same(outputs["w"], draw(4).expand(5, 4), atol=0, rtol=0)


class Refusing:
    """A function with an operation that has no vmap rule, unless told to fail on its own account."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.calls = 0

    def __call__(self, shared: Params, task: Tensor) -> Tensor:
        self.calls += 1
        if self.failure:
            raise self.failure
        return shared["w"] * (1.0 if task.sum() > 0 else -1.0)  # data-dependent control flow


def test_auto_runs_one_task_after_the_other_where_there_is_no_vmap_rule_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    function, over_tasks = Refusing(), auto()
    mapped, tasks = over_tasks(function), draw(4, 3)
    expected = torch.where(tasks.sum(1) > 0, 2.0, -2.0).to(tasks.dtype)
    assert_same(mapped({"w": 2 * torch.ones((), dtype=tasks.dtype)}, tasks), expected)
    assert function.calls == 1 + 4
    assert_same(mapped({"w": 2 * torch.ones((), dtype=tasks.dtype)}, tasks), expected)
    assert function.calls == 1 + 4 + 4
    (record,) = caplog.records
    assert record.name == "fewstep.core.over_tasks"
    assert "one after the other" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_what_auto_tried_in_vain_draws_no_random_numbers() -> None:
    """So the first iteration after a resume draws what any other would."""
    refusing = Refusing()

    def function(shared: Params, task: Tensor) -> Tensor:
        return refusing(shared, task) * torch.rand(())

    mapped, given = auto()(function), ({"w": torch.ones(())}, torch.ones(2, 3))
    drawn = []
    for _ in range(2):  # the first tries all tasks at once
        torch.manual_seed(0)
        drawn.append(mapped(*given))
    assert drawn[0].equal(drawn[1])


def test_a_function_that_auto_cannot_vectorize_leaves_the_others_vectorized() -> None:
    over_tasks, seen = auto(), list[bool]()

    def other(shared: Params, task: Tensor) -> Tensor:
        seen.append(is_vmapped())
        return shared["w"] * task.sum()

    over_tasks(Refusing())({"w": torch.ones(())}, draw(4, 3))
    over_tasks(other)({"w": torch.ones(())}, torch.ones(4, 3))
    assert seen == [True]


@pytest.mark.parametrize(("size", "at_once"), [(63, True), (64, False)])
def test_auto_computes_large_images_of_one_task_after_the_other(size: int, at_once: bool) -> None:
    images, seen = torch.rand(2, 3, 1, size, size), list[bool]()

    def brightness(shared: Tensor, task: Tensor) -> Tensor:
        seen.append(is_vmapped())
        return shared * task.mean()

    assert_same(auto()(brightness)(torch.tensor(2.0), images), 2 * images.mean((1, 2, 3, 4)), atol=1e-6)
    assert seen == ([True] if at_once else [False, False])


@pytest.mark.parametrize("failure", [ValueError("labels are off"), RuntimeError("wrong shape"), KeyError("missing")])
def test_auto_passes_a_functions_own_error_on_and_stays_vectorized(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    calls = 0

    def function(shared: Params, task: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if failing:
            raise failure
        return shared["w"] * task.sum()

    mapped, failing = auto()(function), True
    with pytest.raises(type(failure)) as raised:
        mapped({"w": torch.ones(())}, torch.ones(4, 3))
    assert raised.value is failure
    calls, failing = 0, False
    assert_same(mapped({"w": torch.ones(())}, torch.ones(4, 3)), torch.full((4,), 3.0))
    assert calls == 1
    assert not caplog.records


def test_auto_passes_a_functions_own_error_on_once_sequential_too() -> None:
    function, over_tasks = Refusing(), auto()
    over_tasks(function)({"w": torch.ones(())}, draw(4, 3))
    function.failure = ValueError("labels are off")
    with pytest.raises(ValueError, match="labels are off"):
        over_tasks(function)({"w": torch.ones(())}, draw(4, 3))


def test_auto_does_not_take_a_lack_of_memory_for_a_lack_of_a_vmap_rule() -> None:
    calls = 0

    def function(shared: Params, task: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        raise torch.OutOfMemoryError("14 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        auto()(function)({}, draw(4, 3))
    assert calls == 1


def test_a_shape_error_in_the_users_loss_reads_as_it_does_without_tasks() -> None:
    def loss(params: Params, batch: Task) -> Tensor:
        return (MODEL(params, batch.inputs) @ torch.ones(7, 1, dtype=torch.float64)).sum()

    algorithm = algorithms.maml(Sgd(0.1))
    task_gradient = algorithm.gradient(loss, lambda p, t: loss(p, t.query), algorithm.rule, 1)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(5x2 and 7x1\)"):
        meta_gradient(task_gradient, MetaParams(MODEL.params, {}), TASKS, auto())


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 16), nn.Linear(16, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.body(inputs)))


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_random_operations_differ_from_task_to_task_and_from_call_to_call(mapping: str) -> None:
    model, same = FunctionalModule(seeded(Dropping)), index(TASKS, [0, 0, 0])
    mapped = MAPPINGS[mapping]()(lambda params, task: model(params, task.query.inputs))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = torch.cat([mapped(model.params, same), mapped(model.params, same)])
    assert len({tuple(task.flatten().tolist()) for task in outputs}) == 6


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_random_operations_follow_from_the_seed(mapping: str) -> None:
    model = FunctionalModule(seeded(Dropping))
    mapped = MAPPINGS[mapping]()(lambda params, task: model(params, task.query.inputs))
    with torch.random.fork_rng():
        runs = []
        for _ in range(2):
            torch.manual_seed(0)
            runs.append([mapped(model.params, TASKS), mapped(model.params, TASKS)])
    assert_same(runs[0], runs[1], atol=0, rtol=0)


def test_a_recording_made_with_the_same_tensor_for_two_arguments_serves_for_different_ones() -> None:
    def query_minus_support(_: Params, task: Task) -> Tensor:
        return (task.query.inputs - task.support.inputs).sum()

    over_tasks, shared = vectorized(run=traced), {"w": draw(2)}
    same, other = draw(3, 4), draw(3, 4, seed=1)
    batches = [Batch(inputs, inputs) for inputs in (same, other)]
    assert_same(over_tasks(query_minus_support)(shared, Task(batches[0], batches[0])), torch.zeros(3, dtype=DTYPE))
    differences = over_tasks(query_minus_support)(shared, Task(batches[0], batches[1]))
    assert_same(differences, (other - same).sum(1), atol=1e-12, rtol=0)


def test_a_traced_function_runs_its_python_once_for_each_size() -> None:
    calls = 0

    def function(shared: Params, task: Task) -> Tensor:
        nonlocal calls
        calls += 1
        return (shared["w"] * task.query.inputs).sum()

    over_tasks, shared = vectorized(run=traced), {"w": draw(2)}
    mapped = over_tasks(function)
    for tasks, expected_calls in [
        (TASKS, 1),
        (regression_tasks(5, seed=1), 1),
        (regression_tasks(2), 2),
        (TASKS, 2),
    ]:
        assert_same(mapped(shared, tasks), vectorized()(function)(shared, tasks), atol=0, rtol=0)
        calls -= 1  # the comparison's own
        assert calls == expected_calls
    assert_same(
        over_tasks(function)({"w": draw(2, seed=9)}, TASKS),
        (draw(2, seed=9) * TASKS.query.inputs).sum((1, 2)),
    )
    assert calls == 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_replay_is_the_same_bit_for_bit_on_data_it_was_not_recorded_on(algorithm: str) -> None:
    chosen = ALGORITHMS[algorithm]
    task_gradient = chosen.gradient(*supervised(MODEL), chosen.rule, chosen.steps)
    meta, over_tasks = meta_params(MODEL.params, chosen.rule), vectorized(run=traced)
    for seed in range(3):
        tasks = regression_tasks(seed=seed)
        expected = meta_gradient(task_gradient, meta, tasks, vectorized())
        actual = meta_gradient(task_gradient, meta, tasks, over_tasks)
        assert_same(list(leaves(actual)), list(leaves(expected)), atol=0, rtol=0)
        meta = MetaParams(*({n: v - 0.1 * g[n] for n, v in m.items()} for m, g in zip(meta, expected[0], strict=True)))


def test_a_recording_is_for_inputs_of_the_same_structure() -> None:
    def function(shared: Params, task: dict[str, Tensor]) -> Tensor:
        return shared["w"] * (task["x"].sum() if "x" in task else -task["y"].sum())

    mapped, shared, values = vectorized(run=traced)(function), {"w": torch.ones(())}, torch.ones(3, 2)
    assert_same(mapped(shared, {"x": values}), torch.full((3,), 2.0))
    assert_same(mapped(shared, {"y": values}), torch.full((3,), -2.0))
    pair = vectorized(run=traced)(lambda shared, task: task["x"].sum() - task["y"].sum())
    assert_same(pair({}, {"x": values, "y": 0 * values}), torch.full((3,), 2.0))
    assert_same(pair({}, {"y": 0 * values, "x": values}), torch.full((3,), 2.0))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.relu, self.head = nn.Linear(2, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        hidden.view(-1, 2).mul_(2.0)
        hidden[:, 0] = 0.5
        scratch = torch.zeros_like(hidden)
        scratch[:, 1:] = self.relu(hidden)[:, 1:]
        return self.head(torch.sin(scratch))


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_modules_that_work_in_place_are_mapped_alike(mapping: str) -> None:
    model = FunctionalModule(seeded(InPlace))
    algorithm = algorithms.maml(Sgd(0.3), 2)
    task_gradient = algorithm.gradient(*supervised(model), algorithm.rule, algorithm.steps)
    meta, over_tasks = MetaParams(model.params, {}), MAPPINGS[mapping]()
    for seed in range(2):
        tasks = regression_tasks(seed=seed)
        expected = meta_gradient(task_gradient, meta, tasks, sequential())
        assert_same(meta_gradient(task_gradient, meta, tasks, over_tasks), expected)


class Processes:
    """A process group whose processes come one after the other; `exchanged` is what each gave to be added up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.rank, self.exchanged = 0, list[Tensor]()
        monkeypatch.setattr(distributed, "get_world_size", lambda: count)
        monkeypatch.setattr(distributed, "get_rank", lambda: self.rank)
        monkeypatch.setattr(distributed, "all_reduce", self.all_reduce)

    def all_reduce(self, leaf: Tensor, op: Any = distributed.ReduceOp.SUM) -> None:
        if op == distributed.ReduceOp.SUM:
            self.exchanged.append(leaf)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_the_shares_of_all_processes_make_the_whole(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Processes(monkeypatch, count)

    def function(shared: Tensor, task: Batch) -> dict[str, Any]:
        return {"sum": shared + task.inputs.sum(), "targets": task.targets, "name": "of all"}

    sums, targets = [], []
    for group.rank in range(count):
        result = sharded(sequential())(function)(draw(), TASKS.support)
        assert result["name"] == "of all"
        assert group.exchanged[-2] is result["sum"]
        sums.append(result["sum"])
        targets.append(result["targets"])
    expected = sequential()(function)(draw(), TASKS.support)
    assert_same(torch.stack(sums).sum(0), expected["sum"])
    assert_same(torch.stack(targets).sum(0), expected["targets"])


def test_a_process_computes_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    group, shares = Processes(monkeypatch, 2), list[int]()

    def noting(function: Any) -> Any:
        return lambda shared, tasks: (shares.append(len(tasks.inputs)), vectorized()(function)(shared, tasks))[1]

    for group.rank in (0, 1):
        sharded(noting)(lambda shared, task: shared + task.inputs.sum())(draw(), TASKS.support)
    assert shares == [2, 3]


def test_an_exchange_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    Processes(monkeypatch, 2)
    mapped = sharded(vectorized())(lambda shared, task: shared + task.inputs.sum())
    with pytest.raises(RuntimeError, match=r"give the run to the map of a share, as in sharded\(vectorized"):
        traced(lambda shared, tasks: mapped(shared, tasks))(draw(), TASKS.support)


@pytest.mark.parametrize("what", ["meta-parameters", "tasks"])
def test_processes_that_differ_are_told(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Processes(monkeypatch, 2)
    other = torch.tensor([1.0, 0.0] if what == "meta-parameters" else [0.0, 1.0])

    def highest(leaf: Tensor, op: Any = None) -> None:
        if op == distributed.ReduceOp.MAX:
            leaf += other

    monkeypatch.setattr(distributed, "all_reduce", highest)
    with pytest.raises(ValueError, match=f"All processes must begin with the same {what}"):
        outer(ALGORITHMS["maml"], sharded(auto()))


def test_two_processes_train_as_one() -> None:
    """In earnest, with the example of the documents; how a process ends is gloo's own affair."""
    program = Path(__file__).parents[2] / "examples" / "several_processes.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    running = [
        subprocess.Popen(
            [*launcher, f"--nproc-per-node={count}", program],
            stdout=PIPE,
            stderr=PIPE,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )
        for count in (1, 2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for output, errors in told:
        assert output.startswith("query loss "), errors
    one, two = (float(output.removeprefix("query loss ")) for output, _ in told)
    assert one == pytest.approx(two, rel=1e-5)


def test_what_cannot_be_mapped_is_told_of_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    def branches_on_a_number(shared: Tensor, task: Tensor) -> Tensor:
        return task if task > shared else shared

    assert auto()(branches_on_a_number)(torch.tensor(0.0), torch.tensor([1.0, -1.0])).tolist() == [1.0, 0.0]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "(in branches_on_a_number, test_over_tasks.py:" in message
