"""Policies that adapt to episodes which the learner did not sample itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.core import algorithms
from fewstep.core.rules import Momentum, Sgd
from fewstep.errors import EpisodeError, NonFiniteError
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.rl.envs.bandit import Bandit
from fewstep.rl.envs.navigation import Navigation
from fewstep.rl.episodes import Episode, as_trajectories
from fewstep.rl.policy import outputs_for, policy_for
from fewstep.rl.trajectories import Mdp

if TYPE_CHECKING:
    from fewstep.rl.environment import Environment

NAVIGATION = Navigation(horizon=6)


def learner(environment: Environment = NAVIGATION, **options: Any) -> ReinforcementLearner:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(environment.observation_size, 4), nn.Tanh())
    network.append(nn.Linear(4, outputs_for(environment.actions)))
    algorithm = algorithms.maml(Momentum(0.3, 0.9), steps=2)
    return ReinforcementLearner(
        environment, policy_for(environment.actions, network), algorithm, trajectories=5, **options
    )


def episode(time: int = 4) -> Episode:
    return Episode(torch.rand(time, 2), torch.rand(time, 2), torch.rand(time))


def test_what_was_recorded_teaches_as_what_is_sampled() -> None:
    agent, task = learner(later_steps=0.5), torch.tensor([0.3, -0.2])
    rollouts = list(agent.rollouts(Mdp(task[None], torch.tensor([0])), steps=2))
    policies = list[nn.Module]()

    def record(policy: nn.Module) -> list[Episode]:
        sampled = rollouts[len(policies)].trajectories
        policies.append(policy)
        parts = (sampled.observations[0], sampled.actions[0], sampled.rewards[0])
        return [Episode(*(part.numpy() for part in each)) for each in zip(*parts, strict=True)]  # arrays will do

    adapted = agent.adapt(record, steps=2)
    assert len(policies) == 2  # none after the last step, which nothing would learn from
    for policy, rollout in zip([*policies, adapted], rollouts, strict=True):
        for name, values in policy.state_dict().items():
            torch.testing.assert_close(values, rollout.params[name][0])


def test_no_step_gives_the_policy_that_all_tasks_begin_from() -> None:
    agent = learner()
    policy = agent.adapt(lambda policy: [], steps=0)
    assert all(torch.equal(values, agent.meta.model[name]) for name, values in policy.state_dict().items())


def test_episodes_that_end_sooner_are_masked() -> None:
    short, long = episode(2), episode(5)
    mean = (short.rewards.sum() + long.rewards.sum()) / 2
    turned = Episode(*(part.numpy()[::-1] for part in short))  # views of arrays will do
    together = as_trajectories([turned, long], NAVIGATION, torch.zeros((), dtype=torch.float64))
    assert together.mask[0].tolist() == [[1, 1, 0, 0, 0], [1] * 5]
    assert together.observations.shape == (1, 2, 5, 2)
    assert together.actions.dtype == torch.float64
    torch.testing.assert_close(together.average_return()[0], mean.double())


def test_indices_of_choices_may_be_whole_numbers_of_any_kind() -> None:
    bandit = Bandit(arms=4, horizon=3)
    agent = learner(bandit)

    def record(policy: nn.Module) -> list[Episode]:
        actions = policy(np.ones((3, 1))).sample().to(torch.int32)
        return [Episode(torch.ones(3, 1), actions, (actions == 2).double())] * 2

    assert agent.adapt(record)(torch.ones(1)).logits.shape == (4,)


@pytest.mark.parametrize("actions", [[0, 1, 4], [0, -1, 2], [0.0, 1.5, 2.0]])
def test_choices_that_there_are_none_of_are_an_error(actions: list[float]) -> None:
    recorded = [Episode(torch.ones(3, 1), torch.tensor(actions), torch.rand(3))]
    with pytest.raises(EpisodeError, match=r"whole numbers below 4: got \[0"):
        learner(Bandit(arms=4, horizon=3)).adapt(lambda policy: recorded)


@pytest.mark.parametrize("lr", [1e20, 1e39])
def test_a_policy_that_diverges_on_what_was_recorded_is_an_error(lr: float) -> None:
    agent = ReinforcementLearner(NAVIGATION, policy_for(NAVIGATION.actions, nn.Linear(2, 2)), algorithms.maml(Sgd(lr)))
    with pytest.raises(NonFiniteError, match="after 2 steps the policy is not"):
        agent.adapt(lambda policy: [episode()._replace(observations=1e20 * torch.rand(4, 2))], steps=2)


@pytest.mark.parametrize(
    ("recorded", "error", "said"),
    [
        ([], EpisodeError, r"list of at least one .*Episode`: got none"),
        (None, EpisodeError, "got NoneType"),
        (episode(), EpisodeError, "got Episode"),
        ([episode(), (torch.rand(3, 2), torch.rand(3))], EpisodeError, "got tuple for episode 1"),
        ([episode()._replace(observations=torch.rand(5, 2))], EpisodeError, r"Leave out the last observation"),
        ([episode()._replace(actions=torch.rand(4))], EpisodeError, r"actions must be \[4, 2\].*got \[4\]"),
        ([episode()._replace(rewards=torch.tensor(1.0))], EpisodeError, "at least one time step"),
        ([episode()._replace(rewards=["much"])], EpisodeError, "got list in episode 0"),
        ([episode()._replace(rewards=torch.full((4,), torch.inf))], NonFiniteError, "Rewards must be finite"),
    ],
)
def test_what_are_no_episodes_is_an_error(recorded: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        learner().adapt(lambda policy: recorded)
