"""Normalisation layers whose derivatives and statistics a meta-learner can rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fewstep.core.context import is_recording_for_compiler

if TYPE_CHECKING:
    from fewstep.names import Normalization

Statistics: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Mean and (biased) variance `[channels]` for each batch-normalisation layer, by its name."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""PyTorch's own layers."""
# A subclass with a forward of its own does something else besides (an activation, say): it is left as it is.
_BATCH_NORM_FORWARDS = {kind.forward for kind in BATCH_NORMS}
_TORCH_WEIGHT_NORM: Any = getattr(parametrizations, "_WeightNorm", ())


def policy_followed(asked: Normalization | None, own: Normalization) -> Normalization:
    """The policy to evaluate with: transductive and support may stand in for each other, running is built in.

    Raises:
        ValueError: A model built with `own` cannot follow what is asked.
    """
    policy = asked or own
    if policy != own and (policy not in ("transductive", "support") or own == "running"):
        raise ValueError(
            f"A learner built with normalization={own!r} cannot be evaluated with {policy!r}. "
            "Between 'transductive' and 'support' it can choose; build it with 'running' for that."
        )
    return policy


def named_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module inside, by the first of its names."""
    return list(cast("Any", module).named_modules())


class TaskNorm(nn.Module):
    """Batch normalisation whose statistics are values: computed from the batch, or given; never accumulated.

    A layer of PyTorch's becomes one: hooks, parameters and attributes stay its own.
    """

    name: str
    eps: float
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    frozen: bool
    given: tuple[Tensor, Tensor] | None
    records: bool
    seen: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, layer: nn.Module, normalization: Normalization, name: str) -> None:
        """Make a batch-normalisation layer one of these, in place."""
        norm = cast("TaskNorm", layer)
        norm.frozen = normalization == "running"
        if norm.frozen and (norm.running_mean is None or norm.running_var is None):
            raise ValueError(
                f"normalization='running' needs running statistics: layer {name!r} has none. "
                "Use track_running_stats=True and pretrain the module, or choose 'transductive' or 'support'."
            )
        if not norm.frozen:
            norm.running_mean = norm.running_var = None
        norm.num_batches_tracked = None
        norm.name, norm.given, norm.records, norm.seen = name, None, False, None
        layer.__class__ = cls

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs `[examples, channels, ...]`, normalised per channel."""
        if self.frozen:
            assert self.running_mean is not None
            assert self.running_var is not None
            return self._normalize(inputs, self.running_mean, self.running_var)
        if self.given is not None:
            return self._normalize(inputs, *self.given)
        if inputs.numel() == inputs.shape[1]:
            raise ValueError(
                f"Batch normalisation (layer {self.name!r}) needs more than one value for each channel: got one "
                "example. Give more of them; of queries, one is enough with normalization='support', which takes the "
                "statistics of the support set."
            )
        axes = [axis for axis in range(inputs.dim()) if axis != 1]
        if is_recording_for_compiler():
            variance, mean = torch.var_mean(inputs, axes, correction=0)
            if self.records:
                self._record(mean, variance)
            return self._normalize(inputs, mean, variance)
        if self.records:
            self._record(inputs.mean(axes), inputs.var(axes, correction=0))
        return nn.functional.batch_norm(inputs, None, None, self.weight, self.bias, training=True, eps=self.eps)

    def _record(self, mean: Tensor, variance: Tensor) -> None:
        if self.seen is not None:
            raise ValueError(
                "Statistics of a support set need batch-normalisation layers that run once in a forward pass: "
                f"layer {self.name!r} runs again. Give each place a layer of its own, or choose 'transductive'."
            )
        self.seen = (mean, variance)

    def _normalize(self, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        # Written out, because nn.functional.batch_norm is not differentiable in given statistics.
        shape = (1, -1) + (1,) * (inputs.dim() - 2)
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        normalized = (inputs - mean.view(shape)) * scale.view(shape)
        return normalized if self.bias is None else normalized + self.bias.view(shape)


class _WeightNorm(nn.Module):
    """Weight normalisation, w = v g / |v|, written out: the second derivative of PyTorch's kernel is wrong."""

    dim: int

    def forward(self, size: Tensor, direction: Tensor) -> Tensor:
        """The weight of this size g and direction v."""
        return direction * (size / torch.norm_except_dim(direction, 2, self.dim))


def with_own_norms(module: nn.Module, normalization: Normalization) -> nn.Module:
    """The module with its batch and weight normalisation computed as above, in place.

    Raises:
        ValueError: Running statistics are asked for, and there are none.
    """
    for name, layer in named_modules(module):
        if isinstance(layer, BATCH_NORMS) and type(layer).forward in _BATCH_NORM_FORWARDS:
            if parametrize.is_parametrized(layer):
                raise ValueError(
                    f"Batch normalisation cannot have parametrized parameters: layer {name!r} has. Parametrize another "
                    "layer, or write this one with operations of your own."
                )
            TaskNorm.of(layer, normalization, name)
        elif isinstance(layer, _TORCH_WEIGHT_NORM):
            cast("nn.Module", layer).__class__ = _WeightNorm
    return module
