"""Arithmetic on trees: dicts, tuples, lists and NamedTuples whose leaves are tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


def _is_dict(tree: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(tree, dict)


def _is_sequence(tree: Any) -> TypeGuard[tuple[Any, ...] | list[Any]]:
    return isinstance(tree, tuple | list)


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply `function` to the leaves that stand at the same place in every tree.

    Args:
        function: Takes one leaf of each tree.
        tree: Gives the structure. Leaves are whatever is not a dict, tuple or list.
        *others: Trees of the same structure.

    Returns:
        A tree of the same structure.
    """
    if isinstance(tree, Tensor):  # first, because this runs in every iteration
        return function(tree, *others)
    if _is_dict(tree):
        return {key: tree_map(function, branch, *(o[key] for o in others)) for key, branch in tree.items()}
    if _is_sequence(tree):
        mapped = [tree_map(function, *same) for same in zip(tree, *others, strict=True)]
        kind: Any = type(tree)
        return kind(*mapped) if hasattr(tree, "_fields") else kind(mapped)
    return function(tree, *others)


def leaves(tree: Any) -> list[Tensor]:
    """Every tensor of the tree, in the order of its keys and fields."""
    found: list[Tensor] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):  # first, because this runs in every iteration
        found.append(tree)
    elif _is_dict(tree):
        for branch in tree.values():
            _collect(branch, found)
    elif _is_sequence(tree):
        for branch in tree:
            _collect(branch, found)


def mean(tree: Any) -> Any:
    """The mean over the leading axis of every leaf."""

    def leaf_mean(leaf: Tensor) -> Tensor:
        return leaf.mean(0)

    return tree_map(leaf_mean, tree)


def subtract(left: Any, right: Any) -> Any:
    """`left - right`, leaf by leaf."""
    return tree_map(torch.sub, left, right)


def detach(tree: Any) -> Any:
    """The same values as constants: no gradient flows through the result."""
    return tree_map(torch.detach, tree)


def to_device(tree: Any, device: torch.device) -> Any:
    """The same values on a device; other leaves than tensors stay as they are."""

    def moved(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return tree_map(moved, tree)


def index(tree: Any, i: int) -> Any:
    """Entry `i` of the leading axis of every leaf: one task of a meta-batch."""

    def entry(leaf: Any) -> Any:
        return leaf[i] if isinstance(leaf, Tensor) else leaf

    return tree_map(entry, tree)


def part(tree: Any, first: int, end: int) -> Any:
    """Entries `first` up to, not including, `end` of the leading axis of every leaf: some tasks of a meta-batch."""

    def entries(leaf: Any) -> Any:
        return leaf[first:end] if isinstance(leaf, Tensor) else leaf

    return tree_map(entries, tree)


def chunks(tree: Any, size: int | None) -> list[Any]:
    """The tree in pieces of at most `size` along the leading axis that every leaf has; None: in one piece."""
    if size is None or size >= length(tree):
        return [tree]
    return [part(tree, start, start + size) for start in range(0, length(tree), size)]


def stack(trees: list[Any]) -> Any:
    """The trees as one, with a new leading axis on every leaf."""
    return tree_map(lambda *same: torch.stack(same) if isinstance(same[0], Tensor) else same[0], *trees)


def concatenate(trees: list[Any]) -> Any:
    """The trees as one, joined along the leading axis that every leaf has."""
    if len(trees) == 1:
        return trees[0]
    return tree_map(lambda *same: torch.cat(same) if isinstance(same[0], Tensor) else same[0], *trees)


def length(tree: Any) -> int:
    """The size of the leading axis, which every leaf shares: the number of tasks, or of examples."""
    return leaves(tree)[0].shape[0]


def signature(tree: Any) -> Any:
    """All of a tree but the numbers in its tensors, as a key for a dict."""
    if isinstance(tree, Tensor):
        return (tree.shape, tree.dtype, tree.device)
    if _is_dict(tree):
        return tuple([(key, signature(branch)) for key, branch in tree.items()])
    if _is_sequence(tree):
        return (type(tree), *[signature(branch) for branch in tree])
    return repr(tree)


def flatten(tree: Any) -> Tensor:
    """All leaves as one vector, in the order of `leaves`."""
    return torch.cat([leaf.reshape(-1) for leaf in leaves(tree)])


def unflatten(vector: Tensor, like: Any) -> Any:
    """The tree whose `flatten` is `vector`, shaped like another."""
    parts = iter(torch.split(vector, [leaf.numel() for leaf in leaves(like)]))

    def shaped(leaf: Tensor) -> Tensor:
        return next(parts).view(leaf.shape)

    return tree_map(shaped, like)
