"""From a recipe to how it is executed: a fixed rule, so that a run executes alike wherever it goes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from fewstep.core.over_tasks import LARGE_IMAGE, auto, sequential, side_by_side, vectorized
from fewstep.core.products import bfloat16
from fewstep.core.running import Run, captured, compiled, plain, traced
from fewstep.core.stepwise import outer_gradients, stepwise
from fewstep.errors import FewstepError
from fewstep.experiments.sections import ImageTasks, TableTasks
from fewstep.tasks.prepared import cache_folder

if TYPE_CHECKING:
    from fewstep.core.types import OverTasks
    from fewstep.experiments.config import Recipe


def build_execution(recipe: Recipe, device: str, *, ragged: bool = False) -> tuple[OverTasks, Run]:
    """How tasks are mapped, and how the meta-gradient as a whole runs.

    Args:
        recipe: Says so.
        device: Where it runs.
        ragged: Whether tasks come in many sizes.
    """
    chosen = recipe.execution
    # A replay is safe for our own modules and losses, which depend on nothing but their arguments; and it pays only
    # where few sizes of tasks come again and again. It never pays for evaluation: too few calls, too many steps.
    ragged = ragged or (isinstance(recipe.tasks, TableTasks) and recipe.tasks.queries is None)
    own = "custom" not in (recipe.model.kind, recipe.loss.kind, recipe.algorithm.kind)
    replay = traced if own and not ragged else plain
    on_gpu = device.startswith("cuda")
    rounded = bfloat16 if chosen.precision == "bf16" else _as_it_is
    if chosen.over_tasks == "sequential":
        others = sequential()
    elif chosen.over_tasks == "vectorized":
        others = vectorized(chosen.chunk_size)
    else:
        others = auto(chosen.chunk_size)
    large = image_size(recipe) >= LARGE_IMAGE
    if chosen.compile and recipe.model.kind != "convnet" and not chosen.remat and chosen.over_tasks != "sequential":
        # A small network is over in a moment: compiled whole, with nothing of Python between the steps.
        gradients, run = auto(chosen.chunk_size), rounded(compiled())
    elif chosen.compile:
        gradients, run = _stepwise(recipe, large, rounded(compiled())), plain
    elif chosen.remat:  # recording every step takes longer than it saves
        gradients, run = _stepwise(recipe, large and not on_gpu, plain), rounded(plain)
    elif chosen.over_tasks == "auto" and large and on_gpu and replay is traced:
        gradients, run = side_by_side(rounded(replay)), plain
    elif chosen.over_tasks == "auto":
        gradients, run = auto(chosen.chunk_size, rounded(replay)), plain
    else:
        gradients, run = others, rounded(plain)
    # Recomputation restores the state of random numbers, which no graph can.
    capture = on_gpu and replay is traced and not chosen.remat
    return outer_gradients(gradients, others), captured(run) if capture else run


def _as_it_is(run: Run) -> Run:
    return run


def _stepwise(recipe: Recipe, one_by_one: bool, run: Run) -> OverTasks:
    chosen = recipe.execution
    # Forward derivatives are tested for our convolutional network and cross-entropy.
    forward = recipe.model.kind == "convnet" and recipe.loss.kind == "cross_entropy"
    return stepwise(
        vectorize=not (one_by_one or chosen.over_tasks == "sequential"),
        chunk_size=chosen.chunk_size,
        run=run,
        keep=not chosen.remat,
        forward_mode=forward,
    )


def keep_compiled() -> None:
    """Keep what is compiled in the user's cache folder: later runs start at once."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder(None) / "compiled"))


def image_size(recipe: Recipe) -> int:
    """Height and width of a task's images; 0 where it has none."""
    return recipe.tasks.image_shape[-1] if isinstance(recipe.tasks, ImageTasks) else 0


def checked_device(name: str | torch.device) -> str:
    """The name of a device that torch can compute on here.

    Raises:
        FewstepError: It is none.
    """
    try:
        usable = torch.device(name).type != "meta"  # which has shapes but no values
        torch.empty(0, device=name)
        reason = "it computes nothing"
    except (RuntimeError, AssertionError) as error:
        usable, reason = False, str(error).partition("\n")[0]
    if not usable:
        raise FewstepError(
            f"--device must be one that torch can use here, such as cpu or cuda: got {str(name)!r} ({reason})."
        )
    return str(name)
