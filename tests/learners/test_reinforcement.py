"""Algorithm 3 on bandits, whose optimum is known, and its derivatives against finite differences."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.core.problems import DTYPE, assert_same, draw, seeded
from torch import nn

from fewstep.core import algorithms
from fewstep.core.over_tasks import sequential, vectorized
from fewstep.core.rng import generator
from fewstep.core.rules import Adam, LearnedSgd, Momentum, Only, Sgd, Slowed
from fewstep.core.running import compiled, traced
from fewstep.core.trees import flatten, index, unflatten
from fewstep.core.trust_region import TrustRegion, curvature_product
from fewstep.errors import FewstepError, NonFiniteError
from fewstep.learners.reinforcement import ReinforcementLearner
from fewstep.learners.stopwatch import Stopwatch
from fewstep.rl.envs.bandit import Bandit
from fewstep.rl.envs.navigation import Navigation
from fewstep.rl.policy import outputs_for, policy_for
from fewstep.rl.sampling import Mdps
from fewstep.rl.trajectories import Mdp

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.algorithms import Algorithm
    from fewstep.rl.environment import Environment, Transition

NAVIGATION = Navigation(horizon=6)


def learner(algorithm: Algorithm, environment: Environment = NAVIGATION, **options: Any) -> ReinforcementLearner:
    def build() -> nn.Module:
        inputs, outputs = environment.observation_size, outputs_for(environment.actions)
        network = nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))
        return policy_for(environment.actions, network)

    return ReinforcementLearner(environment, seeded(build), algorithm, **{"trajectories": 5, **options})


def tasks(count: int = 3, environment: Environment = NAVIGATION) -> Mdp:
    return Mdps(environment).sample(count, generator(0, "tasks"))


def test_one_gradient_step_tells_bandits_apart() -> None:
    """Before it no policy can earn more than 2.5 of 10 on average; after it, 5 where two of the four are found."""
    environment = Bandit(arms=4, horizon=10)
    solver = learner(
        algorithms.maml(Sgd(10.0)),
        environment,
        trajectories=20,
        trust_region=TrustRegion(0.05),
        over_tasks=vectorized(None, traced),
        run=traced,
    )
    for iteration in range(20):
        solver.step(Mdps(environment).sample(40, generator(1, "train", iteration)))
    found = solver.evaluate(tasks(60, environment), steps=2)["return"].mean(0)
    assert found[0] < 3.5
    assert found[1] > 4.5


@pytest.mark.parametrize("rule", [Sgd(0.3), Momentum(0.2), LearnedSgd(0.3), Only("network.2.*", Sgd(0.3))])
def test_meta_gradient_is_exact(rule: Any) -> None:
    """Through two inner steps with trajectories of their own, against central differences in float64."""
    agent = learner(algorithms.maml(rule, steps=2))
    recording, _ = agent._collect(tasks(1), Stopwatch())
    one = index(recording, 0)
    gradient = flatten(torch.func.grad(agent._surrogate)(agent.meta, one))
    start, eps = flatten(agent.meta), 1e-6
    for seed in range(3):
        along = draw(len(start), seed=seed)
        above, below = (agent._surrogate(unflatten(start + s * eps * along, agent.meta), one) for s in (1, -1))
        torch.testing.assert_close(gradient.dot(along), (above - below) / (2 * eps), rtol=1e-6, atol=1e-8)


def test_curvature_products_are_exact() -> None:
    """H v of the divergence after adaptation, against central differences of its gradient in float64."""
    agent = learner(algorithms.maml(Sgd(0.3)))
    recording, _ = agent._collect(tasks(), Stopwatch())
    config = TrustRegion(damping=0.0)
    product = curvature_product(agent._kl, agent.meta, recording, config, vectorized())
    numeric = curvature_product(
        agent._kl,
        agent.meta,
        recording,
        TrustRegion(curvature="finite_differences", damping=0.0, displacement=1e-5),
        sequential(),
    )
    vector = draw(len(flatten(agent.meta)), seed=3)
    torch.testing.assert_close(product(vector), numeric(vector), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("every", [1, 2])
def test_the_divergence_is_least_where_it_was_sampled(every: int) -> None:
    agent = learner(algorithms.maml(Sgd(0.3), steps=2))
    recording, _ = agent._collect(tasks(1), Stopwatch())
    recording = agent._thinned(recording, every)
    gradient, value = torch.func.grad_and_value(agent._kl)(agent.meta, index(recording, 0))
    assert_same(value, torch.zeros((), dtype=DTYPE), atol=1e-12)
    assert_same(flatten(gradient), torch.zeros_like(flatten(gradient)), atol=1e-12)


def test_a_curvature_of_the_first_time_step_alone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    learner(algorithms.maml(Sgd(0.3)), curvature_every=1000)
    assert "see the first alone, with curvature_every = 1000" in caplog.text


def test_the_curvature_sees_some_time_steps_and_the_line_search_all() -> None:
    agent = learner(algorithms.maml(Sgd(0.3)), curvature_every=3)
    recording, _ = agent._collect(tasks(), Stopwatch())
    thinned = agent._thinned(recording, 3)
    for sampled, seen in zip((*recording.support, recording.query), (*thinned.support, thinned.query), strict=True):
        assert_same(seen.observations, sampled.observations[:, :, ::3])
        assert_same(seen.advantages, sampled.advantages[:, :, ::3])
    everything = learner(algorithms.maml(Sgd(0.3)))
    both = [each.step(tasks()) for each in (agent, everything)]
    assert both[0]["return_after"] == both[1]["return_after"]  # the same trajectories
    assert both[0]["objective"] != both[1]["objective"]  # another direction
    assert all(record["accepted"] for record in both)


def test_first_order_differs_from_second_order_and_adapts_alike() -> None:
    one, other = learner(algorithms.maml(Sgd(0.3))), learner(algorithms.fomaml(Sgd(0.3)))
    recordings = [agent._collect(tasks(1), Stopwatch())[0] for agent in (one, other)]
    assert_same(recordings[0], recordings[1])
    gradients = [
        flatten(torch.func.grad(agent._surrogate)(agent.meta, index(r, 0)))
        for agent, r in zip((one, other), recordings, strict=True)
    ]
    assert (gradients[0] - gradients[1]).norm() > 0.01 * gradients[0].norm()


@dataclass(frozen=True)
class NormalizedSgd:
    """Steps of one length along the whole gradient: no elementwise rule."""

    second_order = True

    def selects(self, name: str) -> bool:
        return True

    def hyperparameters(self, params: Any) -> Any:
        return {}

    def init(self, params: Any) -> Any:
        return {}

    def __call__(self, params: Any, grads: Any, state: Any, learned: Any, step: int) -> Any:
        length = flatten(grads).norm()
        return {name: value - 0.1 * grads[name] / length for name, value in params.items()}, state


@pytest.mark.parametrize("rule", [Momentum(0.2), NormalizedSgd(), LearnedSgd(0.2, per="tensor"), Adam(0.01)])
def test_the_replay_of_each_task_arrives_where_its_adaptation_did(rule: Any) -> None:
    agent = learner(algorithms.maml(rule, steps=3))
    *_, last = agent._rollouts.along(agent.meta, tasks(), 3, 5, agent.algorithm.rule, Stopwatch())
    recording, _ = agent._collect(tasks(), Stopwatch())
    for task in range(3):
        assert_same(index(last.params, task), agent._adapted(agent.meta, index(recording, task)))


@pytest.mark.parametrize(
    "options",
    [
        {"over_tasks": sequential()},
        {"over_tasks": vectorized(2)},
        {"over_tasks": vectorized(None, traced), "run": traced},
        pytest.param({"over_tasks": vectorized(2, compiled())}, marks=pytest.mark.slow),
    ],
)
def test_every_way_of_mapping_over_tasks_gives_the_same_update(options: dict[str, Any]) -> None:
    few = TrustRegion(iterations=4)  # rounding grows with every iteration of the conjugate gradient
    one, other = (learner(algorithms.maml(Sgd(0.3)), trust_region=few, **given) for given in ({}, options))
    for agent in (one, other):
        assert agent.step(tasks())["accepted"]
    assert_same(one.meta, other.meta, atol=1e-9, rtol=1e-7)


def test_a_meta_update_reports_what_it_did() -> None:
    agent = learner(algorithms.maml(Sgd(0.3)))
    report = agent.step(tasks())
    assert report["accepted"] == 1
    assert 0 < report["kl"] <= 0.01
    assert report["return_before"] < 0 > report["return_after"]
    assert {name for name in report if name.startswith("seconds_")} == {
        "seconds_sampling",
        "seconds_adaptation",
        "seconds_baseline",
        "seconds_trust_region",
    }


def test_a_rejected_step_changes_nothing_and_training_goes_on() -> None:
    agent = learner(algorithms.maml(Sgd(0.3)), trust_region=TrustRegion(candidates=0))
    before = copy.deepcopy(agent.meta)
    assert agent.step(tasks())["accepted"] == 0
    assert_same(agent.meta, before, atol=0, rtol=0)
    assert agent.iteration == 1


def test_steps_that_are_rejected_again_and_again_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    agent = learner(algorithms.maml(Sgd(0.3)), trust_region=TrustRegion(candidates=0))
    told = list[str]()
    for _ in range(8):
        agent.step(tasks())
        told.append("".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING))
        caplog.clear()
    assert told[4].startswith("5 trust-region steps in a row")
    assert not any(told[:4] + told[5:])


def test_a_policy_acts_on_arrays_as_environments_give_them() -> None:
    policy = learner(algorithms.maml(Sgd(0.3))).adapt(torch.tensor([0.2, 0.3]))
    observation = np.array([0.1, -0.4])
    torch.testing.assert_close(policy(observation).mean, policy(torch.tensor([0.1, -0.4])).mean)


def test_divergence_of_the_inner_loop_is_an_error_and_changes_nothing() -> None:
    agent = learner(algorithms.maml(Sgd(1e200)))
    before = copy.deepcopy(agent.meta)
    with pytest.raises(NonFiniteError, match=r"after inner step 1 .* lower the inner learning rate"):
        agent.step(tasks())
    assert_same(agent.meta, before, atol=0, rtol=0)
    assert agent.iteration == 0


def test_evaluation_continues_past_training_with_shorter_steps() -> None:
    agent = learner(algorithms.maml(Sgd(0.3)), later_steps=0.0)
    moved = [rollout.params for rollout in agent.rollouts(tasks(), steps=2)]
    assert not torch.equal(moved[0]["network.0.weight"], moved[1]["network.0.weight"])
    assert_same(moved[1], moved[2], atol=0, rtol=0)
    assert agent.evaluate(tasks(), steps=4, trajectories=7)["return"].shape == (3, 5)


def test_slowed_leaves_the_first_step_alone() -> None:
    params, grads = {"w": torch.ones(2)}, {"w": torch.ones(2)}
    rule = Slowed(Sgd(0.5), 0.1)
    for step, expected in ((0, 0.5), (1, 0.95)):
        assert_same(rule(params, grads, {}, {}, step)[0], {"w": torch.full((2,), expected)})


def test_adapting_to_one_task_gives_an_ordinary_policy() -> None:
    agent = learner(algorithms.maml(Sgd(0.3)))
    policy = agent.adapt(torch.tensor([0.3, -0.2]), steps=1)
    assert isinstance(policy, nn.Module)
    assert policy(torch.zeros(1, 2, dtype=DTYPE)).mean.shape == (1, 2)
    assert not torch.equal(policy.state_dict()["network.0.weight"], agent.meta.model["network.0.weight"])


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_adapting_plays_as_many_sets_of_episodes_as_there_are_steps(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, reset = list[int](), Navigation.reset

    def counting(self: Navigation, tasks: Tensor, trajectories: int, generator: Any) -> Any:
        begun.append(trajectories)
        return reset(self, tasks, trajectories, generator)

    monkeypatch.setattr(Navigation, "reset", counting)
    agent, task = learner(algorithms.maml(Sgd(0.3))), torch.tensor([0.3, -0.2], dtype=DTYPE)
    policy = agent.adapt(task, steps=steps, seed=3)
    assert len(begun) == steps
    *_, last = agent.rollouts(Mdp(task[None], torch.tensor([3])), steps)
    assert torch.equal(policy.state_dict()["network.0.weight"], last.params["network.0.weight"][0])


@pytest.mark.parametrize(("task", "came"), [(torch.tensor(0.3), r"\[\]"), ([0.3, -0.2], "list"), (None, "NoneType")])
def test_a_task_that_is_no_vector_is_an_error(task: Any, came: str) -> None:
    with pytest.raises(FewstepError, match=rf"A task is a tensor \[parameters\]: got {came}"):
        learner(algorithms.maml(Sgd(0.1))).adapt(task)


def test_a_task_of_another_width_is_an_error() -> None:
    with pytest.raises(FewstepError, match="has 2 numbers: got 3"):
        learner(algorithms.maml(Sgd(0.1))).adapt(torch.zeros(3))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Linear(2, 1), r"must give 2 numbers for each observation.*: got \[1\]"),
        (nn.LSTM(2, 2), "got a tuple"),
        (nn.Linear(3, 2), r"observations of this environment, \[examples, 2\]"),
    ],
)
def test_a_network_that_does_not_fit_the_environment_is_an_error(network: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ReinforcementLearner(NAVIGATION, policy_for(NAVIGATION.actions, network), algorithms.maml(Sgd(0.1)))


def test_a_network_in_the_place_of_a_policy_is_told_how_to_become_one() -> None:
    with pytest.raises(ValueError, match=r"gives Tensor. Of a network, `policy_for"):
        ReinforcementLearner(NAVIGATION, nn.Linear(2, 2), algorithms.maml(Sgd(0.1)))


def test_reptile_is_refused() -> None:
    with pytest.raises(ValueError, match="descend the loss after adaptation"):
        learner(algorithms.reptile(Sgd(0.1)))


def test_batch_normalisation_is_refused_and_dropout_is_off() -> None:
    def policy(layer: nn.Module) -> nn.Module:
        return policy_for(NAVIGATION.actions, nn.Sequential(nn.Linear(2, 4), layer, nn.Linear(4, 2)))

    algorithm = algorithms.maml(Sgd(0.3))
    with pytest.raises(ValueError, match="whatever stands beside it"):
        ReinforcementLearner(NAVIGATION, policy(nn.BatchNorm1d(4)), algorithm)
    agent = ReinforcementLearner(NAVIGATION, policy(nn.Dropout(0.5)), algorithm, trajectories=3)
    assert agent.evaluate(tasks(), 1)["return"].equal(agent.evaluate(tasks(), 1)["return"])


def test_state_goes_on_bit_for_bit() -> None:
    one, other = learner(algorithms.maml(Sgd(0.3))), learner(algorithms.maml(Sgd(0.3)))
    one.step(tasks())
    state = one.state_dict()
    one.step(tasks(4))
    other.load_state_dict(state)
    other.step(tasks(4))
    assert one.iteration == other.iteration == 2
    assert_same(one.meta, other.meta, atol=0, rtol=0)


def test_an_evaluation_that_diverges_has_no_returns_from_there_on() -> None:
    agent = learner(algorithms.maml(Sgd(1e308)))
    returns = agent.evaluate(tasks(), steps=2)["return"]
    assert returns.shape == (3, 3)
    assert returns[:, 0].isfinite().all()
    diverged = returns[:, 1].isnan()
    assert diverged.any()
    assert returns[diverged, 1:].isnan().all()
    assert agent.evaluate(tasks(), steps=2, last_only=True)["return"][:, 0].isnan().equal(diverged)


def test_choices_of_a_policy_that_diverged_are_no_returns() -> None:
    bandit = Bandit(arms=4, horizon=3)
    policy = policy_for(bandit.actions, nn.Linear(1, 4))
    agent = ReinforcementLearner(bandit, policy, algorithms.maml(Sgd(1e39)))  # which float32 cannot hold
    returns = agent.evaluate(tasks(3, bandit), steps=2)["return"]
    assert returns[:, 0].isfinite().all()
    diverged = returns[:, 1].isnan()
    assert diverged.any()
    assert returns[diverged, 2].isnan().all()
    with pytest.raises(NonFiniteError, match=r"after inner step 1 .* lower the inner learning rate"):
        agent.step(tasks(3, bandit))


def test_a_task_whose_adaptation_diverges_leaves_the_others_their_returns() -> None:
    class Silent:
        """Goals to the right are never rewarded: no step leads away from where such a task began."""

        horizon, observation_size, actions = NAVIGATION.horizon, 2, NAVIGATION.actions

        def sample_tasks(self, num_tasks: int, generator: torch.Generator) -> Tensor:
            return NAVIGATION.sample_tasks(num_tasks, generator)

        def reset(self, tasks: Tensor, trajectories: int, generator: torch.Generator) -> Any:
            walks, start = NAVIGATION.reset(tasks, trajectories, generator)
            self._silent = (tasks[:, :1] > 0).expand(-1, trajectories)
            self._walks = walks
            return self, start + torch.randn(start.shape, generator=generator)  # of all tasks together

        def step(self, actions: Tensor) -> Transition:
            transition = self._walks.step(actions)
            return transition._replace(rewards=torch.where(self._silent, 0.0, transition.rewards))

    agent, drawn = learner(algorithms.maml(Sgd(1e308)), Silent()), tasks(6)
    silent = drawn.parameters[:, 0] > 0
    assert silent.any()
    assert not silent.all()
    returns = agent.evaluate(drawn, steps=2)["return"]
    assert returns[:, 0].isfinite().all()
    healthy = learner(algorithms.maml(Sgd(1e-30)), Silent()).evaluate(drawn, steps=2)["return"]
    assert returns[silent].equal(healthy[silent])
    assert returns[~silent, 1].isnan().any()
    assert agent.evaluate(drawn, steps=2, last_only=True)["return"][:, 0].isnan().equal(returns[:, 2].isnan())


def test_a_gradient_that_is_not_finite_is_an_error_and_no_search_without_end() -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.z = nn.Linear(2, 2), nn.Parameter(torch.zeros(1))

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return self.layer(observations) + (self.z**2).sqrt()  # whose derivative at 0 is nan

    network = policy_for(NAVIGATION.actions, Rooted())
    agent = ReinforcementLearner(NAVIGATION, network, algorithms.joint(Sgd(0.1)), trajectories=3)
    before = {name: value.clone() for name, value in agent.meta.model.items()}
    with pytest.raises(NonFiniteError, match="gradient must be finite"):
        agent.step(tasks())
    assert all(torch.equal(before[name], value) for name, value in agent.meta.model.items())
