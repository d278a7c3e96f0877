"""Adaptation of a policy to tasks on episodes that each step samples anew: lines 4 to 9 of Algorithm 3, and test."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

import torch

from fewstep.core.adapt import adaptation_path
from fewstep.core.context import vmapped
from fewstep.core.rules import InEachTask, UpdateRule
from fewstep.core.running import Run, plain
from fewstep.core.trees import index, leaves
from fewstep.core.types import MetaParams, Params
from fewstep.errors import NonFiniteError
from fewstep.learners.stopwatch import Stopwatch
from fewstep.rl.baseline import linear_baseline
from fewstep.rl.episodes import as_trajectories
from fewstep.rl.losses import reinforce_loss
from fewstep.rl.returns import discounted_sums, generalized_advantages, standardized
from fewstep.rl.sampling import sample_trajectories
from fewstep.rl.trajectories import Experience, Mdp, Trajectories

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from fewstep.core.functional import FunctionalModule
    from fewstep.rl.environment import Environment
    from fewstep.rl.episodes import Record
    from fewstep.rl.policy import Distribution


class Rollout(NamedTuple):
    """Where the adaptation to all tasks stands.

    Attributes:
        params: Adapted so far, each leaf `[tasks, ...]`.
        trajectories: Sampled with them.
        experience: The same as a gradient step sees it.
        diverged: Tasks that act as before adaptation, since theirs diverged.
    """

    params: Params
    trajectories: Trajectories
    experience: Experience
    diverged: frozenset[int] = frozenset()


@final
class Rollouts:
    """The inner loop of reinforcement learning, which records no gradient: `Recording` is what is replayed with one.

    Args:
        environment: Where to act.
        policy: From observations to distributions of actions.
        discount: gamma.
        gae_lambda: lambda of the advantages.
        run: How the policy runs while sampling.
    """

    def __init__(
        self,
        environment: Environment,
        policy: FunctionalModule,
        *,
        discount: float,
        gae_lambda: float,
        run: Run = plain,
    ) -> None:
        self._environment, self._policy = environment, policy
        self._discount, self._gae_lambda = discount, gae_lambda
        self._act = run(vmapped(self._action))

    def inner_loss(self, params: Params, experience: Experience) -> Tensor:
        """L_i of equation 4, of one task."""
        return reinforce_loss(self._policy(params, experience.observations), experience)

    def experience(self, sampled: Trajectories) -> Experience:
        """Advantages against a baseline fitted to the same trajectories, standardised for each task."""
        expected = linear_baseline(sampled, discounted_sums(sampled.rewards, self._discount))
        advantages = generalized_advantages(sampled.rewards, expected, self._discount, self._gae_lambda)
        advantages = standardized(advantages, sampled.mask)
        return Experience(sampled.observations, sampled.actions, advantages, sampled.mask)

    @torch.no_grad()
    def along(
        self,
        meta: MetaParams,
        tasks: Mdp,
        steps: int,
        trajectories: int,
        rule: UpdateRule,
        watch: Stopwatch | None = None,
        *,
        tolerant: bool = False,
    ) -> Iterator[Rollout]:
        """Sample, take a step, sample with what came of it, and so on: in all tasks at once (lines 5-8).

        Args:
            meta: Where all tasks begin, and the rule's hyper-parameters.
            tasks: With a `tasks` axis.
            steps: S, inner steps.
            trajectories: Episodes of each task for a step.
            rule: The inner-loop rule, as one task sees it.
            watch: Told what the time goes into, if anybody asks.
            tolerant: Whether a task whose adaptation diverges leaves the others what they are.

        Yields:
            Where the adaptation stands: before the first step and after each.

        Raises:
            NonFiniteError: A task diverged and that is not tolerated, or is no fault of its adaptation.
        """
        watch = watch or Stopwatch()
        support: list[Experience] = []
        path = self._path(meta, len(tasks.seed), support, rule)
        diverged = frozenset[int]()
        for step, params in zip(range(steps + 1), path, strict=False):
            watch.lap("adaptation")
            while True:
                try:
                    acting = _with_some_of(params, meta.model, diverged)
                    sampled = self._sampled(acting, tasks, trajectories, step)
                    break
                except NonFiniteError as error:
                    if not (tolerant and step and error.tasks - diverged):
                        raise
                    diverged |= error.tasks  # and again, from the same streams
            watch.lap("sampling")
            support.append(self.experience(sampled))
            watch.lap("baseline")
            yield Rollout(params, sampled, support[-1], diverged)

    @torch.no_grad()
    def recorded(self, meta: MetaParams, record: Record, steps: int, rule: UpdateRule) -> nn.Module:
        """The policy of one task, after steps that each learn from what is recorded with the policy before it.

        Args:
            meta: As in `along`.
            record: Acts with a policy, and gives back episodes.
            steps: S, inner steps.
            rule: The inner-loop rule.

        Raises:
            EpisodeError: What was recorded are no episodes.
            NonFiniteError: They, or what they lead to, are not finite.
        """
        like = next(iter(meta.model.values()))

        def recorded(params: Params, _: int) -> Trajectories:
            episodes = record(self._policy.as_module(index(params, 0)))
            return as_trajectories(episodes, self._environment, like)

        return self._adapted(meta, recorded, steps, rule)

    @torch.no_grad()
    def simulated(self, meta: MetaParams, task: Mdp, steps: int, trajectories: int, rule: UpdateRule) -> nn.Module:
        """The policy of one task of the environment, after steps that each learn from fresh episodes in it.

        Args:
            meta: As in `along`.
            task: With a `tasks` axis of 1.
            steps: S, inner steps.
            trajectories: Episodes for a step.
            rule: The inner-loop rule.

        Raises:
            NonFiniteError: What was sampled, or what it leads to, is not finite.
        """

        def sampled(params: Params, step: int) -> Trajectories:
            return self._sampled(params, task, trajectories, step)

        return self._adapted(meta, sampled, steps, rule)

    def _adapted(
        self, meta: MetaParams, act: Callable[[Params, int], Trajectories], steps: int, rule: UpdateRule
    ) -> nn.Module:
        support: list[Experience] = []
        path = self._path(meta, 1, support, rule)
        params = next(path)
        for step in range(steps):
            support.append(self.experience(act(params, step)))
            params = next(path)
        policy = self._policy.as_module(index(params, 0))
        if support:
            _check_adapted(policy, support[-1], steps)
        return policy

    def _path(self, meta: MetaParams, tasks: int, support: list[Experience], rule: UpdateRule) -> Iterator[Params]:
        """Walks along `support` while it grows: each step learns from what was sampled with the parameters before."""
        shared = {name: leaf.expand(tasks, *leaf.shape) for name, leaf in meta.model.items()}
        return adaptation_path(self._loss_of_all, MetaParams(shared, meta.rule), support, InEachTask(rule))

    def _loss_of_all(self, params: Params, experience: Experience) -> Tensor:
        """Sum over tasks, each with parameters of its own, so that its gradient is every task's own gradient."""
        return vmapped(self.inner_loss)(params, experience).sum()

    def _sampled(self, params: Params, tasks: Mdp, trajectories: int, step: int) -> Trajectories:
        def act(observations: Tensor, noise: Tensor) -> Tensor:
            return self._act(params, observations, noise)

        like = next(iter(params.values()))
        if step:  # with choices, parameters that are no numbers choose all the same
            _check_finite(params, step)
        return sample_trajectories(self._environment, act, tasks, trajectories, step, like)

    def _action(self, params: Params, observations: Tensor, noise: Tensor) -> Tensor:
        policy: Distribution = self._policy(params, observations)
        return policy.sample(noise)


def _with_some_of(params: Params, start: Params, tasks: frozenset[int]) -> Params:
    """Parameters of all tasks, of some of them those at the start."""
    if not tasks:
        return params
    chosen = sorted(tasks)
    mixed = {name: leaf.clone() for name, leaf in params.items()}
    for name, leaf in mixed.items():
        leaf[chosen] = start[name]
    return mixed


def _check_finite(params: Params, step: int) -> None:
    finite = torch.stack([leaf.isfinite().reshape(len(leaf), -1).all(1) for leaf in params.values()]).all(0)
    if not finite.all():
        bad = [task for task in range(len(finite)) if not finite[task]]
        raise NonFiniteError(
            f"Parameters must be finite: after inner step {step} those of {len(bad)} of {len(finite)} tasks are not. "
            "The policy diverged: lower the inner learning rate, or clip the inner gradient (algorithm.clip).",
            bad,
        )


def _check_adapted(policy: nn.Module, seen: Experience, steps: int) -> None:
    """See that a policy, which nothing has acted with yet, can act where the one before it did."""
    choice: Distribution = policy(seen.observations)
    if not all(leaf.isfinite().all() for leaf in [*policy.parameters(), *leaves(choice)]):
        raise NonFiniteError(
            f"Adaptation must stay finite: after {steps} steps the policy is not. Check the scale of observations and "
            "rewards, take fewer steps, or train with a lower inner learning rate."
        )
