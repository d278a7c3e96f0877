"""A module as a pure function of its parameters, and the policy for batch normalisation."""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fewstep.core.types import Params

Normalization: TypeAlias = Literal["transductive", "support", "running"]
"""Whose statistics batch normalisation uses.

- transductive: each batch its own, support and query apart (the paper).
- support: queries are normalised by the support set's statistics under the adapted parameters, so that a prediction
  does not depend on which other queries come with it: what a deployed classifier of single pictures needs.
- running: the running statistics stored in the module, frozen: a pretrained network.
"""

Statistics: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Mean and (biased) variance `[channels]` for each batch-normalisation layer, by its name."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# A subclass with a forward of its own does something else besides (an activation, say): it is left as it is.
_BATCH_NORM_FORWARDS = {kind.forward for kind in _BATCH_NORMS}


class FunctionalModule:
    """Any `nn.Module` as f(theta, inputs): parameters are values, and a call leaves nothing behind.

    The module is copied and never touched. Tied parameters stay tied; frozen ones (`requires_grad=False`) and
    buffers are constants.

    Args:
        module: The model.
        normalization: Whose statistics batch normalisation uses.
        second_order: Whether the outputs will be differentiated twice; then kernels without a second derivative
            (fused attention, cuDNN's recurrent layers) are avoided.

    Attributes:
        params: The module's own learnable parameters: the natural initialisation.

    Raises:
        ValueError: The module has no learnable parameters, has lazy ones, or lacks the statistics that it is to use.
    """

    def __init__(
        self, module: nn.Module, normalization: Normalization = "transductive", *, second_order: bool = True
    ) -> None:
        if any(is_lazy(parameter) for parameter in module.parameters()):
            raise ValueError(
                "A model's parameters must exist before meta-learning: got lazy ones. Run one forward pass first."
            )
        self._original = copy.deepcopy(module)
        self._module = _with_own_norms(copy.deepcopy(module), normalization)
        self._norms = {name: m for name, m in self._module.named_modules() if isinstance(m, _TaskNorm)}
        self._second_order = second_order
        self._has_recurrence = any(isinstance(m, nn.RNNBase) for m in self._module.modules())
        self._has_attention = any(isinstance(m, nn.MultiheadAttention) for m in self._module.modules())
        self.normalization: Normalization = normalization
        self.params: Params = {
            name: parameter.detach().clone()
            for name, parameter in self._module.named_parameters()
            if parameter.requires_grad
        }
        if not self.params:
            raise ValueError(
                "A model must have at least one learnable parameter: got none. Set requires_grad=True on some."
            )

    def __call__(self, params: Params, inputs: Any, statistics: Statistics | None = None) -> Any:
        """The module's outputs.

        Args:
            params: theta, for all of `self.params`.
            inputs: One tensor, a tuple of positional arguments or a dict of keyword arguments.
            statistics: What batch normalisation uses; by default each batch's own, or the running ones.

        Returns:
            Whatever the module returns.
        """
        args, kwargs = _as_call(inputs)
        with self._given(statistics), self._differentiable_kernels():
            return torch.func.functional_call(self._module, params, args, kwargs)

    def statistics(self, params: Params, inputs: Any) -> Statistics:
        """The statistics that each batch-normalisation layer sees on these inputs, differentiable in `params`."""
        if not self._norms:
            return {}
        for norm in self._norms.values():
            norm.records = True
        try:
            self(params, inputs)
            return {name: norm.seen for name, norm in self._norms.items() if norm.seen is not None}
        finally:
            for norm in self._norms.values():
                norm.records, norm.seen = False, None

    def train(self, mode: bool = True) -> None:
        """Set the mode in which layers such as dropout run. Batch normalisation follows its policy in both."""
        self._module.train(mode)

    def to(self, device: torch.device | str) -> FunctionalModule:
        """Move constants and initial parameters to a device."""
        self._module.to(device)
        self.params = {name: value.to(device) for name, value in self.params.items()}
        return self

    def as_module(self, params: Params, statistics: Statistics | None = None) -> nn.Module:
        """An ordinary module with these parameters, in evaluation mode, for deployment.

        Args:
            params: Meta-learned or adapted parameters.
            statistics: Become the running statistics of its batch-normalisation layers.

        Returns:
            A copy of the original module.
        """
        module = copy.deepcopy(self._original)
        own = dict(module.named_parameters())
        device = next(iter(own.values())).device
        with torch.no_grad():
            for name, value in params.items():
                own[name].copy_(value)
            for name, (mean, variance) in (statistics or {}).items():
                norm = module.get_submodule(name)
                norm.track_running_stats = True
                norm.register_buffer("running_mean", mean.detach().to(device, copy=True))
                norm.register_buffer("running_var", variance.detach().to(device, copy=True))
        return module.eval()

    def check_pure(self, inputs: Any) -> None:
        """Run one forward pass and check that it leaves the module's buffers as they were.

        Args:
            inputs: Inputs of one task.

        Raises:
            ValueError: A buffer changed: its state would leak from task to task.
        """
        buffers = dict(self._module.named_buffers())
        before = {name: (buffer._version, buffer.clone()) for name, buffer in buffers.items()}
        devices = {value.device for value in self.params.values() if value.is_cuda}
        with torch.no_grad(), torch.random.fork_rng(devices):
            self(self.params, inputs)
        now = dict(self._module.named_buffers())
        # By value too: the kernel of batch normalisation changes a buffer without counting up its version.
        kept = [n for n, b in buffers.items() if now.get(n) is b and b._version == before[n][0]]
        changed = [n for n in buffers | now if n not in kept or not _same(now[n], before[n][1])]
        for name in changed:
            owner, _, key = name.rpartition(".")
            if name in buffers:
                buffers[name].copy_(before[name][1])
            setattr(self._module.get_submodule(owner), key, buffers.get(name))
        if changed:
            raise ValueError(
                "A forward pass must leave the module's buffers as they are, or their state leaks from task to task: "
                f"this one changed {', '.join(changed)}. Turn tracking off (for instance "
                "nn.InstanceNorm2d(..., track_running_stats=False)), or freeze that layer's state in the module's "
                "forward. PyTorch's own batch normalisation needs no change: choose a `normalization` policy."
            )

    @contextmanager
    def _given(self, statistics: Statistics | None) -> Iterator[None]:
        if statistics is None:
            yield
            return
        for name, given in statistics.items():
            self._norms[name].given = given
        try:
            yield
        finally:
            for norm in self._norms.values():
                norm.given = None

    @contextmanager
    def _differentiable_kernels(self) -> Iterator[None]:
        """A forward pass decides which kernels its derivatives use, so the choice is made around it."""
        with ExitStack() as stack:
            if self._second_order:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                if self._has_recurrence:
                    stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if self._has_attention and torch.backends.mha.get_fastpath_enabled():
                torch.backends.mha.set_fastpath_enabled(False)
                stack.callback(torch.backends.mha.set_fastpath_enabled, True)
            yield


class _TaskNorm(nn.Module):
    """Batch normalisation whose statistics are values: computed from the batch, or given; never accumulated."""

    def __init__(self, norm: nn.BatchNorm2d, normalization: Normalization, name: str) -> None:
        super().__init__()
        self.name, self.weight, self.bias, self.eps = name, norm.weight, norm.bias, norm.eps
        self.given: tuple[Tensor, Tensor] | None = None
        self.records, self.seen = False, cast("tuple[Tensor, Tensor] | None", None)
        self.frozen = normalization == "running"
        if self.frozen:
            if norm.running_mean is None or norm.running_var is None:
                raise ValueError(
                    f"normalization='running' needs running statistics: layer {name!r} has none. "
                    "Use track_running_stats=True and pretrain the module, or choose 'transductive' or 'support'."
                )
            self.register_buffer("running_mean", norm.running_mean)
            self.register_buffer("running_var", norm.running_var)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.frozen:
            return self._normalize(inputs, cast("Tensor", self.running_mean), cast("Tensor", self.running_var))
        if self.given is not None:
            return self._normalize(inputs, *self.given)
        if self.records:
            if self.seen is not None:
                raise ValueError(
                    "Statistics of a support set need batch-normalisation layers that run once in a forward pass: "
                    f"layer {self.name!r} runs again. Give each place a layer of its own, or choose 'transductive'."
                )
            axes = [axis for axis in range(inputs.dim()) if axis != 1]
            self.seen = (inputs.mean(axes), inputs.var(axes, correction=0))
        return nn.functional.batch_norm(inputs, None, None, self.weight, self.bias, training=True, eps=self.eps)

    def _normalize(self, inputs: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        # Written out, because nn.functional.batch_norm is not differentiable in given statistics.
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = (1, -1) + (1,) * (inputs.dim() - 2)
        return inputs * scale.view(shape) + shift.view(shape)


class _WeightNorm(nn.Module):
    """Weight normalisation, w = v g / |v|, written out: the second derivative of PyTorch's kernel is wrong."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, size: Tensor, direction: Tensor) -> Tensor:
        return direction * (size / torch.norm_except_dim(direction, 2, self.axis))


def _with_own_norms(module: nn.Module, normalization: Normalization) -> nn.Module:
    norms: dict[nn.Module, nn.Module] = {
        norm: _TaskNorm(cast("nn.BatchNorm2d", norm), normalization, name)
        for name, norm in module.named_modules()
        if isinstance(norm, _BATCH_NORMS) and type(norm).forward in _BATCH_NORM_FORWARDS
    }
    for layer in module.modules():
        if isinstance(layer, parametrizations._WeightNorm):
            norms[layer] = _WeightNorm(layer.dim)
    # With duplicates: one layer may stand in several places.
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if name and child in norms:
            owner, _, key = name.rpartition(".")
            setattr(module.get_submodule(owner), key, norms[child])
    return norms.get(module, module)


def _same(left: Tensor, right: Tensor) -> bool:
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


def _as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), cast("dict[str, Any]", inputs)
    return (cast("tuple[Any, ...]", inputs), {}) if isinstance(inputs, tuple) else ((inputs,), {})
