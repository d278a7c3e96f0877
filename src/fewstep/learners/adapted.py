"""A model adapted to one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch

from fewstep.core.trees import to_device

if TYPE_CHECKING:
    from torch import nn

    from fewstep.core.functional import FunctionalModule
    from fewstep.core.normalization import Statistics
    from fewstep.core.types import Params


@final
@dataclass(frozen=True)
class Adapted:
    """A model adapted to one task: call it on new inputs.

    Attributes:
        params: theta', all parameters of the model.
        statistics: What batch normalisation uses under the `support` policy; None under the others.
    """

    params: Params
    statistics: Statistics | None
    _module: FunctionalModule

    def __call__(self, inputs: Any) -> Any:
        """The module's outputs on new inputs of this task, of the form that the module takes.

        From any thread, one at a time for all that a learner adapted: `as_module` gives each a module of its own.
        """
        device = next(iter(self.params.values())).device
        with torch.no_grad():
            return self._module(self.params, to_device(inputs, device), self.statistics)

    def as_module(self) -> nn.Module:
        """An ordinary `nn.Module` with the adapted parameters, in evaluation mode."""
        return self._module.as_module(self.params, self.statistics)
