"""The environments that need no simulator, and how episodes are sampled in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.core.problems import assert_same

from fewstep.core.rng import generator
from fewstep.errors import EpisodeError, NonFiniteError
from fewstep.rl.environment import Continuous, Transition
from fewstep.rl.envs.bandit import Bandit
from fewstep.rl.envs.navigation import Navigation
from fewstep.rl.envs.revealed import Revealed
from fewstep.rl.sampling import Mdps, sample_trajectories

if TYPE_CHECKING:
    from torch import Tensor

LIKE = torch.zeros(())
ONE_NUMBER = Continuous(1)


def noisy(observations: Tensor, noise: Tensor) -> Tensor:
    """Acts at random around the position itself."""
    return observations[..., :2] + noise


def test_navigation_moves_clips_and_rewards_the_distance_after_the_move() -> None:
    goals = torch.tensor([[0.3, 0.4]])
    walks, start = Navigation().reset(goals, 1, generator(0))
    assert_same(start, torch.zeros(1, 1, 2))
    moved = walks.step(torch.tensor([[[0.5, -7.0]]]))
    assert_same(moved.observations, torch.tensor([[[0.05, -0.1]]]))
    assert_same(moved.rewards, -torch.tensor([[(0.25**2 + 0.5**2) ** 0.5]]), rtol=1e-6)
    assert not moved.terminated


def test_navigation_ends_within_a_hundredth_of_the_goal_on_both_axes() -> None:
    goals = torch.tensor([[0.09, 0.0], [0.0895, 0.0], [0.095, 0.02]])
    walks, _ = Navigation().reset(goals, 1, generator(0))
    ended = walks.step(torch.tensor([[[0.9, 0.0]], [[0.9, 0.0]], [[0.95, 0.0]]])).terminated
    assert ended[:, 0].tolist() == [True, True, False]


def test_goals_fill_the_square() -> None:
    goals = Navigation().sample_tasks(4000, generator(0))
    assert -0.5 <= goals.min() < -0.49
    assert 0.49 < goals.max() <= 0.5
    torch.testing.assert_close(goals.norm(dim=1).mean(), torch.tensor(0.3826), atol=0.01, rtol=0)


def test_bandit_pays_for_one_arm() -> None:
    pulls, _ = Bandit(arms=3).reset(torch.tensor([[2.0], [0.0]]), 2, generator(0))
    assert_same(pulls.step(torch.tensor([[0, 2], [0, 2]])).rewards, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_revealed_appends_the_task_to_every_observation() -> None:
    plain, shown = Navigation(horizon=3), Revealed(Navigation(horizon=3))
    assert (shown.observation_size, shown.horizon, shown.actions) == (4, 3, plain.actions)
    tasks = Mdps(shown).sample(2, generator(0))
    assert_same(tasks, Mdps(plain).sample(2, generator(0)))
    sampled = sample_trajectories(shown, noisy, tasks, 5, 0, LIKE)
    assert_same(sampled.observations[..., 2:], tasks.parameters[:, None, None].expand(2, 5, 3, 2))
    assert_same(sampled.rewards, sample_trajectories(plain, noisy, tasks, 5, 0, LIKE).rewards)


def test_steps_after_an_episode_ended_are_masked_and_earn_nothing() -> None:
    tasks = Mdps(Navigation()).sample(1, generator(0))._replace(parameters=torch.tensor([[0.1, 0.1]]))
    sampled = sample_trajectories(Navigation(horizon=4), lambda o, noise: torch.ones_like(noise), tasks, 2, 0, LIKE)
    assert_same(sampled.mask, torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 4))
    assert not sampled.rewards[..., 1:].any()


def test_an_environment_may_write_into_the_tensors_that_it_gives_and_is_given() -> None:
    class InPlace(Navigation):
        def reset(self, tasks: Tensor, trajectories: int, generator: Any) -> Any:
            episodes, first = super().reset(tasks, trajectories, generator)
            act, buffers = (
                episodes.step,
                (first.clone(), torch.zeros(first.shape[:2]), torch.zeros(first.shape[:2]) > 0),
            )

            def step(actions: Tensor) -> Any:
                given = act(actions)
                actions.zero_()
                return type(given)(*(own.copy_(new) for own, new in zip(buffers, given, strict=True)))

            episodes.step = step
            return episodes, buffers[0]

    tasks = Mdps(Navigation()).sample(2, generator(0))
    sampled = [sample_trajectories(kind(horizon=5), noisy, tasks, 3, 0, LIKE) for kind in (Navigation, InPlace)]
    assert_same(*sampled, atol=0, rtol=0)


def test_sampling_ends_where_all_episodes_have() -> None:
    steps: list[int] = []

    class Counting(Navigation):
        def reset(self, tasks: Tensor, trajectories: int, generator: Any) -> Any:
            episodes, first = super().reset(tasks, trajectories, generator)
            act = episodes.step
            episodes.step = lambda actions: (steps.append(1), act(actions))[1]
            return episodes, first

    tasks = Mdps(Navigation()).sample(1, generator(0))._replace(parameters=torch.tensor([[0.1, 0.1]]))
    sampled = sample_trajectories(Counting(horizon=50), lambda o, noise: torch.ones_like(noise), tasks, 2, 0, LIKE)
    assert len(steps) == 1
    assert sampled.observations.shape == (1, 2, 50, 2)
    assert not sampled.mask[..., 1:].any()


def test_a_tasks_trajectories_depend_neither_on_the_others_nor_on_their_number() -> None:
    environment, tasks = Navigation(horizon=5), Mdps(Navigation()).sample(6, generator(0))
    together = sample_trajectories(environment, noisy, tasks, 3, 1, LIKE)
    alone = sample_trajectories(environment, noisy, type(tasks)(*(leaf[4:5] for leaf in tasks)), 3, 1, LIKE)
    assert_same(type(together)(*(leaf[4:5] for leaf in together)), alone, atol=0, rtol=0)


def test_every_inner_step_has_fresh_trajectories_and_every_task_its_own() -> None:
    tasks = Mdps(Navigation()).sample(2, generator(0))
    actions = [sample_trajectories(Navigation(5), noisy, tasks, 3, step, LIKE).actions for step in (0, 1)]
    assert not (actions[0] == actions[1]).any()
    assert not (actions[0][0] == actions[0][1]).any()


@dataclass(frozen=True)
class Broken:
    """Gives something that is not finite, or tasks of the wrong shape."""

    fault: str = ""
    shape: tuple[int, ...] = (2, 1)
    observation_size: int = 1
    actions: Continuous = ONE_NUMBER
    horizon: int = 3

    def sample_tasks(self, num_tasks: int, generator: Any) -> Tensor:
        return torch.zeros(self.shape)

    def reset(self, tasks: Tensor, trajectories: int, generator: Any) -> tuple[Broken, Tensor]:
        return self, torch.zeros(len(tasks), trajectories, 1)

    def step(self, actions: Tensor) -> Transition:
        bad = {name: torch.nan if name == self.fault else 0.0 for name in ("observations", "rewards")}
        rewards = torch.zeros_like(actions[..., 0])
        if self.fault == "nothing":
            return None  # type: ignore[return-value]
        if self.fault == "plain":
            return actions, rewards, rewards > 1  # type: ignore[return-value]
        if self.fault == "broadcast":
            return Transition(actions, rewards[:1], rewards > 1)
        if self.fault == "column":
            return Transition(actions, rewards[..., None], rewards > 1)
        if self.fault == "not bool":
            return Transition(actions, rewards, rewards)
        if self.fault == "features":
            return Transition(actions.expand(-1, -1, 2), rewards, rewards > 1)
        return Transition(actions * 0 + bad["observations"], rewards + bad["rewards"], rewards > 1)


@pytest.mark.parametrize("fault", ["observations", "rewards", "actions"])
def test_what_is_not_finite_is_named(fault: str) -> None:
    environment = Broken(fault)
    tasks = Mdps(environment).sample(2, generator(0))

    def act(observations: Tensor, noise: Tensor) -> Tensor:
        return torch.zeros_like(noise) / (0 if fault == "actions" else 1)

    with pytest.raises(NonFiniteError, match=rf"{fault} before adaptation .* 2 of 2 tasks"):
        sample_trajectories(environment, act, tasks, 2, 0, LIKE)


def test_an_observation_is_the_cause_of_the_actions_that_follow_from_it() -> None:
    tasks = Mdps(Broken("observations")).sample(2, generator(0))
    with pytest.raises(NonFiniteError, match=r"observations before adaptation .* from time step 1 on. Look at the env"):
        sample_trajectories(Broken("observations"), lambda observations, _: observations * 2, tasks, 2, 0, LIKE)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("broadcast", "rewards as a tensor [2, 3], of (tasks, trajectories): got torch.float32 [1, 3]"),
        ("column", "got torch.float32 [2, 3, 1]"),
        ("not bool", "terminated as a bool tensor [2, 3], of (tasks, trajectories): got torch.float32 [2, 3]"),
        (
            "nothing",
            "`step` must give a `Transition` of observations, rewards and terminated: got NoneType from Broken",
        ),
        ("features", "observations as a tensor [2, 3, 1], of (tasks, trajectories, features)"),
    ],
)
def test_what_would_be_broadcast_or_misread_is_refused(fault: str, words: str) -> None:
    tasks = Mdps(Broken(fault)).sample(2, generator(0))
    with pytest.raises(EpisodeError, match=re.escape(words)):
        sample_trajectories(Broken(fault), noisy, tasks, 3, 0, LIKE)


def test_three_tensors_in_order_are_a_transition() -> None:
    tasks = Mdps(Broken("plain")).sample(2, generator(0))
    assert sample_trajectories(Broken("plain"), noisy, tasks, 3, 0, LIKE).rewards.shape[:2] == (2, 3)


@pytest.mark.parametrize("wrap", [lambda environment: environment, Revealed])
def test_a_task_sampler_that_gives_no_tensor_is_an_error(wrap: Any) -> None:
    class Nothing(Broken):
        def sample_tasks(self, num_tasks: int, generator: Any) -> Any:
            return None

    with pytest.raises(EpisodeError, match="got NoneType from Nothing"):
        Mdps(wrap(Nothing())).sample(2, generator(0))


def test_no_trajectories_and_no_tasks_are_errors() -> None:
    tasks = Mdps(Navigation()).sample(2, generator(0))
    for trajectories in (0, 2.5):
        with pytest.raises(ValueError, match=f"`trajectories` must be a whole number, at least 1: got {trajectories}"):
            sample_trajectories(Navigation(), noisy, tasks, trajectories, 0, LIKE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one task: got none"):
        sample_trajectories(Navigation(), noisy, type(tasks)(*(leaf[:0] for leaf in tasks)), 3, 0, LIKE)


def test_a_reset_that_gives_no_episodes_is_an_error() -> None:
    class Bare(Broken):
        def reset(self, tasks: Tensor, trajectories: int, generator: Any) -> Any:
            return torch.zeros(len(tasks), trajectories, 1)

    with pytest.raises(EpisodeError, match="`reset` must give episodes and their first observations: got Tensor"):
        sample_trajectories(Bare(), noisy, Mdps(Bare()).sample(2, generator(0)), 3, 0, LIKE)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (2, 1, 1)])
def test_a_task_sampler_of_the_wrong_shape_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        EpisodeError, match=r"one row of parameters for each task, \[2, parameters\]: got .* from Broken"
    ):
        Mdps(Broken(shape=shape)).sample(2, generator(0))
