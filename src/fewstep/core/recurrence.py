"""Recurrent layers of which all tasks can be computed at once: PyTorch's own have no vmap rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.context import is_recording_for_compiler, is_vmapped

if TYPE_CHECKING:
    from collections.abc import Callable


class _Recurrent(nn.RNNBase):
    """PyTorch's layer, with a second way through for all tasks at once and for the compiler."""

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002
        """As PyTorch's layer of that kind. Packed sequences, whose lengths are data, are always left to it."""
        if isinstance(input, Tensor) and (is_vmapped() or is_recording_for_compiler()):
            return self._written_out(input, hx)
        return cast("Any", super()).forward(input, hx)

    def _written_out(self, input: Tensor, hx: Any) -> tuple[Any, Any]:  # noqa: A002
        """Layer by layer, direction by direction, with dropout between layers."""
        batched = input.dim() == 3
        inputs = input if batched else input.unsqueeze(1 - self.batch_first)
        inputs = inputs.transpose(0, 1) if self.batch_first else inputs  # [time, examples, features]
        states = self._initial_states(inputs, hx, batched)
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outputs: list[Tensor] = []
            for direction in range(1 + self.bidirectional):
                name = f"_l{layer}" + "_reverse" * direction
                start = tuple(state[len(finals)] for state in states)
                along = inputs.flip(0) if direction else inputs
                output, final = self._along_time(along, start, name)
                outputs.append(output.flip(0) if direction else output)
                finals.append(final)
            inputs = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if self.dropout and layer < self.num_layers - 1:
                inputs = functional.dropout(inputs, self.dropout, self.training)
        outputs_of_all = inputs.transpose(0, 1) if self.batch_first else inputs
        last = [torch.stack(parts) for parts in zip(*finals, strict=True)]
        if not batched:
            outputs_of_all = outputs_of_all.squeeze(1 - self.batch_first)
            last = [state.squeeze(1) for state in last]
        return outputs_of_all, tuple(last) if self.mode == "LSTM" else last[0]

    def _initial_states(self, inputs: Tensor, given: Any, batched: bool) -> list[Tensor]:
        """For each kind of state `[layers * directions, examples, units]`."""
        if given is not None:
            states: list[Tensor] = list(given) if self.mode == "LSTM" else [given]
            return states if batched else [state.unsqueeze(1) for state in states]
        count = self.num_layers * (1 + self.bidirectional)
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 1 + (self.mode == "LSTM")]
        return [inputs.new_zeros(count, inputs.shape[1], size) for size in sizes]

    def _along_time(self, inputs: Tensor, start: tuple[Tensor, ...], name: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Outputs `[time, examples, units]` of one layer in one direction, and its last states."""
        into, again = getattr(self, f"weight_ih{name}"), getattr(self, f"weight_hh{name}")
        bias, bias_again = (getattr(self, f"bias_{k}{name}") if self.bias else None for k in ("ih", "hh"))
        if self.mode != "GRU" and bias is not None:
            bias, bias_again = bias + bias_again, None
        projection = getattr(self, f"weight_hr{name}") if self.proj_size else None
        step, state, outputs = _STEPS[self.mode], start, list[Tensor]()
        for seen in functional.linear(inputs, into, bias).unbind(0):
            state = step(seen, functional.linear(state[0], again, bias_again), state)
            if projection is not None:
                state = (functional.linear(state[0], projection), *state[1:])
            outputs.append(state[0])
        return torch.stack(outputs), state


class _Lstm(_Recurrent, nn.LSTM): ...


class _Gru(_Recurrent, nn.GRU): ...


class _Rnn(_Recurrent, nn.RNN): ...


def _lstm_step(seen: Tensor, remembered: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    entering, forgetting, content, leaving = (seen + remembered).chunk(4, -1)
    cell = forgetting.sigmoid() * state[1] + entering.sigmoid() * content.tanh()
    return leaving.sigmoid() * cell.tanh(), cell


def _gru_step(seen: Tensor, remembered: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    reset, update, content = seen.chunk(3, -1)
    reset_again, update_again, content_again = remembered.chunk(3, -1)
    content = (content + (reset + reset_again).sigmoid() * content_again).tanh()
    return (content + (update + update_again).sigmoid() * (state[0] - content),)


_STEPS: dict[str, Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
    "LSTM": _lstm_step,
    "GRU": _gru_step,
    "RNN_TANH": lambda seen, remembered, _: ((seen + remembered).tanh(),),
    "RNN_RELU": lambda seen, remembered, _: ((seen + remembered).relu(),),
}
"""By PyTorch's name of the kind: the next states, from what the input and the state before bring to the gates."""
_OWN: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: _Lstm, nn.GRU: _Gru, nn.RNN: _Rnn}


def with_own_recurrence(module: nn.Module) -> nn.Module:
    """The module with these recurrent layers for PyTorch's, in place; parameters and attributes stay theirs.

    A subclass, which may do something else besides, is left as it is.
    """
    for layer in module.modules():
        if type(layer) in _OWN:
            layer.__class__ = _OWN[type(layer)]
    return module
