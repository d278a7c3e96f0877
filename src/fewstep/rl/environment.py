"""What every family of environments offers: episodes of many tasks, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from fewstep.errors import EpisodeError, NonFiniteError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Continuous:
    """Actions that are vectors; policies act in [-1, 1], which the environment maps to its own range, clipping.

    Attributes:
        size: Elements of one action.
    """

    size: int


@dataclass(frozen=True)
class Discrete:
    """Actions that are one of a few choices.

    Attributes:
        count: How many there are to choose from; an action is an index below it.
    """

    count: int


ActionSpace: TypeAlias = Continuous | Discrete


class Transition(NamedTuple):
    """What one action leads to, in every episode.

    Attributes:
        observations: After the action, `[tasks, trajectories, features]`.
        rewards: `[tasks, trajectories]`.
        terminated: Whether the episode has ended by its own rules, `[tasks, trajectories]`, bool. The horizon ends
            the others, and is no affair of the environment.
    """

    observations: Tensor
    rewards: Tensor
    terminated: Tensor


class Episodes(Protocol):
    """Episodes that run at the same time, `[tasks, trajectories]` of them."""

    def step(self, actions: Tensor) -> Transition:
        """Act once in every episode.

        Args:
            actions: `[tasks, trajectories, size]`, or indices `[tasks, trajectories]` where they are discrete.

        Returns:
            What they lead to. Of an episode that has terminated, whatever is finite: it is masked by the caller.
        """
        ...


class Environment(Protocol):
    """A distribution of tasks p(T) of one kind, each a Markov decision process (section 3.1).

    A task is a vector of numbers (a goal, a velocity), so tasks of all kinds are stored, compared and replayed
    alike.
    """

    @property
    def observation_size(self) -> int:
        """Features of one observation."""
        ...

    @property
    def actions(self) -> ActionSpace:
        """What a policy chooses from."""
        ...

    @property
    def horizon(self) -> int:
        """H, the time steps after which an episode ends."""
        ...

    def sample_tasks(self, num_tasks: int, generator: torch.Generator) -> Tensor:
        """Draw tasks, `[tasks, parameters]`; the same stream gives the same tasks."""
        ...

    def reset(self, tasks: Tensor, trajectories: int, generator: torch.Generator) -> tuple[Episodes, Tensor]:
        """Begin episodes.

        Args:
            tasks: `[tasks, parameters]`.
            trajectories: Episodes of each.
            generator: A CPU stream, of the initial states and of all that is random in the environment.

        Returns:
            The episodes and their first observations `[tasks, trajectories, features]`.
        """
        ...


def check_tasks(parameters: Any, num_tasks: int, environment: Environment) -> Tensor:
    """What a sampler of tasks gave, if it is `[tasks, parameters]`.

    Raises:
        EpisodeError: It is something else.
    """
    if not isinstance(parameters, Tensor) or parameters.dim() != 2 or len(parameters) != num_tasks:
        came = list(parameters.shape) if isinstance(parameters, Tensor) else type(parameters).__name__
        raise EpisodeError(
            f"`sample_tasks` must give a tensor with one row of parameters for each task, [{num_tasks}, parameters]: "
            f"got {came} from {type(environment).__name__}. Stack the tasks along the first axis, a single number as a "
            "column."
        )
    if not parameters.isfinite().all():
        raise EpisodeError(
            f"`sample_tasks` must give finite numbers: got {parameters.tolist()} from {type(environment).__name__}. "
            "Look into how it draws them."
        )
    return parameters


def check_actions(finite: npt.NDArray[np.bool_], shape: tuple[int, int], time: int) -> None:
    """See that all actions are finite numbers.

    Args:
        finite: Whether they are, `[episodes, ...]`.
        shape: `(tasks, trajectories)`.
        time: When.

    Raises:
        NonFiniteError: Some are not.
    """
    if not finite.all():
        tasks, trajectories, *_ = (~finite).reshape(*shape, -1).nonzero()
        raise NonFiniteError(
            f"Actions are finite numbers: got one that is not, in task {tasks[0]}, trajectory {trajectories[0]}, at "
            f"time {time}. The policy has diverged: lower the step size, of the inner loop first.",
            tasks.tolist(),
        )


def check_transition(shape: tuple[int, int], environment: Environment, transition: Any) -> Transition:
    """What a step gave, if it is a `Transition`, or at the start the observations with rewards and ends made up.

    Args:
        shape: `(tasks, trajectories)`.
        environment: Says how many features an observation has.
        transition: What came.

    Raises:
        EpisodeError: Something in it has another shape or type: it would be broadcast over what it does not belong to.
    """
    if not isinstance(transition, tuple) or len(transition) != 3:  # pyright: ignore[reportUnknownArgumentType]
        raise EpisodeError(
            f"`step` must give a `Transition` of observations, rewards and terminated: got {type(transition).__name__} "
            f"from {type(environment).__name__}. See `fewstep.rl.environment`."
        )
    checked = Transition(*transition)  # any three in this order will do
    wanted = {"observations": (*shape, environment.observation_size), "rewards": shape, "terminated": shape}
    for name, size in wanted.items():
        came: Any = getattr(checked, name)
        kind = "bool tensor" if name == "terminated" else "tensor"
        fits = isinstance(came, Tensor) and came.shape == size and (name != "terminated" or came.dtype == torch.bool)
        if not fits:
            what = f"{came.dtype} {list(came.shape)}" if isinstance(came, Tensor) else type(came).__name__
            raise EpisodeError(
                f"An environment must give {name} as a {kind} [{', '.join(map(str, size))}], of (tasks, trajectories"
                f"{', features' if name == 'observations' else ''}): got {what} from {type(environment).__name__}. See "
                "`fewstep.rl.environment`."
            )
    return checked
