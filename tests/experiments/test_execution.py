"""How a recipe is executed on a device. A GPU's own ways run on the CPU too, though not side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import fewstep
from fewstep.core.running import Run, plain
from fewstep.experiments.execution import build_execution
from fewstep.experiments.recipe_files import load_recipe
from fewstep.models.convnet import ConvNet

if TYPE_CHECKING:
    from torch import Tensor


def gradients(over_tasks: fewstep.OverTasks, run: Run) -> list[Tensor]:
    torch.manual_seed(0)
    network = ConvNet(2, channels=3, image_size=16, filters=4, blocks=2, downsample="max_pool", pool="flatten").double()
    algorithm = fewstep.maml(fewstep.Sgd(0.1), 2)
    learner = fewstep.SupervisedLearner(network, nn.functional.cross_entropy, algorithm, over_tasks=over_tasks, run=run)
    generator = torch.Generator().manual_seed(0)
    batch = fewstep.Batch(
        torch.rand(2, 4, 3, 16, 16, generator=generator, dtype=torch.float64), torch.arange(2).repeat(2, 2)
    )
    learner.step(fewstep.Task(batch, batch._replace(inputs=batch.inputs.flip(-1))))
    return [value.grad for value in learner.meta.model.values() if value.grad is not None]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("recipe", ["omniglot-5way-1shot", "miniimagenet-5way-1shot"])
@pytest.mark.parametrize("settings", [[], ["remat=true"], ["over_tasks=sequential"], ["over_tasks=vectorized"]])
def test_the_meta_gradient_is_the_same_however_it_is_executed(device: str, recipe: str, settings: list[str]) -> None:
    chosen = load_recipe(recipe, [f"execution.{setting}" for setting in ["compile=false", *settings]])
    expected = gradients(fewstep.sequential(), plain)
    torch.testing.assert_close(gradients(*build_execution(chosen, device)), expected)
