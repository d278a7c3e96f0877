"""Arithmetic on trees: dicts, tuples, lists and NamedTuples whose leaves are tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply `function` to the leaves that stand at the same place in every tree.

    Args:
        function: Takes one leaf of each tree.
        tree: Gives the structure. Leaves are whatever is not a dict, tuple or list.
        *others: Trees of the same structure.

    Returns:
        A tree of the same structure.
    """
    if isinstance(tree, dict):
        return {key: tree_map(function, tree[key], *(o[key] for o in others)) for key in tree}
    if isinstance(tree, tuple | list):
        mapped = [tree_map(function, *leaves) for leaves in zip(tree, *others, strict=True)]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    return function(tree, *others)


def leaves(tree: Any) -> Iterator[Tensor]:
    """Every tensor of the tree, in the order of its keys and fields."""
    if isinstance(tree, dict):
        for branch in tree.values():
            yield from leaves(branch)
    elif isinstance(tree, tuple | list):
        for branch in tree:
            yield from leaves(branch)
    elif isinstance(tree, Tensor):
        yield tree


def subtract(left: Any, right: Any) -> Any:
    """`left - right`, leaf by leaf."""
    return tree_map(torch.sub, left, right)


def detach(tree: Any) -> Any:
    """The same values as constants: no gradient flows through the result."""
    return tree_map(lambda leaf: leaf.detach(), tree)


def to_device(tree: Any, device: torch.device) -> Any:
    """The same values on a device; other leaves than tensors stay as they are."""

    def moved(leaf: Any) -> Any:
        return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

    return tree_map(moved, tree)


def index(tree: Any, i: int) -> Any:
    """Entry `i` of the leading axis of every leaf: one task of a meta-batch."""
    return tree_map(lambda leaf: leaf[i] if isinstance(leaf, Tensor) else leaf, tree)


def stack(trees: list[Any]) -> Any:
    """The trees as one, with a new leading axis on every leaf."""
    return tree_map(lambda *same: torch.stack(same) if isinstance(same[0], Tensor) else same[0], *trees)


def concatenate(trees: list[Any]) -> Any:
    """The trees as one, joined along the leading axis that every leaf has."""
    return trees[0] if len(trees) == 1 else tree_map(lambda *same: torch.cat(same), *trees)


def length(tree: Any) -> int:
    """The size of the leading axis, which every leaf shares: the number of tasks, or of examples."""
    return next(leaves(tree)).shape[0]


def signature(tree: Any) -> Any:
    """All of a tree but the numbers in its tensors, as a key for a dict."""
    if isinstance(tree, dict):
        return tuple((key, signature(branch)) for key, branch in tree.items())
    if isinstance(tree, tuple | list):
        return (type(tree), *(signature(branch) for branch in tree))
    return (tree.shape, tree.dtype, tree.device) if isinstance(tree, Tensor) else repr(tree)


def is_finite(tree: Any) -> bool:
    """Whether every number of every leaf is finite. One pass: an infinity or NaN survives the sum."""
    return all(bool(torch.isfinite(leaf.sum())) or bool(leaf.isfinite().all()) for leaf in leaves(tree))


def norm(tree: Any) -> Tensor:
    """Euclidean norm over all leaves together, as a scalar."""
    return torch.stack([leaf.detach().float().square().sum() for leaf in leaves(tree)]).sum().sqrt()
