"""The step of the outer loop along a meta-gradient (Algorithm 2, line 10), and what it remembers."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeAlias, final

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fewstep.core.trees import tree_map

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

OptimizerFactory: TypeAlias = Callable[[list["Tensor"]], Optimizer]
ScheduleFactory: TypeAlias = Callable[[Optimizer], LRScheduler]


def adam(lr: float = 1e-3) -> OptimizerFactory:
    """The paper's meta-optimizer, Adam with meta step size beta = `lr`."""
    return lambda tensors: torch.optim.Adam(tensors, lr=lr, fused=True)


def snapshot(state: Any) -> Any:
    """A copy that later steps leave as it is, its tensors in the memory of the CPU."""

    def copy(leaf: Any) -> Any:
        return leaf.detach().to("cpu", copy=True) if isinstance(leaf, torch.Tensor) else deepcopy(leaf)

    return tree_map(copy, state)


@final
class OuterLoop:
    """A meta-optimizer and its schedule.

    Args:
        tensors: What they change, in place.
        optimizer: Makes the meta-optimizer over these; by default Adam.
        schedule: Makes a learning-rate schedule of it, stepped once per meta-update.

    Raises:
        ValueError: The optimizer is over other tensors, or evaluates the loss itself; or the schedule wants to be told
            a loss.
    """

    def __init__(
        self, tensors: list[Tensor], optimizer: OptimizerFactory | None = None, schedule: ScheduleFactory | None = None
    ) -> None:
        self._optimizer = (optimizer or adam())(tensors)
        came: Any = self._optimizer  # from the user's own code
        if not isinstance(came, Optimizer):
            raise ValueError(
                f"`optimizer` must make a torch.optim.Optimizer of the tensors that it is given: got a "
                f"{type(came).__name__}. Derive yours from that class."
            )
        if isinstance(self._optimizer, torch.optim.LBFGS):
            raise ValueError(
                "`optimizer` must make a step of a gradient that it is given: got LBFGS, which evaluates the loss "
                "itself. Take another, torch.optim.Adam for instance."
            )
        held = {id(tensor) for group in self._optimizer.param_groups for tensor in group["params"]}
        if not held or not held <= set(map(id, tensors)):
            raise ValueError(
                "`optimizer` must be made over tensors that it is given: got one over others. A module's own "
                "parameters, for instance, are copied and stay as they are. Write `lambda tensors: "
                "torch.optim.Adam(tensors)`."
            )
        self._schedule = schedule(self._optimizer) if schedule else None
        if isinstance(self._schedule, ReduceLROnPlateau):
            raise ValueError(
                "`schedule` must be one that is stepped without a metric, once for each meta-update: got "
                "ReduceLROnPlateau. Take another, CosineAnnealingLR for instance."
            )

    def step(self) -> None:
        """One step along the gradients that lie in `grad` of the tensors."""
        self._optimizer.step()
        if self._schedule:
            self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on; later steps leave it as it is."""
        return snapshot(
            {
                "optimizer_kind": type(self._optimizer).__name__,
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict() if self._schedule else None,
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, of which later steps change nothing either.

        Raises:
            ValueError: It belongs to another optimizer or schedule; nothing was taken over.
        """
        own = type(self._optimizer).__name__
        expected = _described(own, self._schedule)
        got = _described(state.get("optimizer_kind", own), state.get("schedule"))
        if expected != got:
            raise ValueError(
                f"The state is of a learner with another optimizer or schedule: expected {expected}, got {got}. Build "
                "the learner as the one that was saved."
            )
        self._optimizer.load_state_dict(deepcopy(state["optimizer"]))  # it keeps the very tensors that it is given
        if self._schedule:
            self._schedule.load_state_dict(deepcopy(state["schedule"]))


def _described(optimizer: str, schedule: Any) -> str:
    return f"{optimizer} with {'no' if schedule is None else 'a'} schedule"
