"""Episodes of all tasks at once, each task under a policy of its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import torch

from fewstep.core.expect import expect_whole
from fewstep.core.rng import generator
from fewstep.errors import EpisodeError, FewstepError, NonFiniteError
from fewstep.memory import is_out_of_memory
from fewstep.rl.environment import Transition, check_tasks, check_transition
from fewstep.rl.policy import draw_noise
from fewstep.rl.trajectories import Mdp, Trajectories

if TYPE_CHECKING:
    from collections import abc
    from collections.abc import Callable

    from torch import Generator, Tensor

    from fewstep.rl.environment import Environment


@final
class Mdps:
    """p(T): the tasks of an environment, as a `TaskDistribution`.

    Args:
        environment: Draws their parameters.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def sample(self, num_tasks: int, generator: Generator) -> Mdp:
        """Draw tasks, each with a stream of its own.

        Raises:
            EpisodeError: The environment gave something else than `[tasks, parameters]`.
        """
        parameters = check_tasks(self.environment.sample_tasks(num_tasks, generator), num_tasks, self.environment)
        return Mdp(parameters, torch.randint(2**62, (num_tasks,), generator=generator))


@torch.no_grad()
def sample_trajectories(
    environment: Environment,
    act: Callable[[Tensor, Tensor], Tensor],
    tasks: Mdp,
    trajectories: int,
    step: int,
    like: Tensor,
) -> Trajectories:
    """Sample episodes to the horizon in every task; keeps no graph.

    Args:
        environment: Where to act.
        act: From observations `[tasks, trajectories, features]` and noise to actions.
        tasks: With a `tasks` axis.
        trajectories: Episodes of each.
        step: Inner steps that the policy has taken, part of the name of each task's stream.
        like: Gives the type and device that the policy computes in.

    Returns:
        What happened.

    Raises:
        ValueError: No trajectory is asked for, or no task given.
        EpisodeError: The environment raised, or gave tensors of another shape or type than it must.
        NonFiniteError: An observation, action or reward is infinite or nan.
    """
    expect_whole("trajectories", trajectories)
    if not len(tasks.seed):
        raise ValueError("Sampling needs at least one task: got none. Raise meta.batch_size.")
    noise = _noise(environment, tasks, trajectories, step).to(like)
    # The first task names the stream of initial states, which the environment draws for all together.
    start = generator(int(tasks.seed[0]), "reset", step)
    with _told("reset", environment):
        begun: Any = environment.reset(tasks.parameters, trajectories, start)
    if not isinstance(begun, tuple) or len(begun) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise EpisodeError(
            f"`reset` must give episodes and their first observations: got {type(begun).__name__} from "
            f"{type(environment).__name__}. See `fewstep.rl.environment`."
        )
    episodes, observations = begun
    shape = (len(tasks.seed), trajectories)
    alive = torch.ones(shape, dtype=torch.bool)
    check_transition(shape, environment, Transition(observations, alive, alive))
    seen, done, earned, taken = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
    for time in range(environment.horizon):
        # Copies, since an environment may write what it gives, and what it is given, anew in every step.
        seen.append(observations.to(like, copy=True))
        done.append(act(seen[-1], noise[:, :, time]))
        taken.append(alive)
        with _told("step", environment):
            transition = episodes.step(done[-1].to(observations.device, copy=True))
        observations, rewards, terminated = check_transition(shape, environment, transition)
        earned.append(rewards.to(like, copy=True))
        alive = alive & ~terminated.cpu()
        if not alive.any():  # what would follow does not count
            break
    for part in (seen, done, earned, taken):
        part += [torch.zeros_like(part[0])] * (environment.horizon - len(part))
    mask = torch.stack(taken, 2).to(like)
    rewards = torch.where(mask > 0, torch.stack(earned, 2), 0.0)
    sampled = Trajectories(torch.stack(seen, 2), torch.stack(done, 2), rewards, mask)
    _check_finite(sampled, step)
    return sampled


@contextmanager
def _told(what: str, environment: Environment) -> abc.Generator[None]:
    """What an environment raises stops no training without its checkpoint: it is an `EpisodeError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FewstepError) or is_out_of_memory(error):
            raise
        raise EpisodeError(
            f"Environments run without exceptions: `{what}` of {type(environment).__name__} raised "
            f"{type(error).__name__}: {str(error).rstrip('.')}. Look there; the traceback above says where."
        ) from error


def _noise(environment: Environment, tasks: Mdp, trajectories: int, step: int) -> Tensor:
    """`[tasks, trajectories, time, ...]`, each task's from its own stream."""
    shape = (trajectories, environment.horizon)
    streams = [generator(seed, "actions", step) for seed in tasks.seed.tolist()]
    return torch.stack([draw_noise(environment.actions, shape, stream) for stream in streams])


def _check_finite(sampled: Trajectories, step: int) -> None:
    """Of what is not finite, the earliest is the cause: at one time step, first what is observed, then what is done."""
    found: list[tuple[int, int, str, Tensor]] = []
    for order, name in enumerate(("observations", "actions", "rewards")):
        values: Tensor = getattr(sampled, name)
        bad = ~values.isfinite().flatten(3).all(3) if values.dim() > 3 else ~values.isfinite()
        bad = bad.any(1)  # [tasks, time]
        if bad.any():
            found.append((int(bad.any(0).nonzero()[0]), order, name, bad.any(1)))
    if not found:
        return
    time, _, name, tasks = min(found, key=lambda each: each[:2])
    cure = (
        "The policy diverged: lower the inner learning rate, or clip the inner gradient (algorithm.clip)."
        if name == "actions"
        else "Look at the environment, which must return finite numbers for every action; if actions grow "
        "without bound, lower the inner learning rate."
    )
    raise NonFiniteError(
        f"Observations, actions and rewards must be finite: {name} "
        f"{f'after inner step {step}' if step else 'before adaptation'} are infinite or nan in {int(tasks.sum())} of "
        f"{len(tasks)} tasks (the first is task {int(tasks.nonzero()[0])}), from time step {time} on. {cure}",
        tasks.nonzero().flatten().tolist(),
    )
