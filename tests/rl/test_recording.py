"""Adapting to the one Gymnasium environment that is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.core import algorithms
from fewstep.core.rules import Sgd
from fewstep.errors import FewstepError
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.rl.environment import Continuous, Discrete
from fewstep.rl.envs.family import GymnasiumFamily
from fewstep.rl.envs.recording import recorder
from fewstep.rl.policy import Categorical, outputs_for, policy_for

gymnasium = pytest.importorskip("gymnasium")


def learner(name: str) -> ReinforcementLearner:
    def make(task):
        return gymnasium.make(name)

    family = GymnasiumFamily(make, lambda count, stream: torch.zeros(count, 1), horizon=30)
    torch.manual_seed(0)
    network = nn.Linear(family.observation_size, outputs_for(family.actions))
    return ReinforcementLearner(family, policy_for(family.actions, network), algorithms.maml(Sgd(0.1)))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_a_policy_adapts_to_a_single_environment(name: str) -> None:
    agent = learner(name)
    with gymnasium.make(name) as environment:
        policy = agent.adapt(recorder(environment, episodes=3, horizon=30), steps=2)
        again = agent.adapt(recorder(environment, episodes=3, horizon=30), steps=2)
        other = agent.adapt(recorder(environment, episodes=3, horizon=30, seed=1), steps=2)
    weights = [each.state_dict()["network.weight"] for each in (policy, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_episodes_end_where_the_environment_or_the_horizon_ends_them() -> None:
    agent = learner("CartPole-v1")
    with gymnasium.make("CartPole-v1") as environment:
        episodes = recorder(environment, episodes=8, horizon=25)(agent.adapt(lambda policy: [], steps=0))
    lengths = [len(episode.rewards) for episode in episodes]
    assert max(lengths) == 25
    assert min(lengths) < 25
    assert all(episode.observations.shape == (len(episode.rewards), 4) for episode in episodes)


def test_nothing_to_play_is_an_error() -> None:
    with gymnasium.make("CartPole-v1") as environment, pytest.raises(FewstepError, match="got 0 and 10"):
        recorder(environment, episodes=0, horizon=10)


class Drift(gymnasium.Env):
    """Gives its own state, which each step changes in place."""

    observation_space = gymnasium.spaces.Box(-100.0, 100.0, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.state = np.zeros(2)
        return self.state, {}

    def step(self, action):
        self.state += 1
        return self.state, 0.0, False, False, {}


def test_what_was_observed_stays_when_the_environment_goes_on() -> None:
    policy = policy_for(Discrete(2), nn.Linear(2, 2))
    (episode,) = recorder(Drift(), episodes=1, horizon=4)(policy)
    assert episode.observations[:, 0].tolist() == [0, 1, 2, 3]


def test_a_policy_of_ones_own_sees_observations_of_its_own_type() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, observations: torch.Tensor) -> Categorical:
            return Categorical(self.linear(observations))  # refuses float64, as Drift gives it

    (episode,) = recorder(Drift(), episodes=1, horizon=4)(Own())
    assert len(episode.rewards) == 4


@pytest.mark.parametrize(
    ("actions", "network"),
    [(Discrete(2), nn.Linear(3, 2)), (Continuous(2), nn.Linear(2, 2))],
    ids=["features", "actions"],
)
def test_an_environment_that_is_not_the_policys_is_an_error(actions: Any, network: nn.Module) -> None:
    with pytest.raises(FewstepError, match=r"this one has 2 features and Discrete\(count=2\), and the policy gives"):
        recorder(Drift(), episodes=1, horizon=4)(policy_for(actions, network))
