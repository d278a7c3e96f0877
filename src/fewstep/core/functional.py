"""A module as a pure function of its parameters."""

from __future__ import annotations

import copy
import hashlib
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from fewstep.core.convolution import with_own_convolutions
from fewstep.core.normalization import Statistics, TaskNorm, named_modules, with_own_norms
from fewstep.core.recurrence import with_own_recurrence
from fewstep.names import Normalization

if TYPE_CHECKING:
    from collections.abc import Generator

    from fewstep.core.types import Params


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
        tied: For each further name of one of them, the name that it goes by.

    Raises:
        ValueError: The module is none, has no learnable parameters or lazy ones, or lacks the statistics that it is to
            use.
    """

    def __init__(
        self, module: nn.Module, normalization: Normalization = "transductive", *, second_order: bool = True
    ) -> None:
        expect_module(module)
        if normalization not in get_args(Normalization):
            raise ValueError(f"`normalization` is one of {', '.join(get_args(Normalization))}: got {normalization!r}.")
        self._begin(_copied(module), normalization, second_order)

    def _begin(self, original: nn.Module, normalization: Normalization, second_order: bool) -> None:
        self._original = original
        own = with_own_recurrence(with_own_norms(_sharing_what_is_frozen(original), normalization))
        self._module = with_own_convolutions(own)
        self._norms = {name: m for name, m in named_modules(self._module) if isinstance(m, TaskNorm)}
        self._second_order = second_order
        self._mode: bool | None = None
        # `functional_call` puts the parameters into the module while it runs: one thread at a time.
        self._lock = threading.RLock()
        # What stands in evaluation mode inside a module in training mode, a frozen backbone say, is meant to stay so.
        self._resting = [part for part in self._module.modules() if self._module.training and not part.training]
        self._has_recurrence = any(isinstance(m, nn.RNNBase) for m in self._module.modules())
        self._has_attention = any(isinstance(m, nn.MultiheadAttention) for m in self._module.modules())
        self.normalization: Normalization = normalization
        self.params: Params = {
            name: parameter.detach().clone()
            for name, parameter in self._module.named_parameters()
            if parameter.requires_grad
        }
        first = {id(value): name for name, value in self._module.named_parameters()}
        every = cast("Any", self._module).named_parameters(remove_duplicate=False)
        self.tied: dict[str, str] = {
            name: first[id(value)] for name, value in every if value.requires_grad and name != first[id(value)]
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
        with self._lock, self._given(statistics), self._differentiable_kernels():
            return torch.func.functional_call(self._module, params, args, kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}  # which cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    def for_evaluation(self) -> FunctionalModule:
        """A copy in evaluation mode, which training this one leaves there."""
        # Of the original: the module in use may hold what a forward pass left in it, which cannot be copied.
        own = object.__new__(FunctionalModule)
        own._begin(self._original, self.normalization, self._second_order)
        own.to(next(iter(self.params.values())).device).train(False)
        return own

    def statistics(self, params: Params, inputs: Any) -> Statistics:
        """The statistics that each batch-normalisation layer sees on these inputs, differentiable in `params`."""
        if not self._norms:
            return {}
        with self._lock:
            for norm in self._norms.values():
                norm.records = True
            try:
                self(params, inputs)
                return {name: norm.seen for name, norm in self._norms.items() if norm.seen is not None}
            finally:
                for norm in self._norms.values():
                    norm.records, norm.seen = False, None

    def train(self, mode: bool = True) -> None:
        """Set the mode in which layers such as dropout run. Batch normalisation follows its policy in both.

        Parts that came in evaluation mode inside a module in training mode stay in it.
        """
        if self._mode != mode:  # setting it takes as long as a small network's forward pass
            self._mode = mode
            self._module.train(mode)
            for part in self._resting:
                part.train(False)

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

        Raises:
            ValueError: It has batch-normalisation layers, and nothing that they could use for a single example.
        """
        if statistics is None and self._norms and self.normalization != "running":
            raise ValueError(
                "A module to deploy needs statistics for its batch normalisation: there are none under the policy "
                f"{self.normalization!r}. Adapt with normalization='support', or build the learner with it."
            )
        device = next(iter(self.params.values())).device
        module = copy.deepcopy(self._original).to(device)
        own = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in params.items():
                own[name].copy_(value)
            for name, (mean, variance) in (statistics or {}).items():
                norm = cast("nn.BatchNorm2d", module.get_submodule(name))
                norm.track_running_stats = True
                norm.register_buffer("running_mean", mean.detach().to(device, copy=True))
                norm.register_buffer("running_var", variance.detach().to(device, copy=True))
        return module.eval()

    def constants(self) -> str:
        """A fingerprint of frozen parameters and buffers, which meta-parameters do not hold."""
        state = self._module.state_dict()
        fixed = {name: value for name, value in state.items() if name not in self.params}
        # Tied parameters stand in the state under every name that they have.
        learnable = {parameter.data_ptr() for parameter in self._module.parameters() if parameter.requires_grad}
        digest = hashlib.sha256()
        for name, value in sorted(fixed.items()):
            if not isinstance(value, torch.Tensor):  # a module's own extra state
                digest.update(f"{name} {_plain(value)}".encode())
            elif value.data_ptr() not in learnable:
                digest.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def check_pure(self, inputs: Any) -> Any:
        """Run one forward pass and check that it leaves the module's buffers and parameters as they were.

        Args:
            inputs: Inputs of one task.

        Returns:
            The module's outputs.

        Raises:
            ValueError: A buffer changed, whose state would leak from task to task, or a parameter.
        """
        params = {name: value.clone() for name, value in self.params.items()}
        frozen = {n: (p, p._version) for n, p in self._module.named_parameters() if not p.requires_grad}
        buffers = dict(self._module.named_buffers())
        before = {name: (buffer._version, buffer.clone()) for name, buffer in buffers.items()}
        devices = {value.device for value in self.params.values() if value.is_cuda}
        with torch.no_grad(), cast("Any", torch.random).fork_rng(devices):
            outputs = self(params, inputs)
        written = [name for name, value in params.items() if value._version]
        written += [name for name, (value, version) in frozen.items() if value._version != version]
        if written:
            raise ValueError(
                f"A forward pass must leave the parameters as they are: this one wrote into {', '.join(written)}. "
                "Compute with a new tensor instead (of nn.Embedding's, leave out max_norm)."
            )
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
        return outputs

    @contextmanager
    def _given(self, statistics: Statistics | None) -> Generator[None]:
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
    def _differentiable_kernels(self) -> Generator[None]:
        """A forward pass decides which kernels its derivatives use, so the choice is made around it."""
        with ExitStack() as stack:
            if self._second_order:
                stack.enter_context(cast("Any", sdpa_kernel)(SDPBackend.MATH))
                if self._has_recurrence:
                    stack.enter_context(cast("Any", torch.backends.cudnn).flags(enabled=False))
            if self._has_attention and torch.backends.mha.get_fastpath_enabled():
                torch.backends.mha.set_fastpath_enabled(False)
                stack.callback(torch.backends.mha.set_fastpath_enabled, True)
            yield


def expect_module(module: object) -> None:
    """See that something is a module whose parameters can be values.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"A model is an nn.Module, made and not its class: got {module!r}.")
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):  # of torch.compile
        raise ValueError(
            f"A model is a module as it was written: got a {type(module).__name__}, whose code is not what a learner "
            "computes with: that takes other parameters, and derivatives. Give the module that it was made of; "
            "`run=fewstep.core.running.compiled()` compiles the whole meta-gradient."
        )
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise ValueError(
            "A model's parameters must exist before meta-learning: got lazy ones. Run one forward pass first."
        )
    for name, part in named_modules(module):
        if any(type(hook).__name__ == "WeightNorm" for hook in cast("Any", part)._forward_pre_hooks.values()):
            raise ValueError(
                f"Weight normalisation of layer {name!r} must be that of torch.nn.utils.parametrizations: got "
                "torch.nn.utils.weight_norm, whose second derivative is wrong. The former takes the same arguments."
            )


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"A model is copied, and this one cannot be: {error}. Let it hold no tensor that was computed from its "
            "parameters, and nothing like an open file or a lock."
        ) from error


def _sharing_what_is_frozen(module: nn.Module) -> nn.Module:
    """A copy whose frozen parameters, a backbone's perhaps, are the same tensors: nobody writes into them."""
    return copy.deepcopy(module, {id(value): value for value in module.parameters() if not value.requires_grad})


def _same(left: Tensor, right: Tensor) -> bool:
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


def _as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), cast("dict[str, Any]", inputs)
    return (cast("tuple[Any, ...]", inputs), {}) if isinstance(inputs, tuple) else ((inputs,), {})


def _plain(value: Any) -> str:
    """A value in words that are the same in every process: of objects, whose words may tell an address, their type."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {cast('Any', value).tolist()}"
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(cast("dict[Any, Any]", value).items())
        return f"{{{', '.join(f'{_plain(key)}: {_plain(each)}' for key, each in items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, cast('list[Any]', value)))}]"
    return repr(value) if isinstance(value, str | bytes | int | float | bool | None) else type(value).__name__
