"""Any family of Gymnasium environments as a distribution of tasks.

def make(task):                       # one task, a vector of numbers, to its environment
    environment = gymnasium.make("Pendulum-v1")
    environment.unwrapped.m = task[0]
    return environment

def sample(num_tasks, generator):     # [tasks, parameters]
    return 0.5 + torch.rand(num_tasks, 1, generator=generator)

family = GymnasiumFamily(make, sample, horizon=200)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import torch

from fewstep.core import rng
from fewstep.core.expect import expect_whole
from fewstep.errors import EpisodeError, FewstepError, NonFiniteError
from fewstep.rl.environment import ActionSpace, Continuous, Discrete, Transition, check_actions, check_tasks
from fewstep.rl.envs.slots import SlotError, Slots, guarded
from fewstep.rl.envs.spaces import Spaces
from fewstep.rl.envs.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import Generator, Tensor

    from fewstep.rl.envs.slots import Floats, Make, SetTask


@final
class GymnasiumFamily:
    """Gymnasium environments that differ by a task, as an `Environment`.

    Observations are Boxes, and are flattened. Actions are Discrete, or bounded Boxes, to which [-1, 1] is mapped. An
    episode ends where the environment says so, by termination or by truncation: a time limit within the horizon is an
    end like any other. Each episode is seeded on its own, so that trajectories do not depend on the workers.

    One set of episodes is played at a time. Workers start at the first `reset`, and end with `close()`, with the
    `with` block, or with the object.

    Args:
        make: The environment of a task, which is given as `[parameters]`, float64.
        sample: Draws tasks, `[tasks, parameters]`, from a stream.
        horizon: H, time steps.
        set_task: Gives an environment another task, where making one is slow; None makes a new one for each episode.
        workers: Processes that the environments are spread over; 0 runs them in this one. `make` and `set_task` are
            then defined at the top level of a module.

    Raises:
        ValueError: There are no time steps, or fewer workers than none.
        EpisodeError: A first environment could not be made, or `sample` draws something else.
        FewstepError: Its observations or actions are of another kind.
    """

    def __init__(
        self,
        make: Make,
        sample: Callable[[int, Generator], Tensor],
        horizon: int,
        *,
        set_task: SetTask | None = None,
        workers: int = 0,
    ) -> None:
        expect_whole("horizon", horizon)
        expect_whole("workers", workers, 0)
        self._make, self._sample, self._set_task = make, sample, set_task
        self.horizon = horizon
        self._workers = workers
        self._runner: Slots | Workers | None = None
        self._played = 0
        self._spaces = self._of_one()
        self.actions: ActionSpace = self._spaces.actions

    @property
    def observation_size(self) -> int:
        """Features of one observation."""
        return self._spaces.observation_size

    def sample_tasks(self, num_tasks: int, generator: Generator) -> Tensor:
        """Draw tasks, `[tasks, parameters]`.

        Raises:
            EpisodeError: `sample` gave something else.
        """
        return check_tasks(self._sample(num_tasks, generator), num_tasks, self)

    def reset(self, tasks: Tensor, trajectories: int, generator: Generator) -> tuple[FamilyEpisodes, Tensor]:
        """Begin episodes, and end those before; see `Environment`. Observations and rewards have the tasks' dtype, or
        the default one where tasks are whole numbers.

        Raises:
            EpisodeError: An environment, or a worker, failed.
        """
        if self._runner is None:
            self._runner = (
                Workers(self._make, self._set_task, self.observation_size, self._workers)
                if self._workers
                else Slots(self._make, self._set_task, self.observation_size)
            )
        self._played += 1
        rows = tasks.detach().double().numpy().repeat(trajectories, axis=0)
        seeds = torch.randint(2**31, (len(rows),), generator=generator).numpy()
        dtype = tasks.dtype if tasks.is_floating_point() else torch.get_default_dtype()
        episodes = FamilyEpisodes(self, self._played, rows, (len(tasks), trajectories), dtype)
        first = self._run(rows, lambda runner: runner.reset(rows, seeds))
        return episodes, episodes.tensor(first, "Observations", "at the start")

    def play(self, turn: int, rows: Floats, actions: Tensor) -> Any:
        """One step of the episodes that began as the `turn`-th; what `FamilyEpisodes` is made of."""
        if turn != self._played or self._runner is None:
            raise FewstepError(
                "Episodes of a GymnasiumFamily are played one set at a time: got a step for episodes that ended when "
                "others began, or when the family was closed. Step the newest, or make a second family."
            )
        native = self.native(actions.flatten(0, 1))
        return self._run(rows, lambda runner: runner.step(native))

    def close(self) -> None:
        """Close the environments, and end the workers."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, rows: Floats, call: Callable[[Slots | Workers], Any]) -> Any:
        """Have the environments do something; whatever goes wrong closes them, since no episode can go on."""
        assert self._runner is not None
        try:
            return call(self._runner)
        except SlotError as error:
            self.close()
            raise _failed(rows[error.slot], error) from error.__cause__
        except BaseException:
            self.close()
            raise

    def native(self, actions: Tensor) -> npt.NDArray[Any]:
        """A policy's actions in the environments' own terms, for their `step`; see `Spaces.native`."""
        return self._spaces.native(actions)

    def _of_one(self) -> Spaces:
        """The spaces of an environment that is made for this alone."""
        task = self.sample_tasks(1, rng.generator(0, "spaces"))[0].double().numpy()
        try:
            environment = guarded(0, "make", partial(self._make, task))
        except SlotError as error:
            raise _failed(task, error) from error.__cause__
        if not hasattr(environment, "observation_space"):
            raise FewstepError(
                f"`make` must return a Gymnasium environment for a task: got {environment!r}. Does it lack a `return`?"
            )
        try:
            return Spaces(environment)
        finally:
            environment.close()


@final
class FamilyEpisodes:
    """Episodes of a `GymnasiumFamily`."""

    def __init__(
        self, family: GymnasiumFamily, turn: int, rows: Floats, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        self._family, self._turn, self._rows, self._shape, self._dtype = family, turn, rows, shape, dtype
        self._time = 0

    def step(self, actions: Tensor) -> Transition:
        """Act once in every episode that goes on; see `Episodes`.

        Raises:
            EpisodeError: An environment, or a worker, failed.
            FewstepError: The actions are of another shape, or none of the choices.
            NonFiniteError: An action, an observation or a reward is no finite number.
        """
        self._check(actions)
        stepped = self._family.play(self._turn, self._rows, actions)
        self._time += 1
        when = f"after {self._time} steps"
        return Transition(
            self.tensor(stepped.observations, "Observations", when),
            self.tensor(stepped.rewards[:, None], "Rewards", when).squeeze(-1),
            torch.from_numpy(stepped.ended).view(self._shape),
        )

    def tensor(self, values: Floats, what: str, when: str) -> Tensor:
        """Values `[slots, entries]` as `[tasks, trajectories, entries]`."""
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            bad = np.flatnonzero(~finite)
            slot, others = int(bad[0]), len(bad) - 1
            task, trajectory = divmod(slot, self._shape[1])
            raise NonFiniteError(
                f"{what} are finite numbers: got one that is not {when}, in task {task} ({self._rows[slot].tolist()}), "
                f"trajectory {trajectory}{f', and in {others} more episodes' if others else ''}. Look into the "
                "environment of this task.",
                (bad // self._shape[1]).tolist(),
            )
        return torch.from_numpy(values).to(self._dtype).view(*self._shape, -1)

    def _check(self, actions: Tensor) -> None:
        space = self._family.actions
        shape = (*self._shape, space.size) if isinstance(space, Continuous) else self._shape
        if actions.shape != shape:
            raise FewstepError(
                f"Actions of these episodes are {shape}: got {tuple(actions.shape)}. Give one for every episode, those "
                "that have ended included."
            )
        if isinstance(space, Discrete) and not ((actions >= 0) & (actions < space.count)).all():
            raise FewstepError(f"An action is an index below {space.count}: got {actions.min()} to {actions.max()}.")
        check_actions(actions.isfinite().numpy(), self._shape, self._time)


def _failed(task: Floats, error: SlotError) -> EpisodeError:
    what = error.what.rstrip(".")
    failure = EpisodeError(
        f"The environments of a family are to run without exceptions: `{error.doing}` of the environment of task "
        f"{task.tolist()} raised {what}. Try the environment of this task by itself; where it happened is below."
    )
    failure.add_note(error.trace)
    return failure
