"""Recurrent layers written out, beside PyTorch's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from fewstep.core.context import recording_for_compiler, vmapped
from fewstep.core.recurrence import with_own_recurrence

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several layers": {"num_layers": 3},
    "both directions": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True, "bidirectional": True},
    "dropout": {"dropout": 0.5, "num_layers": 2},
}
LAYERS = [(kind, options) for kind in (nn.LSTM, nn.GRU, nn.RNN) for options in OPTIONS.values()]
LAYERS += [(nn.RNN, {"nonlinearity": "relu"}), (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True})]


def layers(kind: type[nn.RNNBase], options: dict[str, Any]) -> tuple[nn.RNNBase, nn.Module]:
    torch.manual_seed(0)
    theirs = kind(4, 5, **options).double().eval()
    return theirs, with_own_recurrence(copy.deepcopy(theirs))


def flat(results: Any) -> list[torch.Tensor]:
    outputs, last = results
    return [outputs, *(last if isinstance(last, tuple) else [last])]


@pytest.mark.parametrize(("kind", "options"), LAYERS)
@pytest.mark.parametrize("shape", [(6, 3, 4), (6, 4)], ids=["examples", "one example"])
def test_written_out_layers_compute_what_pytorch_does(
    kind: type[nn.RNNBase], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    theirs, ours = layers(kind, options)
    inputs = torch.randn(shape, dtype=torch.float64)
    expected = theirs(inputs)
    with recording_for_compiler(True):
        torch.testing.assert_close(flat(ours(inputs)), flat(expected))
        torch.testing.assert_close(flat(ours(inputs, expected[1])), flat(theirs(inputs, expected[1])))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_all_tasks_at_once_give_what_each_gives_alone(kind: type[nn.RNNBase]) -> None:
    theirs, ours = layers(kind, {"num_layers": 2})
    inputs = torch.randn(5, 6, 3, 4, dtype=torch.float64)
    together = flat(vmapped(ours)(inputs))
    torch.testing.assert_close(
        together, [torch.stack(each) for each in zip(*(flat(theirs(x)) for x in inputs), strict=True)]
    )


def test_dropout_between_layers_is_drawn_in_training_only() -> None:
    _, ours = layers(nn.LSTM, OPTIONS["dropout"])
    inputs = torch.randn(6, 3, 4, dtype=torch.float64)
    with recording_for_compiler(True):
        assert torch.equal(ours(inputs)[0], ours(inputs)[0])
        ours.train()
        assert not torch.equal(ours(inputs)[0], ours(inputs)[0])


def test_packed_sequences_run_in_pytorchs_own_layer() -> None:
    theirs, ours = layers(nn.GRU, {})
    packed = pack_padded_sequence(torch.randn(6, 2, 4, dtype=torch.float64), torch.tensor([6, 3]))
    with recording_for_compiler(True):
        assert torch.equal(ours(packed)[0].data, theirs(packed)[0].data)


def test_attributes_and_parameter_names_stay() -> None:
    theirs, ours = layers(nn.LSTM, {})
    assert isinstance(ours, nn.LSTM)
    assert ours.hidden_size == 5
    assert list(ours.state_dict()) == list(theirs.state_dict())
