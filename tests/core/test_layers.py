"""Parameters by layer, and how far layers move."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch

from fewstep.core.layers import ROOT, by_layer, escaped, movement


def test_parameters_belong_to_the_module_that_holds_them():
    names = ["scale", "body.0.conv.weight", "body.0.conv.bias", "head.weight"]
    assert by_layer(names) == {
        ROOT: ("scale",),
        "body.0.conv": ("body.0.conv.weight", "body.0.conv.bias"),
        "head": ("head.weight",),
    }


def test_patterns_match_their_names_and_no_others():
    [pattern] = escaped(["odd[0]*.weight"])
    assert fnmatchcase("odd[0]*.weight", pattern)
    assert not fnmatchcase("odd0x.weight", pattern)


def test_movement_by_hand():
    path = [{"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}]
    path += [{"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([[5.0]])}]
    moved = movement(path, ["a", "b"])
    torch.testing.assert_close(moved["relative"], torch.tensor([0.0, 5**0.5 / 5]))
    torch.testing.assert_close(moved["rms"], torch.tensor([0.0, (5 / 3) ** 0.5]))


def test_movement_away_from_zero_is_infinite_and_of_what_stays_zero():
    zero = {"a": torch.zeros(2)}
    assert movement([zero, {"a": torch.ones(2)}], ["a"])["relative"].tolist() == [0.0, torch.inf]
    assert movement([zero, zero], ["a"])["relative"].tolist() == [0.0, 0.0]
