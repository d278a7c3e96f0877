"""Split a function in two stages, where some of its arguments are known long before the others.

An inner step needs the parameters and the support set. Its derivative needs the outer gradient, too, which exists only
after all later steps. `in_stages` takes one function that computes both, records its operations, and divides them: the
first stage computes the step and keeps the results of its products; the second computes the derivative from them.

    first, second = in_stages(step_and_derivative, early, late)
    after, kept = first(early)          # now
    ...                                 # the other steps, there and back
    derivative = second(early, kept, late)
"""

from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch.fx import Graph, GraphModule

from fewstep.core.products import PRODUCTS
from fewstep.core.running import RECORDINGS, Run, plain
from fewstep.core.tracing import record
from fewstep.core.trees import index, leaves, signature, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from torch.fx import Node

    from fewstep.core.types import OverTasks

_TENSOR = object()


def in_stages(
    function: Callable[[Any, Any], tuple[Any, Any]], early: Any, late: Any, run: Run = plain
) -> tuple[Callable[[Any], tuple[Any, list[Tensor]]], Callable[[Any, list[Tensor], Any], Any]]:
    """Split a function of early and late arguments into what its first result takes, and the rest.

    Kept from the first stage for the second are the results of products, which are dear to compute and small to keep,
    and random numbers. The passes over memory between products are made again: compiled, they are almost free.

    Args:
        function: Gives two results, the first from the early arguments alone. It depends on nothing but its arguments.
        early: Tree of tensors.
        late: Tree of tensors.
        run: How both stages run.

    Returns:
        `first(early)`, which gives the first result and what is kept, and `second(early, kept, late)`, which gives the
        second; for arguments of the same structure, shapes, types and device.
    """
    sizes: list[int] = []
    templates: list[Any] = []

    def flat(*given: Tensor) -> list[Tensor]:
        source = iter(given)
        results = function(_filled(_template(early), source), _filled(_template(late), source))
        templates[:] = map(_template, results)
        sizes[:] = [len(leaves(result)) for result in results]
        return [*leaves(results[0]), *leaves(results[1])]

    recorded = record(flat, *leaves(early), *leaves(late), for_compiler=True)
    (first_like, second_like), (size, _) = templates, sizes
    nodes: Any = recorded.graph
    inputs = [node for node in nodes.nodes if node.op == "placeholder"]
    outputs = list(nodes.output_node().args[0])
    sooner, later = inputs[: len(leaves(early))], inputs[len(leaves(early)) :]
    kept_nodes = _kept(recorded.graph, sooner, outputs[size:])
    now = run(_part(recorded, sooner, outputs[:size] + kept_nodes))
    then = run(_part(recorded, sooner + kept_nodes + later, outputs[size:]))

    def first(early: Any) -> tuple[Any, list[Tensor]]:
        results = now(*leaves(early))
        return _filled(first_like, iter(results[:size])), list(results[size:])

    def second(early: Any, kept: list[Tensor], late: Any) -> Any:
        return _filled(second_like, iter(then(*leaves(early), *kept, *leaves(late))))

    return first, second


@final
class Repeated:
    """A function of one task that is mapped over the same tasks many times: what does not change is computed once.

    What is kept, the results of products, is kept of all tasks at once.
    Its operations are recorded once for each size of its arguments, and where that cannot be done it runs as it is.

    Args:
        function: Of what all tasks share, one task, and what is new each time. It depends on nothing but these.
    """

    def __init__(self, function: Callable[[Any, Any, Any], Any]) -> None:
        self._function = function
        self._known: dict[Any, tuple[Any, Any]] = {}

    def over(self, over_tasks: OverTasks, shared: Any, tasks: Any, like: Any) -> Callable[[Any], Any]:
        """Map it over tasks, for every argument to come.

        Args:
            over_tasks: How the map over tasks is executed.
            shared: What does not change, of all tasks.
            tasks: What does not change, of each.
            like: Shaped as what is new each time.

        Returns:
            A function of what is new, whose results lead with a `tasks` axis.
        """
        first, second = self._stages(shared, index(tasks, 0), like)
        kept, mapped = over_tasks(first)(shared, tasks), over_tasks(second)
        return lambda new: mapped((shared, new), (tasks, kept))

    def _stages(self, shared: Any, task: Any, new: Any) -> tuple[Any, Any]:
        key = signature((shared, task, new))
        if key not in self._known:
            if len(self._known) == RECORDINGS:
                return _nothing, self._whole
            self._known[key] = self._split(shared, task, new)
        return self._known[key]

    def _split(self, shared: Any, task: Any, new: Any) -> tuple[Any, Any]:
        def of_both(early: tuple[Any, Any], new: Any) -> tuple[Any, Any]:
            return (), self._function(*early, new)

        try:
            first, second = in_stages(of_both, (shared, task), new)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a branch on a tensor, say; a fault of the function's own comes again
            return _nothing, self._whole
        return partial(_early, first), partial(_late, second)

    def _whole(self, shared: tuple[Any, Any], task: tuple[Any, Any]) -> Any:
        return self._function(shared[0], task[0], shared[1])


def _nothing(*_: Any) -> list[Tensor]:
    return []


def _early(first: Any, shared: Any, task: Any) -> list[Tensor]:
    return first((shared, task))[1]


def _late(second: Any, shared: tuple[Any, Any], task: tuple[Any, list[Tensor]]) -> Any:
    return second((shared[0], task[0]), task[1], shared[1])


def _kept(graph: Graph, early: list[Node], results: list[Node]) -> list[Node]:
    """Of what the early arguments determine, the products and random numbers nearest to the results."""
    determined = set(early)
    for node in graph.nodes:
        if node.op in ("call_function", "get_attr") and determined.issuperset(node.all_input_nodes):
            determined.add(node)
    needed = _leading_to(results, stop=lambda node: node in determined and _is_dear(node))
    return [node for node in graph.nodes if node in needed and node in determined and _is_dear(node)]


def _is_dear(node: Node) -> bool:
    source = node.args[0] if node.target is operator.getitem else node
    target: Any = getattr(source, "target", None)
    return target in PRODUCTS or torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _part(recorded: GraphModule, inputs: list[Node], outputs: list[Node]) -> GraphModule:
    """The recording from some of its nodes to others."""
    graph, copies = Graph(), dict[Any, Any]()
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    needed = _leading_to(outputs, stop=lambda node: node in copies)
    for node in recorded.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in outputs])
    return GraphModule(recorded, graph)


def _leading_to(results: list[Node], stop: Callable[[Node], bool]) -> set[Node]:
    """The nodes that results are computed from, themselves among them, back to those where to stop."""
    found, waiting = set[Any](), list(results)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [] if stop(node) else node.all_input_nodes
    return found


def _template(tree: Any) -> Any:
    """The tree with places for its tensors."""

    def place(leaf: Any) -> Any:
        return _TENSOR if isinstance(leaf, torch.Tensor) else leaf

    return tree_map(place, tree)


def _filled(template: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree with the next tensors in its places, in the order of `leaves`."""

    def tensor(leaf: Any) -> Any:
        return next(tensors) if leaf is _TENSOR else leaf

    return tree_map(tensor, template)
