"""Returns, advantages, baseline, distributions and losses: against hand-worked numbers and torch.distributions."""

from __future__ import annotations

import pytest
import torch
from tests.core.problems import DTYPE, assert_same, draw
from torch import distributions, nn

from fewstep.rl import baseline
from fewstep.rl.baseline import linear_baseline
from fewstep.rl.environment import Continuous, Discrete
from fewstep.rl.losses import mean_kl, reinforce_loss, surrogate_loss
from fewstep.rl.policy import (
    Categorical,
    CategoricalPolicy,
    Gaussian,
    GaussianPolicy,
    draw_noise,
    outputs_for,
    policy_for,
)
from fewstep.rl.returns import discounted_sums, generalized_advantages, standardized
from fewstep.rl.trajectories import Experience, Trajectories


def test_discounted_returns_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    assert_same(discounted_sums(rewards, 0.5), torch.tensor([[3.0, 4.0, 4.0]]))


def test_advantages_by_hand_without_a_bootstrap_at_the_horizon() -> None:
    rewards, values = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([10.0, 20.0, 30.0])
    # delta = 1 + 0.5 * 20 - 10, 2 + 0.5 * 30 - 20, 4 + 0 - 30; lambda = 0.5: sums with factor 0.25
    assert_same(generalized_advantages(rewards, values, 0.5, 0.5), torch.tensor([-1.375, -9.5, -26.0]))


def test_advantages_at_lambda_one_are_returns_minus_values() -> None:
    rewards, values = draw(2, 3, 7, seed=0), draw(2, 3, 7, seed=1)
    advantages = generalized_advantages(rewards, values, 0.9, 1.0)
    assert_same(advantages, discounted_sums(rewards, 0.9) - values)


def test_advantages_are_standardised_for_each_task_over_the_actions_taken() -> None:
    advantages = draw(3, 4, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None] + 3
    mask = torch.ones(3, 4, 5, dtype=DTYPE)
    mask[1, :, 3:] = 0
    found = standardized(advantages, mask)
    for task in range(3):
        taken = found[task][mask[task] > 0]
        assert_same(taken.mean(), torch.zeros((), dtype=DTYPE), atol=1e-12)
        assert_same(taken.std(correction=0), torch.ones((), dtype=DTYPE), atol=1e-6)
    assert not found[mask == 0].any()


def trajectories(observations: torch.Tensor, mask: torch.Tensor | None = None) -> Trajectories:
    shape = observations.shape[:-1]
    taken = torch.ones(shape, dtype=observations.dtype) if mask is None else mask
    return Trajectories(observations, torch.zeros(*shape, 1), torch.zeros(shape), taken)


def test_baseline_fits_what_its_features_can_express() -> None:
    observations = draw(2, 5, 30, 2)
    time = torch.arange(30, dtype=DTYPE) / 100
    returns = 3 * observations[..., 0] - observations[..., 1] ** 2 + 2 * time - time**3 + 1
    returns[1] *= -4  # each task has a fit of its own
    assert_same(linear_baseline(trajectories(observations), returns), returns, atol=1e-3)


def test_baseline_does_not_see_what_is_masked() -> None:
    observations, mask = draw(1, 4, 30, 2), torch.ones(1, 4, 30, dtype=DTYPE)
    mask[:, :, 20:] = 0
    returns = draw(1, 4, 30, seed=1) * mask
    changed = observations + 100 * (1 - mask[..., None])
    one, other = (linear_baseline(trajectories(each, mask), returns) for each in (observations, changed))
    assert_same(one, other)
    assert not one[mask == 0].any()


def test_baseline_is_finite_where_features_are_all_alike() -> None:
    constant = torch.ones(1, 2, 3, 4)
    assert linear_baseline(trajectories(constant), torch.ones(1, 2, 3)).isfinite().all()


def test_baseline_fits_where_large_features_repeat_each_other() -> None:
    observations = 10 * draw(3, 20, 200, 2).sign().repeat(1, 1, 1, 30)
    returns = 100 * observations[..., 0] + 1000 * observations[..., 1] + 7
    assert_same(linear_baseline(trajectories(observations), returns), returns, rtol=1e-4, atol=1)


def test_a_task_whose_baseline_cannot_be_solved_leaves_the_others_as_they_are() -> None:
    good = torch.eye(3, dtype=DTYPE)
    hopeless = torch.diag(torch.tensor([1.0, 1.0, -1e6], dtype=DTYPE))
    harder = torch.diag(torch.tensor([1.0, 1.0, -5e-5], dtype=DTYPE))
    moment = torch.ones(3, 3, 1, dtype=DTYPE)
    alone = baseline._ridge_solution(good[None], moment[:1])
    together = baseline._ridge_solution(torch.stack([good, hopeless, harder]), moment)
    assert_same(together[:1], alone)
    assert not together[1].any()
    assert_same(together[2, :2], torch.full((2, 1), 1 / 1.0001, dtype=DTYPE))  # ridge 1e-4, tenfold once


def test_gaussian_agrees_with_torch_distributions() -> None:
    one, other = (Gaussian(draw(4, 3, seed=i), draw(4, 3, seed=i + 2) / 2) for i in range(2))
    ours, theirs = (distributions.Independent(distributions.Normal(d.mean, d.log_std.exp()), 1) for d in (one, other))
    actions = draw(4, 3, seed=9)
    assert_same(one.log_prob(actions), ours.log_prob(actions))
    assert_same(one.kl(other), distributions.kl_divergence(ours, theirs))
    assert_same(one.kl(one), torch.zeros(4, dtype=DTYPE))


def test_categorical_agrees_with_torch_distributions() -> None:
    one, other = (Categorical(draw(4, 3, seed=i)) for i in range(2))
    ours, theirs = (distributions.Categorical(logits=d.logits) for d in (one, other))
    actions = torch.tensor([0, 2, 1, 1])
    assert_same(one.log_prob(actions), ours.log_prob(actions))
    assert_same(one.kl(other), distributions.kl_divergence(ours, theirs))


@pytest.mark.parametrize("actions", [Continuous(2), Discrete(3)])
def test_samples_are_distributed_as_they_should_be(actions: Continuous | Discrete) -> None:
    noise = draw_noise(actions, (20_000,), torch.Generator().manual_seed(0))
    if isinstance(actions, Continuous):
        mean, log_std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0])
        sampled = Gaussian(mean.expand_as(noise), log_std.expand_as(noise)).sample(noise)
        torch.testing.assert_close(sampled.mean(0), mean, atol=0.05, rtol=0)
        torch.testing.assert_close(sampled.std(0).log(), log_std, atol=0.03, rtol=0)
    else:
        logits = torch.tensor([0.0, 1.0, -1.0])
        sampled = Categorical(logits.expand(20_000, 3)).sample(noise)
        torch.testing.assert_close(sampled.bincount(minlength=3) / 20_000, logits.softmax(0), atol=0.02, rtol=0)


def test_categorical_never_samples_past_the_last_action() -> None:
    logits = torch.zeros(7)
    assert Categorical(logits).sample(torch.tensor(1 - 1e-7)) == 6


def test_policies_wrap_any_network_for_any_number_of_leading_axes() -> None:
    for actions, kind in ((Continuous(2), GaussianPolicy), (Discrete(5), CategoricalPolicy)):
        policy = policy_for(actions, nn.Linear(3, outputs_for(actions)))
        assert isinstance(policy, kind)
        found = policy(torch.zeros(4, 6, 3))
        assert {leaf.shape[:2] for leaf in found} == {(4, 6)}
        assert_same(policy(torch.ones(3)).mode, policy(torch.ones(1, 3)).mode[0])  # a single observation


def test_a_distributions_mode_is_most_probable_and_it_can_draw_for_itself() -> None:
    for each in (Gaussian(torch.tensor([0.5, -1.0]), torch.zeros(2)), Categorical(torch.tensor([0.0, 2.0, 1.0]))):
        torch.manual_seed(0)
        drawn = [each.sample() for _ in range(50)]
        assert all(each.log_prob(each.mode) >= each.log_prob(action) for action in drawn)
        assert len({tuple(action.flatten().tolist()) for action in drawn}) > 1


def test_standard_deviation_is_one_at_first_and_bounded_below() -> None:
    policy = GaussianPolicy(nn.Linear(3, 2), 2)
    assert_same(policy(torch.zeros(1, 3)).log_std.exp(), torch.ones(1, 2))
    with torch.no_grad():
        policy.log_std.fill_(-100)
    assert_same(policy(torch.zeros(1, 3)).log_std.exp(), torch.full((1, 2), 1e-6), rtol=1e-4)


def test_losses_by_hand() -> None:
    """Two actions of probability 1/4 and 3/4, one masked; the behaviour policy is uniform."""
    quarter = torch.tensor(0.25, dtype=DTYPE)
    policy = Categorical(torch.stack([quarter, 3 * quarter]).log().expand(1, 3, 2))
    uniform = Categorical(torch.zeros(1, 3, 2, dtype=DTYPE))
    advantages, mask = torch.tensor([[2.0, -1.0, 50.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    experience = Experience(torch.zeros(1, 3, 1), torch.tensor([[0, 1, 1]]), advantages, mask)
    assert_same(reinforce_loss(policy, experience), -(2 * quarter.log() - (3 * quarter).log()) / 2)
    assert_same(surrogate_loss(policy, uniform, experience), -(2 * 2 * quarter - 6 * quarter) / 2)
    assert_same(mean_kl(uniform, policy, mask), -((2 * quarter).log() + (6 * quarter).log()) / 2)


def test_surrogate_has_the_gradient_of_reinforce_where_it_was_sampled() -> None:
    mean, log_std = draw(2, 5, 3, seed=1), draw(2, 5, 3, seed=2) / 3
    experience = Experience(draw(2, 5, 1), draw(2, 5, 3, seed=3), draw(2, 5, seed=4), torch.ones(2, 5, dtype=DTYPE))
    behaviour = Gaussian(mean, log_std)
    gradients = [
        torch.func.grad(lambda m, l=loss: l(Gaussian(m, log_std)))(mean)
        for loss in (lambda d: reinforce_loss(d, experience), lambda d: surrogate_loss(d, behaviour, experience))
    ]
    assert_same(*gradients)
