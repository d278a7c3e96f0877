from __future__ import annotations

import pytest
import torch

from fewstep.core.trees import (
    concatenate,
    detach,
    index,
    leaves,
    length,
    signature,
    stack,
    subtract,
    to_device,
    tree_map,
)
from fewstep.core.types import Batch, MetaParams, Task

from .problems import assert_same, draw


def tree(seed: int = 0) -> Task:
    """A `Task` whose leaves lead with an axis of 3."""
    inputs = {"image": draw(3, 2, seed=seed), "mask": (draw(3, 1, seed=seed + 1), [draw(3, seed=seed + 2)])}
    return Task(Batch(inputs, draw(3, 4, seed=seed + 3)), Batch(draw(3, 5, seed=seed + 4), None))


def test_mapping_keeps_dicts_tuples_lists_and_named_tuples() -> None:
    doubled = tree_map(lambda leaf: leaf if leaf is None else 2 * leaf, tree())
    assert isinstance(doubled, Task)
    assert isinstance(doubled.support, Batch)
    image, (mask, rest) = doubled.support.inputs.values()
    assert isinstance(doubled.support.inputs["mask"], tuple)
    assert isinstance(rest, list)
    assert_same([image, mask, rest[0]], [2 * draw(3, 2), 2 * draw(3, 1, seed=1), 2 * draw(3, seed=2)])
    assert doubled.query.targets is None


def test_mapping_several_trees_takes_the_leaves_of_one_place_together() -> None:
    left, right = {"a": 1, "b": (2, [3])}, {"b": (20, [30]), "a": 10}
    assert tree_map(lambda x, y: x + y, left, right) == {"a": 11, "b": (22, [33])}


def test_trees_of_different_structure_are_not_mapped_together() -> None:
    with pytest.raises(ValueError, match="shorter"):
        tree_map(lambda x, y: x, (1, 2), (1,))
    with pytest.raises(KeyError):
        tree_map(lambda x, y: x, {"a": 1}, {"b": 1})


def test_leaves_are_the_tensors_in_order() -> None:
    shapes = [tuple(leaf.shape) for leaf in leaves(tree())]
    assert shapes == [(3, 2), (3, 1), (3,), (3, 4), (3, 5)]


def test_subtract_by_hand() -> None:
    left = MetaParams({"w": torch.tensor([3.0, 1.0])}, {"lr": torch.tensor(0.5)})
    right = MetaParams({"w": torch.tensor([1.0, 4.0])}, {"lr": torch.tensor(0.25)})
    expected = MetaParams({"w": torch.tensor([2.0, -3.0])}, {"lr": torch.tensor(0.25)})
    assert_same(subtract(left, right), expected)


def test_detached_leaves_carry_no_gradient() -> None:
    parameter = draw(2).requires_grad_()
    constant = detach({"w": parameter * 2})["w"]
    assert not constant.requires_grad
    assert_same(constant, 2 * draw(2))


def test_moving_to_a_device_leaves_what_is_no_tensor() -> None:
    moved = to_device(tree(), torch.device("meta"))
    assert all(leaf.is_meta for leaf in leaves(moved))
    assert moved.query.targets is None


def test_index_takes_one_task_and_stack_puts_tasks_together() -> None:
    whole = tree()
    tasks = [index(whole, i) for i in range(3)]
    assert [tuple(leaf.shape) for leaf in leaves(tasks[0])] == [(2,), (1,), (), (4,), (5,)]
    assert_same(list(leaves(stack(tasks))), list(leaves(whole)), atol=0, rtol=0)
    assert isinstance(stack(tasks), Task)
    assert stack(tasks).query.targets is None


def test_concatenate_joins_along_the_leading_axis() -> None:
    left, right = Batch(draw(3, 2), draw(3)), Batch(draw(1, 2, seed=1), draw(1, seed=1))
    joined = concatenate([left, right])
    assert_same(joined, Batch(torch.cat([left.inputs, right.inputs]), torch.cat([left.targets, right.targets])))
    assert concatenate([left]) is left


def test_length_is_the_size_of_the_leading_axis() -> None:
    assert length(tree()) == 3
    assert length(index(tree(), slice(0, 0))) == 0


def test_a_signature_tells_apart_all_but_the_numbers() -> None:
    trees = [
        {"x": draw(2)},
        {"y": draw(2)},
        {"x": draw(3)},
        {"x": draw(2).float()},
        {"x": draw(2, 1)},
        {"x": (draw(2),)},
        {"x": [draw(2)]},
        {"x": Batch(draw(2), None)},
        {"x": Batch(draw(2), 1)},
        {"x": draw(2), "y": {}},
        {"x": draw(2), "y": ()},
    ]
    assert len({signature(tree) for tree in trees}) == len(trees)
    assert signature({"x": Batch(draw(2), None)}) == signature({"x": Batch(draw(2, seed=1), None)})
