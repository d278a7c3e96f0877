"""Record a function's tensor operations once, and replay them without the Python that led to them.

The nodes of `torch.fx` are typed as anything: their attributes depend on the operation.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from fewstep.core.context import recording_for_compiler
from fewstep.core.trees import leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import Graph, GraphModule

_aten: Any = torch.ops.aten
_RESHAPES = (_aten.view.default, _aten._unsafe_view.default)
_ALIASES = (_aten.alias.default, _aten.detach.default)
_ZEROS = (_aten.zeros.default, _aten.zeros_like.default)
_REARRANGEMENTS = (*_RESHAPES, _aten.expand.default, _aten.permute.default)
_WRITTEN_OUT: Any = cast("Any", torch)._decomp.get_decompositions(
    [_aten._log_softmax_backward_data, _aten.nll_loss_forward, _aten.nll_loss_backward]
)
"""What forward derivatives write out too: with the same operations, what both compute is computed once."""


def record(function: Callable[..., Any], *args: Any, for_compiler: bool = False) -> GraphModule:
    """The tensor operations that a function performs on these arguments, as a callable of the same arguments.

    Derivatives and maps of `torch.func` become plain operations. What remains is without those that only rename or
    reshape a tensor to what it is already, compute again what is there, or multiply by and add zeros; the others are
    untouched, so finite results are equal bit for bit, but for the sign of zeros. No two results share memory.

    Args:
        function: Depends on nothing but its arguments.
        *args: Trees of tensors.
        for_compiler: Whether the recording will be compiled, see `core.context`.

    Returns:
        The recorded operations; valid for arguments of the same structure, shapes, types and device, of any strides.
    """
    args = tree_map(_alias, args)  # a tensor that comes twice is recorded as two
    written_out = _WRITTEN_OUT if for_compiler else None
    devices = {leaf.device for leaf in leaves(args) if leaf.is_cuda}
    drawing_later = cast("Any", torch.random).fork_rng(devices)  # by the replay, not by the recording
    with recording_for_compiler(for_compiler), drawing_later:
        recorded = make_fx(functionalize(lambda *given: function(*given)), written_out)(*args)
    while sum(_simplify(node) for node in recorded.graph.nodes):
        recorded.graph.eliminate_dead_code()
    _compute_once(recorded.graph)
    _keep_results_apart(recorded.graph)
    _take_any_strides(recorded.graph)
    recorded.recompile()
    return recorded


def draws_random_numbers(recording: GraphModule) -> bool:
    """Whether a recording draws from torch's random streams, for dropout say."""
    return any(_draws(node) for node in recording.graph.nodes)


def _draws(node: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _alias(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


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


def _compute_once(graph: Graph) -> None:
    """Lead the users of an operation that stands in the graph before, on the same arguments, to that one."""
    known: dict[Any, Any] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output") or _draws(node):
            continue
        given = {name: value for name, value in node.kwargs.items() if name != "pin_memory" or value}
        key = (node.target, repr(node.args), repr(given))  # names of nodes are unique, and numbers tell their type
        if key in known:
            node.replace_all_uses_with(known[key])
        known.setdefault(key, node)
    graph.eliminate_dead_code()


def _keep_results_apart(graph: Any) -> None:
    """Copy a result that shares its memory with an earlier one: who scales one in place must not scale both."""
    output, seen = graph.output_node(), set[Any]()

    def apart(node: Any) -> Any:
        root = _memory_of(node)
        if root in seen:
            with graph.inserting_before(output):
                return graph.call_function(_aten.clone.default, (node,))
        seen.add(root)
        return node

    output.args = torch.fx.map_arg(output.args, apart)


def _take_any_strides(graph: Graph) -> None:
    """Let a reshape copy where it must: whether it was a view while recording depended on the strides seen there."""
    for node in graph.nodes:
        if node.target in _RESHAPES:
            node.target = _aten.reshape.default


def _memory_of(node: Any) -> Any:
    """The node whose memory the node's tensor is a view of."""
    if node.target is operator.getitem:  # of an operation with several results, which may be views
        return _memory_of(node.args[0]) if _is_view(node.args[0]) else node
    return _memory_of(node.args[0]) if _is_view(node) else node


def _is_view(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    says_so = schema is not None and schema.returns and schema.returns[0].alias_info is not None
    return bool(says_so) or node.target in _RESHAPES


def _equal_to(node: Any, source: Any) -> Any:
    """An earlier node whose tensor is the same as this node's, or None."""
    if node.target in _ALIASES:
        return source
    shape = _shape(node)
    if shape is None:
        return None
    if node.target in (*_RESHAPES, _aten.expand.default) and shape == _shape(source):
        return source
    if node.target is _aten.transpose.int and source.target is _aten.transpose.int:
        swapped = [{axis % len(shape) for axis in n.args[1:]} for n in (node, source)]
        return source.args[0] if swapped[0] == swapped[1] else None
    if node.target is _aten.add.Tensor and not node.kwargs:
        for term, other in (node.args, reversed(node.args)):
            is_input = getattr(term, "op", None) == "placeholder"  # it stays the caller's: a result must not be it
            if _is_zero(other) and _layout(node) == _layout(term) and not is_input:
                return term
    return None


def _is_zero(node: Any) -> bool:
    """Whether the node is zero whatever comes in: derivatives along what does not change, such as the images."""
    if not hasattr(node, "target"):  # a number
        return False
    if node.target in _ZEROS:
        return True
    if node.target in _REARRANGEMENTS:
        return _is_zero(node.args[0])
    if node.target is _aten.convolution.default and node.args[2] is None:
        return _is_zero(node.args[0]) or _is_zero(node.args[1])
    if node.target is operator.getitem and node.args[0].target is _aten.convolution_backward.default:
        gradient, inputs, weight = node.args[0].args[:3]
        return _is_zero(gradient) or _is_zero((weight, inputs, gradient)[node.args[1]])
    return False


def _shape(node: Any) -> tuple[int, ...] | None:
    """Of the node's tensor, as seen while recording; None where it was not seen, or is no single tensor."""
    layout = _layout(node)
    return None if layout is None else layout[0]


def _layout(node: Any) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype] | None:
    """Shape, strides and type, likewise."""
    seen: Any = getattr(node, "meta", {}).get("tensor_meta")
    return (tuple(seen.shape), tuple(seen.stride), seen.dtype) if hasattr(seen, "stride") else None
