from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import fewstep
from fewstep.core.over_tasks import side_by_side
from fewstep.core.running import captured, compiled, plain, traced
from fewstep.core.stepwise import stepwise
from fewstep.models.convnet import ConvNet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fewstep.core.running import Run

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


def tasks(seed: int, device: str) -> fewstep.Task:
    generator = torch.Generator().manual_seed(seed)

    def batch() -> fewstep.Batch:
        labels = torch.arange(3).repeat(4, 2).to(device)
        return fewstep.Batch(torch.rand(4, 6, 1, 28, 28, generator=generator).to(device), labels)

    return fewstep.Task(batch(), batch())


def learner(device: str, over_tasks: fewstep.OverTasks | None = None, run: Run = plain) -> fewstep.SupervisedLearner:
    torch.manual_seed(0)
    network = ConvNet(3, channels=1, image_size=28, filters=8)
    algorithm = fewstep.maml(fewstep.Sgd(0.1), 2)
    loss = nn.functional.cross_entropy
    return fewstep.SupervisedLearner(network, loss, algorithm, over_tasks=over_tasks, run=run, device=device)


def test_capturing_changes_nothing_without_a_gpu() -> None:
    own, other = learner("cpu"), learner("cpu", run=captured())
    for seed in range(3):
        assert own.step(tasks(seed, "cpu")) == other.step(tasks(seed, "cpu"))


@needs_gpu
@pytest.mark.parametrize(
    "how",
    [
        dict,
        lambda: {"run": captured()},
        lambda: {"over_tasks": fewstep.sequential(), "run": captured()},
        lambda: {"over_tasks": side_by_side(traced)},
        lambda: {"over_tasks": side_by_side(traced), "run": captured()},
        lambda: {"over_tasks": stepwise(vectorize=False, keep=True, forward_mode=True), "run": captured()},
        lambda: {"over_tasks": stepwise(keep=True, forward_mode=True), "run": captured()},
        lambda: {"over_tasks": stepwise(run=compiled(), keep=True, forward_mode=True), "run": captured()},
        lambda: {"over_tasks": stepwise()},
    ],
)
def test_a_gpu_learns_what_the_cpu_learns(
    how: Callable[[], dict], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    on_gpu, on_cpu = learner("cuda", **how()), learner("cpu")
    for seed in range(4):  # other tasks each time: a replay must read what is new
        fast, slow = on_gpu.step(tasks(seed, "cuda")), on_cpu.step(tasks(seed, "cpu"))
        assert fast["query_loss"] == pytest.approx(slow["query_loss"], rel=2e-3)
        assert fast["gradient_norm"] == pytest.approx(slow["gradient_norm"], rel=2e-2)
    assert not [record for record in caplog.records if record.name.startswith("fewstep")]  # compiled as told


@needs_gpu
def test_what_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    run = captured()(lambda x: x * x.sum().item())
    x = torch.ones(3, device="cuda")
    torch.cuda.manual_seed(5)
    drawn = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(5)
    for _ in range(2):
        assert torch.equal(run(x).cpu(), torch.full((3,), 3.0))
    assert caplog.text.count("not captured") == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.equal(torch.rand(4, device="cuda"), drawn)  # random numbers are not left in the graph
    torch.cuda.manual_seed(5)
    assert torch.equal(torch.rand(4, device="cuda"), drawn)


@needs_gpu
@pytest.mark.parametrize("compiles", ["true", "false"])
def test_a_run_begun_on_a_gpu_goes_on_and_is_evaluated_on_the_cpu(tmp_path: Path, compiles: str) -> None:
    from fewstep.experiments.evaluate_run import evaluate
    from fewstep.experiments.train_run import train

    settings = ["meta.batch_size=4", "validation.every=5", "validation.tasks=10", f"execution.compile={compiles}"]
    train("sinusoid-10shot", out=tmp_path / "run", settings=[*settings, "meta.iterations=10"], device="cuda")
    train(
        "sinusoid-10shot", out=tmp_path / "run", settings=[*settings, "meta.iterations=15"], device="cpu", resume=True
    )
    results = [evaluate(tmp_path / "run", tasks=20, device=device) for device in ("cuda", "cpu")]
    there, here = ([step["mean"] for step in result["steps"]] for result in results)
    assert there == pytest.approx(here, rel=1e-3)
