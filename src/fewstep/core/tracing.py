"""Record a function's tensor operations once, and replay them without the Python that led to them.

The nodes of `torch.fx` are typed as anything: their attributes depend on the operation.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import GraphModule

_aten: Any = torch.ops.aten
_RESHAPES = (_aten.view.default, _aten._unsafe_view.default)
_ALIASES = (_aten.alias.default, _aten.detach.default)
_for_compiler: ContextVar[bool] = ContextVar("recording for a compiler", default=False)


def is_recording_for_compiler() -> bool:
    """Whether operations are being recorded to be compiled: then many small ones, which fuse, beat one large."""
    return _for_compiler.get()


def record(function: Callable[..., Any], *args: Any, for_compiler: bool = False) -> GraphModule:
    """The tensor operations that a function performs on these arguments, as a callable of the same arguments.

    Derivatives and maps of `torch.func` become plain operations. What remains is without those that only rename or
    reshape a tensor to what it is already; the others are untouched, so results are equal bit for bit.

    Args:
        function: Depends on nothing but its arguments.
        *args: Trees of tensors.
        for_compiler: Whether the recording will be compiled, see `is_recording_for_compiler`.

    Returns:
        The recorded operations; valid for arguments of the same structure, shapes, types and device.
    """
    token = _for_compiler.set(for_compiler)
    try:
        recorded = make_fx(lambda *given: function(*given))(*args)  # it reads the signature of what it is given
    finally:
        _for_compiler.reset(token)
    while sum(_simplify(node) for node in recorded.graph.nodes):
        recorded.graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


def _simplify(node: Any) -> bool:
    """Lead the users of a node that does nothing past it; whether anything changed."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    if source is None or not hasattr(source, "op") or not node.users:
        return False
    past = _equal_to(node, source)
    if past is not None:
        node.replace_all_uses_with(past)
        return True
    if node.target in _RESHAPES and source.target in _RESHAPES:
        node.args = (source.args[0], node.args[1])
        return True
    return False


def _equal_to(node: Any, source: Any) -> Any:
    """An earlier node whose tensor is the same as this node's, or None."""
    if node.target in _ALIASES:
        return source
    shape = _shape(node)
    if shape is not None and node.target in (*_RESHAPES, _aten.expand.default) and shape == _shape(source):
        return source
    if shape is not None and node.target is _aten.transpose.int and source.target is _aten.transpose.int:
        swapped = [{axis % len(shape) for axis in n.args[1:]} for n in (node, source)]
        return source.args[0] if swapped[0] == swapped[1] else None
    return None


def _shape(node: Any) -> tuple[int, ...] | None:
    """Of the node's tensor, as seen while recording; None where it was not seen, or is no single tensor."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return None if shape is None else tuple(shape)
