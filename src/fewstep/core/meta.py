"""Algorithm 1, lines 4-8: the outer gradient of one task, and of a meta-batch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, cast, final

import torch

from fewstep.core.adapt import adapt
from fewstep.core.trees import concatenate, detach, leaves, mean, subtract, tree_map
from fewstep.core.types import Batch, MetaParams, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fewstep.core.rules import UpdateRule
    from fewstep.core.types import LossFn, OverTasks, TaskGradient


@final
@dataclass(frozen=True, eq=False)
class QueryGradient:
    """The gradient of the query loss after adaptation: grad_theta L_i(theta'_i) (Algorithm 1, lines 5-8).

    Differentiates through the inner loop: MAML and relatives. With zero steps it is joint training.

    Attributes:
        support_loss: Loss that the inner loop descends, on `task.support`.
        query_loss: Loss that the outer loop descends; it sees the whole task.
        rule: The inner-loop rule; a `Detached` one gives the first-order gradient.
        steps: Number of inner steps.
    """

    support_loss: LossFn
    query_loss: LossFn
    rule: UpdateRule
    steps: int

    def __call__(self, meta: MetaParams, task: Task) -> tuple[MetaParams, Tensor]:
        """The gradient for one task, and its query loss."""

        def objective(meta: MetaParams) -> Tensor:
            adapted = adapt(self.support_loss, meta, repeat(task.support, self.steps), self.rule)
            return self.query_loss(adapted, task)

        return torch.func.grad_and_value(objective)(meta)


@final
@dataclass(frozen=True, eq=False)
class Displacement:
    """How far adaptation moves the parameters: theta - theta'_i (Reptile, Nichol et al. 2018).

    Descending it moves the initialisation towards the adapted parameters; nothing is differentiated twice.

    Attributes:
        support_loss: Loss that the inner loop descends, on `task.support`.
        query_loss: Only reported.
        rule: The inner-loop rule.
        steps: Number of inner steps.
    """

    support_loss: LossFn
    query_loss: LossFn
    rule: UpdateRule
    steps: int

    def __call__(self, meta: MetaParams, task: Task) -> tuple[MetaParams, Tensor]:
        """The displacement for one task, and its query loss."""
        adapted = adapt(self.support_loss, meta, repeat(task.support, self.steps), self.rule)
        moved = MetaParams(subtract(meta.model, adapted), tree_map(torch.zeros_like, meta.rule))
        return moved, self.query_loss(adapted, task)


def meta_gradient(
    task_gradient: TaskGradient, meta: MetaParams, tasks: Task | Sequence[Task], over_tasks: OverTasks
) -> tuple[MetaParams, Tensor]:
    """The outer gradient of a meta-batch: the mean of its tasks' gradients (Algorithm 1, line 8).

    Args:
        task_gradient: A `QueryGradient` or `Displacement`.
        meta: The meta-parameters.
        tasks: A `Task` with a leading `tasks` axis; where sizes differ, a list of such, one for each size.
        over_tasks: How the map over tasks is executed.

    Returns:
        The gradient, shaped like `meta`, and the query losses `[tasks]`.
    """
    mapped = over_tasks(task_gradient)
    meta = detach(meta)  # leaves that require grad would keep the graph of every inner step alive
    gradients, losses = concatenate([mapped(meta, group) for group in same_size_groups(tasks)])
    return mean(gradients), losses


def same_size_groups(tasks: Task | Sequence[Task]) -> list[Task]:
    """A meta-batch as a list of stacked tasks of one size; raises ValueError if empty or uneven."""
    several = isinstance(tasks, list | tuple) and not isinstance(tasks, Task)
    groups = cast("list[Task]", list(tasks) if several else [tasks])
    came: list[Any] = [*groups]  # from the user's own code
    strangers = {type(group).__name__ for group in came if not isinstance(group, Task)}
    if strangers:
        inside = f" of {' and '.join(strangers)}" if isinstance(tasks, list | tuple) else ""
        raise ValueError(
            f"A meta-batch must be a Task, or a list of them: got {type(tasks).__name__}{inside}. "
            "Make it with `fewstep.Task(support, query)`."
        )
    for batch in (batch for group in groups for batch in group):
        if not isinstance(cast("Any", batch), Batch):
            raise ValueError(
                f"The parts of a Task must be Batches: got {type(batch).__name__}. Make them with "
                "`fewstep.Batch(inputs, targets)`."
            )
    for group in groups:
        if any(leaf.dim() < 2 for batch in group for leaf in leaves(batch.targets)):
            raise ValueError(
                "The tensors of a meta-batch lead with a `tasks` axis, targets are [tasks, examples, ...]: got targets "
                "of one axis. Stack tasks of one size (torch.stack), or give a single one the axis with [None]."
            )
    sizes_of_groups = [{leaf.shape[0] for leaf in leaves(group)} for group in groups]
    if not groups or any(0 in sizes for sizes in sizes_of_groups):
        raise ValueError("A meta-batch must hold at least one task: got none. Raise the number of tasks to sample.")
    for sizes in sizes_of_groups:
        if len(sizes) > 1:
            raise ValueError(
                "The tensors of a meta-batch must lead with one number of tasks: got "
                f"{', '.join(map(str, sorted(sizes)))}. Stack tasks of one size; pass several sizes as a list."
            )
    return groups
