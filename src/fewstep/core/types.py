"""The tensors that travel together, and the shapes of the functions between which they travel.

Axis order everywhere: `tasks, trajectories, time, examples, features...`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Params: TypeAlias = dict[str, Tensor]
"""Named parameters as values. A plain dict, so `torch.func` maps over it."""

LossFn: TypeAlias = Callable[[Params, Any], Tensor]
"""Scalar loss of parameters on some data: L(theta, data)."""


class MetaParams(NamedTuple):
    """All that the outer loop learns.

    Attributes:
        model: theta, the initialisation that all tasks share.
        rule: Learnable hyper-parameters of the inner loop; empty for MAML, the rates for Meta-SGD.
    """

    model: Params
    rule: Params


class Batch(NamedTuple):
    """Examples of one task.

    Attributes:
        inputs: A tensor `[examples, ...]`, or a tuple or dict of them for modules with several inputs.
        targets: A tensor `[examples, ...]`.
    """

    inputs: Any
    targets: Any


class Task(NamedTuple):
    """One task: adapt on the support set, score on the query set.

    A meta-batch of tasks of one size is a `Task` whose tensors lead with a `tasks` axis.
    """

    support: Batch
    query: Batch


TaskGradient: TypeAlias = Callable[[MetaParams, Any], tuple[MetaParams, Tensor]]
"""Outer gradient of one task and its query loss (scalar): what the map over tasks maps."""

OverTasks: TypeAlias = Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]
"""Turns `f(shared, task)` into `f(shared, tasks)` with a leading `tasks` axis on every output tensor."""
