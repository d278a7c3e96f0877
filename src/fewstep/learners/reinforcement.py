"""Algorithm 3: meta-learning for reinforcement learning."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor, nn

from fewstep.core.adapt import adapt
from fewstep.core.algorithms import expect_algorithm
from fewstep.core.context import vmapped
from fewstep.core.expect import expect_number, expect_steps, expect_whole
from fewstep.core.functional import FunctionalModule, expect_module
from fewstep.core.meta import QueryGradient
from fewstep.core.normalization import BATCH_NORMS
from fewstep.core.over_tasks import vectorized
from fewstep.core.rng import generator
from fewstep.core.rules import Slowed, UpdateRule, check_rule, selected
from fewstep.core.running import Run, plain
from fewstep.core.trees import detach, leaves
from fewstep.core.trust_region import Divergence, TrustRegion, TrustRegionReport, trust_region_step
from fewstep.core.types import MetaParams, OverTasks, Params
from fewstep.errors import FewstepError, NonFiniteError
from fewstep.learners.checks import check_state
from fewstep.learners.learner import take_over
from fewstep.learners.outer_loop import snapshot
from fewstep.learners.rollouts import Rollout, Rollouts
from fewstep.learners.stopwatch import Stopwatch
from fewstep.rl.losses import mean_kl, surrogate_loss
from fewstep.rl.trajectories import Experience, Mdp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fewstep.core.algorithms import Algorithm
    from fewstep.rl.environment import Environment
    from fewstep.rl.episodes import Record

log = logging.getLogger(__name__)

_MANY = 5
"""Meta-updates in a row that come to nothing, after which it is no accident."""


class Recording(NamedTuple):
    """All that a meta-update needs to know of a task's adaptation.

    Attributes:
        support: Experience that each inner step learned from.
        query: Experience of the adapted policy.
        behaviour: The adapted policy's distributions at the observations of `query`.
    """

    support: tuple[Experience, ...]
    query: Experience
    behaviour: Any


@final
class ReinforcementLearner:
    """MAML for reinforcement learning (Algorithm 3): REINFORCE inside, a trust-region step outside.

    Sampling depends on the parameters, and it cannot be differentiated. So an iteration has two parts. `_collect`
    adapts to every task with fresh trajectories for each step (`Rollouts`), and writes down what it sampled; it
    records no gradient. `_adapted` then *replays* that adaptation on what was written down, as a function of the
    meta-parameters: the trajectories are constants, the inner gradients are not. The replay alone is what the
    meta-update differentiates, and evaluates at other meta-parameters. Both walk the same
    `core.adapt.adaptation_path`.

    Args:
        environment: The distribution of tasks.
        policy: A module from observations `[..., features]` to a `Distribution`: `policy_for(actions, network)`, say.
            It is copied, not changed. Every operation in it needs a vmap rule.
        algorithm: Inner rule and steps, for instance `maml(Sgd(0.1))`. Zero steps train one policy for all tasks.
        trajectories: Episodes of each task that a step learns from, and the meta-update.
        discount: gamma.
        gae_lambda: lambda of the advantages.
        trust_region: How the meta-update is found.
        curvature_every: Products with the curvature see every so many-th time step alone.
        later_steps: Factor on inner steps after the first, at test.
        over_tasks: How the map over tasks is executed; by default all at once.
        run: How the policy runs while sampling, for instance `traced`; its results must stay valid after the next call.
        device: Where parameters and computation live.

    Raises:
        ValueError: The policy cannot be meta-learned as it is or has batch normalisation, the rule's patterns do not
            fit it, the algorithm descends something else than the loss after adaptation, or a number is out of bounds.
    """

    def __init__(
        self,
        environment: Environment,
        policy: nn.Module,
        algorithm: Algorithm,
        *,
        trajectories: int = 20,
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        trust_region: TrustRegion | None = None,
        curvature_every: int = 1,
        later_steps: float = 1.0,
        over_tasks: OverTasks | None = None,
        run: Run = plain,
        device: torch.device | str = "cpu",
    ) -> None:
        expect_algorithm(algorithm)
        expect_whole("trajectories", trajectories)
        expect_number("discount", discount, 0, 1)
        expect_number("gae_lambda", gae_lambda, 0, 1)
        expect_number("later_steps", later_steps)
        expect_whole("curvature_every", curvature_every)
        if curvature_every >= environment.horizon > 1:
            log.warning(
                "Of each episode's %d time steps products with the curvature see the first alone, with curvature_every "
                "= %d: steps may go too far. Lower it (meta.curvature_every)",
                environment.horizon,
                curvature_every,
            )
        if algorithm.gradient is not QueryGradient:
            raise ValueError(
                "Reinforcement learning takes algorithms that descend the loss after adaptation, such as maml, fomaml, "
                f"anil, meta_sgd and joint: got one with gradient={algorithm.gradient!r}. Use one of these."
            )
        expect_module(policy)
        if any(isinstance(part, BATCH_NORMS) for part in policy.modules()):
            raise ValueError(
                "A policy must act on an observation in the same way whatever stands beside it: got one with batch "
                "normalisation, whose statistics differ between sampling and the meta-update. Use none, or LayerNorm."
            )
        self.policy = FunctionalModule(policy).to(device)
        self.policy.train(False)  # what was sampled and what is replayed must not differ by dropout
        check_rule(algorithm.rule, self.policy.params)
        expect_whole("environment.horizon", environment.horizon)
        self._try(environment.observation_size)
        self.environment, self.algorithm = environment, algorithm
        self.iteration = self._rejected = 0
        params = self.policy.params
        self.meta = MetaParams(params, algorithm.rule.hyperparameters(selected(params, algorithm.rule)))
        self._rollouts = Rollouts(environment, self.policy, discount=discount, gae_lambda=gae_lambda, run=run)
        self._trajectories = trajectories
        self._trust_region, self._curvature_every = trust_region or TrustRegion(), curvature_every
        self._test_rule: UpdateRule = algorithm.rule if later_steps == 1 else Slowed(algorithm.rule, later_steps)
        self._over_tasks = over_tasks or vectorized()
        self._each_policy = vmapped(self.policy)
        self._kl = Divergence(self._adapted_policy, _kl_from_behaviour)

    def __repr__(self) -> str:
        """In a line: what is learned, and how far it is."""
        size = sum(leaf.numel() for leaf in leaves(self.meta))
        return f"ReinforcementLearner of {size:,} meta-parameters after {self.iteration:,} iterations; {self.algorithm}"

    def _try(self, features: int) -> None:
        like = next(iter(self.policy.params.values()))
        try:
            came = self.policy.check_pure(like.new_zeros(2, features))
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"A policy must take observations of this environment, [examples, {features}]: {error}"
            ) from error
        if not hasattr(came, "sample"):
            raise ValueError(
                "A policy gives distributions of actions, `fewstep.rl.policy.Distribution`: got one that gives "
                f"{type(came).__name__}. Of a network, `policy_for(environment.actions, network)` makes a policy."
            )

    def step(self, tasks: Mdp) -> dict[str, float]:
        """One meta-update (Algorithm 3, lines 3-10).

        Args:
            tasks: A meta-batch, from `Mdps.sample`.

        Returns:
            Average return before and after adaptation, what came of the trust-region step, and seconds by activity.

        Raises:
            NonFiniteError: Something that was sampled, or a gradient, is not finite; nothing was updated.
        """
        watch = Stopwatch()
        recording, returns = self._collect(tasks, watch)  # lines 4-9
        thinned = self._thinned(recording, self._curvature_every)
        self.meta, report = trust_region_step(  # line 10
            self._surrogate, self._kl, self.meta, recording, self._trust_region, self._over_tasks, thinned
        )
        watch.lap("trust_region")
        self._check(report)
        self.iteration += 1
        return {
            "return_before": returns[0].mean().item(),
            "return_after": returns[-1].mean().item(),
            "objective": report.objective_after,
            "kl": report.divergence,
            "accepted": float(report.accepted),
            "step_fraction": report.step_fraction,
            **{f"seconds_{activity}": seconds for activity, seconds in watch.seconds.items()},
        }

    def _collect(self, tasks: Mdp, watch: Stopwatch) -> tuple[Recording, list[Tensor]]:
        """Adapt to every task and sample with what comes of it; what was sampled, and the average returns."""
        steps = self.algorithm.steps
        path = list(self._rollouts.along(self.meta, tasks, steps, self._trajectories, self.algorithm.rule, watch))
        *support, query = [rollout.experience for rollout in path]
        behaviour = self._each_policy(path[-1].params, query.observations)
        recording = Recording(tuple(support), query, behaviour)
        return detach(recording), [rollout.trajectories.average_return() for rollout in path]

    def _thinned(self, recording: Recording, every: int) -> Recording:
        """Less of each task, with the behaviour of what adapts to that, where the divergence is then least, too."""
        if every == 1:
            return recording
        support = tuple(experience.thinned(every) for experience in recording.support)
        less = recording._replace(support=support, query=recording.query.thinned(every))
        return less._replace(behaviour=detach(self._over_tasks(self._adapted_policy)(self.meta, less)))

    def _adapted(self, meta: MetaParams, recording: Recording) -> Params:
        """theta'_i as a function of the meta-parameters: the adaptation to one task, replayed (lines 6-7)."""
        return adapt(self._rollouts.inner_loss, meta, recording.support, self.algorithm.rule)

    def _adapted_policy(self, meta: MetaParams, recording: Recording) -> Any:
        """What it does at the observations of the query trajectories."""
        return self.policy(self._adapted(meta, recording), recording.query.observations)

    def _surrogate(self, meta: MetaParams, recording: Recording) -> Tensor:
        """What the meta-update lowers: the surrogate loss of the adapted policy on its own trajectories."""
        return surrogate_loss(self._adapted_policy(meta, recording), recording.behaviour, recording.query)

    def rollouts(self, tasks: Mdp, steps: int, trajectories: int | None = None) -> Iterator[Rollout]:
        """Adapt to tasks as at test, with fresh trajectories for every step; keeps no graph.

        Args:
            tasks: With a `tasks` axis.
            steps: S, inner steps; any number, whatever was trained with.
            trajectories: Episodes of each task for a step; by default as many as in training.

        Yields:
            Where the adaptation stands: before the first step and after each.

        Raises:
            ValueError: `steps` is negative.
            NonFiniteError: The adaptation diverged.
        """
        yield from self._at_test(tasks, steps, trajectories)

    def evaluate(
        self, tasks: Mdp, steps: int, *, trajectories: int | None = None, last_only: bool = False
    ) -> dict[str, Tensor]:
        """Average returns along the adaptation to each task; takes the arguments of `rollouts`.

        Returns:
            "return", `[tasks, S + 1]`: without discount, of the trajectories sampled after each step; nan from the
            step on after which the adaptation diverged. With `last_only`, `[tasks, 1]`.

        Raises:
            NonFiniteError: What is sampled is not finite before any step, which is no fault of the adaptation.
        """
        returns = [_returns(rollout) for rollout in self._at_test(tasks, steps, trajectories, tolerant=True)]
        return {"return": torch.stack(returns[-1:] if last_only else returns, dim=1)}

    def _at_test(
        self, tasks: Mdp, steps: int, trajectories: int | None, *, tolerant: bool = False
    ) -> Iterator[Rollout]:
        asked = self._trajectories if trajectories is None else trajectories
        return self._rollouts.along(self.meta, tasks, expect_steps(steps), asked, self._test_rule, tolerant=tolerant)

    def adapt(self, task: Tensor | Record, steps: int | None = None, seed: int = 0) -> nn.Module:
        """Adapt to one task.

        Args:
            task: Its parameters `[parameters]`, as the environment knows it; or a function that acts in it: it is
                given the policy before each step, and gives back episodes for the step to learn from.
            steps: Inner steps; by default as many as in training, one where those are none.
            seed: Of the trajectories that it learns from, where they are of the environment.

        Returns:
            The policy, an ordinary module from observations `[..., features]` to a `Distribution`.

        Raises:
            FewstepError: The task is neither, or what was recorded are no episodes.
            NonFiniteError: What was recorded is not finite, or the adaptation diverged.
        """
        steps = max(self.algorithm.steps, 1) if steps is None else expect_steps(steps)
        if callable(task):
            return self._rollouts.recorded(self.meta, task, steps, self._test_rule)
        came: Any = task
        if not isinstance(came, Tensor) or came.dim() != 1:
            what = list(came.shape) if isinstance(came, Tensor) else type(came).__name__
            raise FewstepError(
                f"A task is a tensor [parameters]: got {what}. Give one task, a single number as "
                "`torch.tensor([0.3])`, or a function that acts with a policy and gives back episodes."
            )
        (width,) = self.environment.sample_tasks(1, generator(seed)).shape[1:]
        if len(came) != width:
            raise FewstepError(f"A task of this environment has {width} numbers: got {len(came)}.")
        mdp = Mdp(task[None], torch.tensor([seed]))
        return self._rollouts.simulated(self.meta, mdp, steps, self._trajectories, self._test_rule)

    def constants(self) -> str:
        """Fingerprint of what the policy holds beside its learnable parameters."""
        return self.policy.constants()

    def load_meta(self, meta: MetaParams) -> None:
        """Take over meta-parameters.

        Raises:
            ValueError: They belong to another policy or rule.
        """
        take_over(self.meta, meta)

    def state_dict(self) -> dict[str, Any]:
        """Meta-parameters and the number of updates: a trust-region step remembers nothing else."""
        return {"iteration": self.iteration, "meta": snapshot(self.meta._asdict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: It belongs to another policy or rule.
        """
        check_state(state, "iteration", "meta")
        self.load_meta(MetaParams(**state["meta"]))
        self.iteration = state["iteration"]

    def _check(self, report: TrustRegionReport) -> None:
        """A step that is not accepted is no fault: the parameters stay, and new trajectories come."""
        if not (math.isfinite(report.objective_before) and math.isfinite(report.slope)):
            raise NonFiniteError(
                f"The surrogate loss and its gradient must be finite: iteration {self.iteration + 1} gave "
                f"{report.objective_before} and a norm of {report.slope}. Lower the inner learning rate, or clip the "
                "inner gradient (algorithm.clip), if the inner loop diverges; else look at the policy's own operations."
            )
        self._rejected = 0 if report.accepted else self._rejected + 1
        if self._rejected:
            log.info("Iteration %d: no candidate of the line search improved; nothing changed", self.iteration + 1)
        if self._rejected == _MANY:
            log.warning(
                "%d trust-region steps in a row found nothing better: so nothing is learned. Are observations or "
                "rewards far from 1 in scale, or do all episodes have the same return?",
                _MANY,
            )


def _kl_from_behaviour(policy: Any, recording: Recording) -> Tensor:
    """What bounds the meta-update: how far the adapted policy is from the one that sampled."""
    return mean_kl(recording.behaviour, policy, recording.query.mask)


def _returns(rollout: Rollout) -> Tensor:
    """Average return of each task `[tasks]`; nan where the adaptation diverged."""
    returns = rollout.trajectories.average_return().cpu()
    returns[sorted(rollout.diverged)] = math.nan
    return returns
