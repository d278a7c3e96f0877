"""What every distribution of tasks offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fewstep.core.types import Task


class TaskDistribution(Protocol):
    """p(T), the distribution that tasks are drawn from (Algorithm 1, line 3)."""

    def sample(self, num_tasks: int, generator: torch.Generator) -> Any:
        """Draw tasks.

        Args:
            num_tasks: How many.
            generator: A CPU stream; the same stream gives the same tasks.

        Returns:
            What the learner takes: a `Task` whose tensors lead with a `tasks` axis; where tasks differ in size, a list
            of such, one for each size. In reinforcement learning, an `Mdp`.
        """
        ...


class Curve(NamedTuple):
    """One task's true function on a grid, to draw beside predictions.

    Attributes:
        task: The task, without a `tasks` axis.
        inputs: Grid `[points, input features]`.
        targets: True values `[points, 1]`; for a table, the measured ones.
    """

    task: Task
    inputs: Tensor
    targets: Tensor
