"""Algorithm 2: meta-learning for few-shot supervised learning."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias, final

import torch
from torch import Tensor, nn

from fewstep.core.adapt import adapt, adaptation_path
from fewstep.core.algorithms import expect_algorithm
from fewstep.core.expect import expect_positive, expect_steps
from fewstep.core.functional import FunctionalModule
from fewstep.core.layers import by_layer, movement
from fewstep.core.meta import meta_gradient, same_size_groups
from fewstep.core.normalization import Statistics, policy_followed
from fewstep.core.over_tasks import auto
from fewstep.core.rules import UpdateRule, check_rule, selected
from fewstep.core.running import Run, plain
from fewstep.core.trees import concatenate, index, leaves, length, signature, to_device, tree_map
from fewstep.core.types import Batch, MetaParams, OverTasks, Params, Task
from fewstep.learners.adapted import Adapted
from fewstep.learners.checks import (
    advising_first_order,
    check_examples,
    check_functions,
    check_learned,
    check_model,
    check_numbers,
    check_state,
    diverged,
    non_finite,
    tell_of_sizes,
    tell_of_tied,
    tell_of_unreached,
)
from fewstep.learners.learner import check_fits, take_over
from fewstep.learners.outer_loop import OptimizerFactory, OuterLoop, ScheduleFactory, snapshot

if TYPE_CHECKING:
    from fewstep.core.algorithms import Algorithm
    from fewstep.names import Normalization

log = logging.getLogger(__name__)

_KINDS = 16
"""Of examples that are tried with module and loss before they are learned from."""

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""Scalar loss of a module's outputs and the targets."""


@final
class SupervisedLearner:
    """MAML for few-shot supervised learning (Algorithm 2), and every relative of it in `core.algorithms`.

    Args:
        module: Any `nn.Module`; it is copied, not changed.
        loss: Scalar loss of outputs and targets of one batch.
        algorithm: Inner rule, inner steps and outer gradient, for instance `maml(Sgd(0.01), steps=1)`.
        optimizer: Makes the meta-optimizer over the leaves of the meta-parameters: the model's, in the order of its
            `named_parameters`, then what the rule learns, of which groups with rates of their own may be made.
        schedule: Makes a learning-rate schedule of it, stepped once per meta-update.
        normalization: Policy for batch normalisation.
        metrics: More functions of outputs and targets to evaluate, by name; "loss" is always there.
        loss_scale: Factor on the loss inside and outside; reported losses are without it.
        clip_value: Bound on every element of the meta-gradient (the paper's MiniImagenet: 10).
        clip_norm: Bound on the norm of the meta-gradient.
        over_tasks: How the map over tasks is executed.
        run: How the meta-gradient as a whole runs: small networks are fastest `compiled()`.
        device: Where parameters and computation live.

    Raises:
        ValueError: The module cannot be meta-learned as it is, the rule's patterns do not fit it, or an argument is
            not of its kind.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        algorithm: Algorithm,
        *,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
        normalization: Normalization = "transductive",
        metrics: Mapping[str, Loss] | None = None,
        loss_scale: float = 1.0,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        over_tasks: OverTasks | None = None,
        run: Run = plain,
        device: torch.device | str = "cpu",
    ) -> None:
        expect_algorithm(algorithm)
        check_functions(loss=loss, optimizer=optimizer, schedule=schedule, over_tasks=over_tasks, run=run)
        expect_positive("loss_scale", loss_scale)
        check_numbers(clip_value=clip_value, clip_norm=clip_norm)
        second_order = algorithm.rule.second_order and algorithm.steps > 0
        self.module = FunctionalModule(module, normalization, second_order=second_order).to(device)
        check_rule(algorithm.rule, self.module.params)
        self.algorithm = algorithm
        self.normalization: Normalization = normalization
        self.device = torch.device(device)
        self.iteration = 0
        params = {name: value.clone() for name, value in self.module.params.items()}
        self.meta = MetaParams(params, algorithm.rule.hyperparameters(selected(params, algorithm.rule)))
        self._loss, self._loss_scale = loss, loss_scale
        self._metrics: dict[str, Loss] = {"loss": loss, **(metrics or {})}
        if self._metrics["loss"] is not loss:
            raise ValueError("`metrics` has the loss already, as 'loss': give this one another name.")
        self._clip_value, self._clip_norm = clip_value, clip_norm
        self._over_tasks = over_tasks or auto()
        self._task_gradient = algorithm.gradient(self._support_loss, self._query_loss, algorithm.rule, algorithm.steps)
        self._meta_gradient = run(self._mean_gradient)
        self._curves: dict[tuple[int, Normalization, UpdateRule, bool], Callable[[MetaParams, Task], Any]] = {}
        self._movements: dict[int, Callable[[MetaParams, Task], Any]] = {}
        self._leaves = leaves(self.meta)
        self._outer = OuterLoop(self._leaves, optimizer, schedule)
        self._axes: int | None = None
        self._sizes, self._kinds = set[Any](), set[Any]()
        tell_of_tied(self.module, algorithm.rule)

    def __repr__(self) -> str:
        """In a line: what is learned, and how far it is."""
        size = sum(leaf.numel() for leaf in self._leaves)
        return f"SupervisedLearner of {size:,} meta-parameters after {self.iteration:,} iterations; {self.algorithm}"

    @torch.no_grad()  # gradients are taken by functions; tasks that require them would keep the graph
    def step(self, tasks: Task | Sequence[Task]) -> dict[str, float]:
        """One meta-update (Algorithm 2, lines 4-10): theta <- theta - beta grad sum_i L_i(theta'_i).

        Args:
            tasks: A meta-batch: a `Task` with a leading `tasks` axis, or a list of them, one for each size.

        Returns:
            Mean query loss after adaptation, and the norm of the meta-gradient.

        Raises:
            NonFiniteError: A loss or gradient is not finite; the meta-parameters stay as they were.
        """
        tasks = self._prepared(tasks)
        self.module.train()
        with advising_first_order(self.algorithm):
            gradients, norm, mean_loss = self._meta_gradient(self.meta, tasks)  # lines 5-9
        loss, gradient_norm = mean_loss.item(), norm.item()
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise non_finite(
                self._support_loss, self._task_gradient, self.meta, tasks, self._over_tasks, self.iteration + 1
            )
        if self.iteration == 0 and gradient_norm == 0 and self._leaves:
            log.warning(
                "The first meta-gradient is zero: nothing is learned if the loss does not depend on the parameters"
            )
        self._meta_update(gradients, norm)  # line 10
        return {"query_loss": loss / self._loss_scale, "gradient_norm": gradient_norm}

    def adapt(
        self,
        support: Batch,
        steps: int | None = None,
        normalization: Normalization | None = None,
        *,
        start: Adapted | None = None,
    ) -> Adapted:
        """Adapt to one task.

        Args:
            support: Labelled examples `[examples, ...]`, without a `tasks` axis.
            steps: Inner steps; by default as many as in training, one where those are none.
            normalization: Policy for the new inputs, by default the learner's own. With "support" a prediction does
                not depend on the inputs beside it, and `as_module` has statistics to keep.
            start: What was adapted to this task before, to go on from; by default the initialisation. The inner rule
                begins anew.

        Returns:
            The adapted model, to be called on new inputs.

        Raises:
            ValueError: `steps` is negative, the policy is not one that this learner can follow, the module changes its
                own state, module and loss do not fit the data, or the start is of another model.
            NonFiniteError: Adaptation diverges, or there is infinity or nan among the examples.
        """
        rule, steps = self.algorithm.rule, max(self.algorithm.steps, 1) if steps is None else expect_steps(steps)
        policy = policy_followed(normalization, self.normalization)
        support = to_device(support, self.device)
        self._check(support)
        self.module.train(False)
        meta = self.meta if start is None else self.meta._replace(model=to_device(start.params, self.device))
        check_fits(self.meta, meta)
        with torch.no_grad():
            adapted = adapt(self._support_loss, meta, repeat(support, steps), rule)
            params = {name: value.clone() for name, value in adapted.items()}  # training may go on meanwhile
            if params and not torch.stack([value.isfinite().all() for value in params.values()]).all():
                raise diverged(support, steps)
            return Adapted(params, self._query_statistics(params, support, policy), self._adapted_module)

    def evaluate(
        self,
        tasks: Task | Sequence[Task],
        steps: int,
        *,
        normalization: Normalization | None = None,
        rule: UpdateRule | None = None,
        last_only: bool = False,
    ) -> dict[str, Tensor]:
        """Query metrics along the adaptation to each task; keeps no graph.

        Args:
            tasks: As for `step`.
            steps: S, inner steps; any number, whatever was trained with.
            normalization: Policy for the query sets, by default the learner's own.
            rule: Inner-loop rule, by default the algorithm's; `Only(..., learner.algorithm.rule)` adapts a part.
            last_only: Whether the query set is judged after the last step alone.

        Returns:
            For each metric, `[tasks, S + 1]`: before the first step and after each. Or `[tasks, 1]`.

        Raises:
            ValueError: `steps` is negative, the policy is not one that this learner can follow, or the rule's
                patterns do not fit its parameters.
        """
        policy = policy_followed(normalization, self.normalization)
        key = (expect_steps(steps), policy, rule or self.algorithm.rule, last_only)
        if key not in self._curves:
            check_rule(key[2], self.module.params)
            check_learned(key[2], self.meta)
            self._curves[key] = self._curve(*key)
        curves = self._mapped(self._curves[key], tasks)
        return {name: torch.stack(values, dim=1).cpu() for name, values in curves.items()}

    def movement(self, tasks: Task | Sequence[Task], steps: int) -> dict[str, dict[str, Tensor]]:
        """How far each layer moves along the adaptation to each task; keeps no graph.

        Args:
            tasks: As for `step`.
            steps: S, inner steps.

        Returns:
            For each layer what `core.layers.movement` says, `[tasks, S + 1]`.

        Raises:
            ValueError: `steps` is negative.
        """
        if expect_steps(steps) not in self._movements:
            self._movements[steps] = self._movement(steps)
        moved = self._mapped(self._movements[steps], tasks)
        return {layer: {name: values.cpu() for name, values in by.items()} for layer, by in moved.items()}

    def state_dict(self) -> dict[str, Any]:
        """Meta-parameters, optimizer, schedule and the number of updates: all that a resume needs."""
        return {"iteration": self.iteration, "meta": snapshot(self.meta._asdict()), **self._outer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: It belongs to another model, rule, optimizer or schedule; nothing was taken over.
        """
        check_state(state, "iteration", "meta", "optimizer")
        meta = MetaParams(**state["meta"])
        check_fits(self.meta, meta)
        self._outer.load_state_dict(state)
        self.load_meta(meta)
        self.iteration = state["iteration"]

    def constants(self) -> str:
        """Fingerprint of what the module holds beside its learnable parameters; see `FunctionalModule.constants`."""
        return self.module.constants()

    def load_meta(self, meta: MetaParams) -> None:
        """Take over meta-parameters, leaving the optimizer as it is.

        Raises:
            ValueError: They belong to another model or rule.
        """
        take_over(self.meta, meta)

    @cached_property
    def _adapted_module(self) -> FunctionalModule:
        """What all adapted models compute with, one thread at a time, while this learner may train on."""
        return self.module.for_evaluation()

    def _mean_gradient(self, meta: MetaParams, tasks: list[Task]) -> tuple[list[Tensor], Tensor, Tensor]:
        """The leaves of the meta-gradient, its norm, and the mean query loss."""
        gradient, losses = meta_gradient(self._task_gradient, meta, tasks, self._over_tasks)
        gradients = leaves(gradient)
        norm = torch.stack([leaf.square().sum() for leaf in gradients]).sum().sqrt()
        return gradients, norm, losses.mean()

    def _support_loss(self, params: Params, support: Batch) -> Tensor:
        return self._loss_scale * self._loss(self.module(params, support.inputs), support.targets)

    def _query_loss(self, params: Params, task: Task) -> Tensor:
        outputs = self._query_outputs(params, task, self.normalization)
        return self._loss_scale * self._loss(outputs, task.query.targets)

    def _query_outputs(self, params: Params, task: Task, normalization: Normalization) -> Any:
        statistics = self._query_statistics(params, task.support, normalization)
        return self.module(params, task.query.inputs, statistics)

    def _query_statistics(self, params: Params, support: Batch, normalization: Normalization) -> Statistics | None:
        return self.module.statistics(params, support.inputs) if normalization == "support" else None

    def _mapped(self, function: Callable[[MetaParams, Task], Any], tasks: Task | Sequence[Task]) -> Any:
        """A function of the meta-parameters and each task, in evaluation mode and without a graph."""
        groups = self._prepared(tasks)
        self.module.train(False)
        mapped = self._over_tasks(function)
        with torch.no_grad():
            return concatenate([mapped(self.meta, group) for group in groups])

    def _curve(
        self, steps: int, normalization: Normalization, rule: UpdateRule, last_only: bool
    ) -> Callable[[MetaParams, Task], dict[str, list[Tensor]]]:
        def curve(meta: MetaParams, task: Task) -> dict[str, list[Tensor]]:
            path = adaptation_path(self._support_loss, meta, repeat(task.support, steps), rule)
            judged = deque(path, maxlen=1) if last_only else path
            outputs = [self._query_outputs(params, task, normalization) for params in judged]
            return {
                name: [metric(output, task.query.targets) for output in outputs]
                for name, metric in self._metrics.items()
            }

        return curve

    def _movement(self, steps: int) -> Callable[[MetaParams, Task], dict[str, dict[str, Tensor]]]:
        def moved(meta: MetaParams, task: Task) -> dict[str, dict[str, Tensor]]:
            batches = repeat(task.support, steps)
            path = list(adaptation_path(self._support_loss, meta, batches, self.algorithm.rule))
            return {layer: movement(path, names) for layer, names in by_layer(meta.model).items()}

        return moved

    @torch.no_grad()
    def _meta_update(self, gradients: list[Tensor], norm: Tensor) -> None:
        for leaf, gradient in zip(self._leaves, gradients, strict=True):
            leaf.grad = gradient
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._leaves, self._clip_norm, norm)
        if self._clip_value is not None:
            torch.nn.utils.clip_grad_value_(self._leaves, self._clip_value)
        self._outer.step()
        self.iteration += 1

    def _prepared(self, tasks: Task | Sequence[Task]) -> list[Task]:
        groups = same_size_groups(tasks)
        if self.device.type != "cpu":
            groups = [to_device(group, self.device) for group in groups]
        for group in groups:
            if (sizes := signature(group)) not in self._sizes:
                first = index(group, 0)
                self._check(*first)
                self._sizes.add(sizes)
        return groups

    def _check(self, *parts: Batch) -> None:
        """See that module and loss fit the support set, or it and the query set, of a task."""
        first = not self._kinds
        for examples, which in zip(parts, ("support", "query"), strict=False):
            self._try(examples, which)
        if first:
            tell_of_unreached(self.module, self._loss, parts, self.device)

    def _try(self, examples: Batch, which: str) -> None:
        """Run module and loss on examples of a kind that did not come before, however many; in training mode."""
        check_examples(examples, which)
        kind = signature(tree_map(_one_example, examples))
        if kind in self._kinds or len(self._kinds) == _KINDS or (which == "query" and length(examples) < 2):
            return
        tell_of_sizes(examples, which)
        axes = max((leaf.dim() for leaf in leaves(examples.inputs)), default=0)
        if self._axes is None:
            self._axes = axes
        elif axes > self._axes:
            log.warning(
                "A %s set of inputs with %d axes, where others had %d: is one of them the axis of tasks? Give the "
                "examples of one task",
                which,
                axes,
                self._axes,
            )
        self.module.train()
        check_model(self.module, self._metrics, examples, self.device)
        self._kinds.add(kind)


def _one_example(leaf: Any) -> Any:
    return leaf[:1] if isinstance(leaf, Tensor) and leaf.dim() else leaf
