"""What training and evaluation need of a learner, and what all learners share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from fewstep.core.types import MetaParams

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.types import Params


class Learner(Protocol):
    """Meta-parameters and the way to improve them."""

    @property
    def iteration(self) -> int:
        """Number of meta-updates done."""
        ...

    @iteration.setter
    def iteration(self, value: int) -> None: ...

    @property
    def meta(self) -> MetaParams:
        """All that the outer loop has learned so far; `step` may change its tensors in place: clone what is to stay."""
        ...

    def step(self, tasks: Any) -> dict[str, float]:
        """One meta-update on a meta-batch; returns what to record about it."""
        ...

    def evaluate(self, tasks: Any, steps: int, *, last_only: bool = False) -> dict[str, Tensor]:
        """Each metric `[tasks, steps + 1]` on unseen data of each task after 0 to `steps` inner steps.

        Or `[tasks, 1]` after the last of them alone, which costs less.
        """
        ...

    def load_meta(self, meta: MetaParams) -> None:
        """Take over meta-parameters, and nothing else."""
        ...

    def constants(self) -> str:
        """A fingerprint of what the model holds beside the meta-parameters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on bit for bit; later steps leave it as it is."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...


def check_fits(own: MetaParams, new: MetaParams) -> None:
    """See that meta-parameters have the names and shapes of a learner's.

    Raises:
        ValueError: They belong to another model or rule.
    """
    for part, mine, theirs in zip(MetaParams._fields, own, new, strict=True):
        expected = {name: tuple(value.shape) for name, value in mine.items()}
        came = {name: tuple(value.shape) for name, value in theirs.items()}
        if expected != came:
            differing = sorted(n for n in expected | came if expected.get(n) != came.get(n))
            raise ValueError(
                f"Meta-parameters ({part}) must have the names and shapes of this learner's: they differ in "
                + ", ".join(f"{n} (expected {expected.get(n)}, got {came.get(n)})" for n in differing[:5])
                + ". Build the learner with the model and algorithm that they were trained with."
            )


@torch.no_grad()
def take_over(own: MetaParams, new: MetaParams) -> None:
    """Copy meta-parameters into those of a learner.

    Raises:
        ValueError: They belong to another model or rule; nothing was copied.
    """
    check_fits(own, new)
    for mine, theirs in zip(own, new, strict=True):
        for name, value in mine.items():
            value.copy_(theirs[name])


def begun_at(own: MetaParams, other: MetaParams) -> tuple[MetaParams, list[str]]:
    """Another learner's meta-parameters where names and shapes agree, and this one's where they do not.

    Returns:
        The meta-parameters, and the names of those that stay this learner's own.
    """

    def agreeing(mine: Params, theirs: Params) -> Params:
        return {
            name: theirs[name] for name, value in mine.items() if name in theirs and theirs[name].shape == value.shape
        }

    shared = MetaParams(*map(agreeing, own, other))
    merged = MetaParams(*({**mine, **theirs} for mine, theirs in zip(own, shared, strict=True)))
    return merged, [name for mine, theirs in zip(own, shared, strict=True) for name in mine if name not in theirs]
