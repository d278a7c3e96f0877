"""The paper's multi-task baseline (appendix C): a network of its own for each task, then the average network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor, nn

from fewstep.core.algorithms import joint
from fewstep.core.context import vmapped
from fewstep.core.functional import FunctionalModule
from fewstep.core.trees import length, to_device
from fewstep.core.types import Batch, MetaParams, Params, Task
from fewstep.errors import NonFiniteError
from fewstep.learners.checks import check_state
from fewstep.learners.learner import check_fits, take_over
from fewstep.learners.outer_loop import OptimizerFactory, OuterLoop, snapshot
from fewstep.learners.supervised import Loss, SupervisedLearner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fewstep.core.rules import UpdateRule
    from fewstep.learners.adapted import Adapted
    from fewstep.names import Normalization

Regularizer = Literal["none", "l2", "to_mean"]


@final
class AveragingLearner:
    """Trains one network per task of a fixed pool; what it has learned is their mean, theta = mean_i theta_i.

    Descends sum_i L_i(theta_i) + strength * R, where R is 0 ("none"), sum_i |theta_i|^2 ("l2") or
    sum_i |theta_i - theta|^2 ("to_mean"). Support and query examples alike are training data.

    Args:
        modules: One per task, each with an initialisation of its own.
        loss: Scalar loss of outputs and targets of one batch.
        rule: Fine-tunes the mean at test.
        regularizer: R.
        strength: Its factor.
        optimizer: Makes the optimizer of all networks together.
        metrics: More functions of outputs and targets to evaluate.
        device: Where parameters and computation live.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        loss: Loss,
        rule: UpdateRule,
        *,
        regularizer: Regularizer = "none",
        strength: float = 1e-3,
        optimizer: OptimizerFactory | None = None,
        metrics: Mapping[str, Loss] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.iteration = 0
        self._mean = SupervisedLearner(modules[0], loss, joint(rule), metrics=metrics, device=device)
        self._module = self._mean.module
        initial = [FunctionalModule(module).params for module in modules]
        self._networks: Params = {
            name: torch.stack([params[name] for params in initial]).to(device) for name in initial[0]
        }
        self._loss, self._regularizer, self._strength = loss, regularizer, strength
        self._outer = OuterLoop(list(self._networks.values()), optimizer)
        self._gradient: Callable[[Params, Task], tuple[Params, Tensor]] = vmapped(
            torch.func.grad_and_value(self._task_loss)
        )

    @property
    def meta(self) -> MetaParams:
        """The average network."""
        return MetaParams({name: stacked.mean(0) for name, stacked in self._networks.items()}, {})

    @torch.no_grad()
    def step(self, tasks: Task) -> dict[str, float]:
        """One update of every network on fresh examples of its own task.

        Args:
            tasks: The whole pool, in its order, with a leading `tasks` axis.

        Returns:
            Mean loss over networks, without the regulariser.

        Raises:
            ValueError: The number of tasks is not the number of networks.
            NonFiniteError: A loss is not finite; nothing was updated.
        """
        count = length(self._networks)
        if length(tasks) != count:
            raise ValueError(f"Each network has one task: expected {count} tasks, got {length(tasks)}.")
        self._module.train()
        gradients, losses = self._gradient(self._networks, to_device(tasks, self._mean.device))
        finite = losses.isfinite()
        for gradient in gradients.values():
            finite &= gradient.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            bad = [i for i, good in enumerate(finite) if not good]
            raise NonFiniteError(
                f"Losses and gradients must be finite: iteration {self.iteration + 1} gave infinity or nan in tasks "
                f"{bad[:5]}. Lower meta.lr, or look for bad values in the data."
            )
        for name, network in self._networks.items():
            centre = network.mean(0) if self._regularizer == "to_mean" else torch.zeros_like(network[0])
            pull = 0.0 if self._regularizer == "none" else 2 * self._strength
            network.grad = gradients[name] + pull * (network - centre)
        self._outer.step()
        self.iteration += 1
        return {"query_loss": losses.mean().item()}

    def adapt(self, support: Batch, steps: int | None = None, normalization: Normalization | None = None) -> Adapted:
        """Fine-tune the average network on one task; see `SupervisedLearner.adapt`."""
        self._mean.load_meta(self.meta)
        return self._mean.adapt(support, steps, normalization)

    def evaluate(
        self, tasks: Any, steps: int, *, normalization: Normalization | None = None, last_only: bool = False
    ) -> dict[str, Tensor]:
        """Fine-tune the average network; see `SupervisedLearner.evaluate`."""
        self._mean.load_meta(self.meta)
        return self._mean.evaluate(tasks, steps, normalization=normalization, last_only=last_only)

    def constants(self) -> str:
        """As for `SupervisedLearner`."""
        return self._mean.constants()

    def load_meta(self, meta: MetaParams) -> None:
        """Take over an average: every network becomes it."""
        self._mean.load_meta(meta)
        with torch.no_grad():
            for name, network in self._networks.items():
                network.copy_(meta.model[name].expand_as(network))

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizer and number of updates."""
        return {"iteration": self.iteration, "networks": snapshot(self._networks), **self._outer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: It belongs to other networks, to another number of them, or to another optimizer; nothing was
                taken over.
        """
        check_state(state, "iteration", "networks", "optimizer")
        own, came = MetaParams(self._networks, {}), MetaParams(state["networks"], {})
        check_fits(own, came)
        self._outer.load_state_dict(state)
        take_over(own, came)
        self.iteration = state["iteration"]

    def _task_loss(self, params: Params, task: Task) -> Tensor:
        both = [self._loss(self._module(params, batch.inputs), batch.targets) for batch in task]
        return (both[0] + both[1]) / 2
