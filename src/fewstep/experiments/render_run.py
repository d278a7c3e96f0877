"""`fewstep render`: a robot before and after adaptation, as an animation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fewstep.core.rng import derived_seed, generator
from fewstep.core.trees import index
from fewstep.errors import FewstepError
from fewstep.experiments.build_reinforcement import build_environment
from fewstep.experiments.runs import load_learner, open_run, recipe_of
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.rl.trajectories import Mdp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from fewstep.names import Checkpoint
    from fewstep.training.records import RunFolder

SECONDS_PER_PICTURE = 0.04
"""Of the film; what a robot does in real time."""
_CAPTION = 13
"""Height of captions, in pixels."""


def render(
    run: str | Path | RunFolder,
    out: Path,
    *,
    steps: Sequence[int] = (0, 1),
    tasks: int = 2,
    seed: int = 0,
    checkpoint: Checkpoint = "best",
) -> list[float]:
    """Film a robot in unseen tasks: a row of pictures for each task, a column for each number of gradient steps.

    Args:
        run: A run of one of the robots.
        out: GIF to write.
        steps: Gradient steps after which to film, in this order.
        tasks: How many tasks.
        seed: Which tasks.
        checkpoint: "best" by validation, or "final".

    Returns:
        The tasks: velocities, or directions.

    Raises:
        FewstepError: The run has no robot, nothing here draws without a screen, or the file's name is no GIF's.
    """
    from fewstep.rl.envs.locomotion import Locomotion
    from fewstep.rl.envs.rendering import episode, frames, write_gif
    from fewstep.rl.envs.revealed import Revealed

    _check(out, steps, tasks)
    folder = open_run(run)
    recipe = recipe_of(folder)
    if recipe.loss.kind != "reinforce" or recipe.tasks.kind == "custom":
        raise _no_robot(folder)
    learner = load_learner(folder, recipe, checkpoint, environment=build_environment(recipe))
    assert isinstance(learner, ReinforcementLearner)
    environment = learner.environment
    seen = environment.environment if isinstance(environment, Revealed) else environment
    if not isinstance(seen, Locomotion):
        raise _no_robot(folder)
    drawn = environment.sample_tasks(tasks, generator(seed, "render"))
    seeds = torch.tensor([derived_seed(seed, "render", number) for number in range(tasks)])
    adapted = [rollout.params for rollout in learner.rollouts(Mdp(drawn, seeds), max(steps))]
    every = max(1, round(SECONDS_PER_PICTURE / seen.duration))
    rows: list[np.ndarray] = []
    for number, task in enumerate(drawn):
        reveal = _revealing(task) if isinstance(environment, Revealed) else _as_is
        films = []
        for step in steps:
            policy = learner.policy.as_module(index(adapted[step], number))
            stream = generator(seed, "render", number)  # one initial state, whatever the number of steps
            film = frames(seen, episode(seen, task, _acting(policy, reveal), stream), every=every)
            told = ", ".join(f"{value:.3g}" for value in task.tolist())
            films.append(_captioned(film, f"{recipe.tasks.kind} {told}, {_after(step)}"))
        rows.append(np.concatenate(_equally_long(films), axis=2))
    write_gif(out, np.concatenate(_equally_long(rows), axis=1), every * seen.duration)
    return drawn.flatten().tolist()


def _check(out: Path, steps: Sequence[int], tasks: int) -> None:
    """What can be known before minutes go by."""
    if out.suffix.lower() != ".gif" or not out.parent.is_dir():
        raise FewstepError(f"--out must be a GIF in a folder that is there: got {out}. Choose another.")
    if not steps or min(steps) < 0 or tasks < 1:
        raise FewstepError(
            f"--steps must be numbers of gradient steps such as 0,1, and --tasks at least 1: got {list(steps)} and "
            f"{tasks}. Correct these."
        )


def _no_robot(run: RunFolder) -> FewstepError:
    return FewstepError(
        f"Only runs of a robot (cheetah-*, ant-*) can be filmed: {run.path} is one of {run.config['tasks']['kind']} "
        "tasks. `fewstep plot` draws what can be drawn of it."
    )


def _acting(policy: nn.Module, reveal: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What the policy does at its most probable."""

    @torch.no_grad()
    def act(observations: Tensor) -> Tensor:
        return policy(reveal(observations).to(torch.get_default_dtype())).mean

    return act


def _revealing(task: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda observations: torch.cat([observations, task.expand(*observations.shape[:-1], -1)], -1)


def _as_is(observations: Tensor) -> Tensor:
    return observations


def _after(steps: int) -> str:
    return f"after {steps} gradient step{'s' * (steps != 1)}" if steps else "before adaptation"


def _captioned(film: np.ndarray, text: str) -> np.ndarray:
    """A film `[time, height, width, 3]` with words in its upper rows."""
    strip = Image.new("RGB", (film.shape[2], _CAPTION + 6))
    ImageDraw.Draw(strip).text((4, 2), text, "white", ImageFont.load_default(_CAPTION))
    film = film.copy()
    film[:, : strip.height] = np.asarray(strip)
    return film


def _equally_long(films: list[np.ndarray]) -> list[np.ndarray]:
    """Films `[time, ...]`; those that end early keep their last picture."""
    longest = max(len(film) for film in films)
    return [np.concatenate([film, np.repeat(film[-1:], longest - len(film), axis=0)]) for film in films]
