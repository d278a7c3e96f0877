"""What training and evaluation need of a learner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.core.normalization import Normalization
    from fewstep.core.types import MetaParams


class Learner(Protocol):
    """Meta-parameters and the way to improve them."""

    iteration: int
    """Number of meta-updates done."""

    @property
    def meta(self) -> MetaParams:
        """All that the outer loop has learned so far."""
        ...

    def step(self, tasks: Any) -> dict[str, float]:
        """One meta-update on a meta-batch; returns what to record about it."""
        ...

    def evaluate(self, tasks: Any, steps: int, normalization: Normalization | None = None) -> dict[str, Tensor]:
        """Each metric `[tasks, steps + 1]` on the query sets after 0 to `steps` inner steps."""
        ...

    def constants(self) -> str:
        """A fingerprint of what the model holds beside the meta-parameters."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a later `load_state_dict` needs to go on bit for bit."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...
