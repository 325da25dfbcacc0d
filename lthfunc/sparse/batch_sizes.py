"""A graph for any batch size, from two traces: numbers that differ between them depend on the size."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from lthfunc.errors import UserError
from lthfunc.sparse.capture import OTHER_BATCH, TRACED_BATCH, Captured
from lthfunc.trees.ops import same_bits


def size_free(pairs: Callable[[], Mapping[Node, Node]]) -> Callable[[Node], bool]:
    """Tells of an operation whether none of its numbers depends on the batch size. pairs: each with that of a trace on
    another size, which is asked for where it is needed."""

    def plain(node: Node) -> Any:
        return torch.fx.node.map_arg((node.args, node.kwargs), lambda each: None)

    return lambda node: node in pairs() and plain(node) == plain(pairs()[node])


def pairs_of(captured: Captured) -> Callable[[], Mapping[Node, Node]]:
    """For `size_free`: none where the graph cannot be traced on another size."""

    @functools.cache
    def pairs() -> Mapping[Node, Node]:
        try:
            return (twins(captured, captured.other()) if captured.other else None) or {}
        except UserError:
            return {}

    return pairs


def twins(one: Captured, other: Captured) -> dict[Node, Node] | None:
    """Each operation of a trace with that of the other one; None where both are not the same operations."""
    ours, theirs = list(one.graph.nodes), list(other.graph.nodes)
    both = (*one.constants.values(), *other.constants.values())
    same = all(isinstance(each, torch.Tensor) for each in both) and same_bits(one.constants, other.constants)
    return dict(zip(ours, theirs, strict=True)) if same and len(ours) == len(theirs) else None


class Resizing(NamedTuple):
    """Writes operations of a trace into a graph for any batch size.

    graph: the new one. new: nodes of the trace -> those of the graph. size: gives the node of the batch size. device:
    gives that of the inputs' device, or None where it stays the trace's. varies: the error for an operation whose
    numbers are no function of the batch size that is known here.
    """

    graph: Graph
    new: Mapping[Node, Node]
    size: Callable[[], Node]
    device: Callable[[], Node] | None
    varies: Callable[[Node], UserError]

    def resize(self, copy: Node, node: Node, twin: Node) -> None:
        """Replace the numbers of a copied operation that depend on the batch size by nodes that compute them."""
        if (node.op, str(node.target)) != (twin.op, str(twin.target)):
            raise self.varies(node)
        if copy.op != "call_function":
            return
        with self.graph.inserting_before(copy):
            given = self._sized(node, (node.args, node.kwargs), (twin.args, twin.kwargs))
        copy.args, copy.kwargs = given

    def _sized(self, node: Node, ours: Any, theirs: Any) -> Any:
        if isinstance(ours, Node):
            return self.new[ours]
        if isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
            return type(ours)(self._sized(node, *pair) for pair in zip(ours, theirs, strict=True))
        if isinstance(ours, dict) and ours.keys() == theirs.keys():
            return {key: self._sized(node, value, theirs[key]) for key, value in ours.items()}
        if isinstance(ours, slice) and isinstance(theirs, slice):
            parts = ((ours.start, theirs.start), (ours.stop, theirs.stop), (ours.step, theirs.step))
            return slice(*(self._sized(node, *pair) for pair in parts))
        if ours is theirs or ours == theirs or (ours != ours and theirs != theirs):
            if self.device is None or not isinstance(ours, torch.device) or ours.type != "cpu":
                return ours
            return self.device()
        if type(ours) is not int or type(theirs) is not int:
            raise self.varies(node)
        times, rest = divmod(theirs - ours, OTHER_BATCH - TRACED_BATCH)
        if rest == 0:
            plus = ours - times * TRACED_BATCH
            size = self.size()
            if times != 1:
                size = self.graph.call_function(operator.mul, (size, times))
            return self.graph.call_function(operator.add, (size, plus)) if plus else size
        sizes = TRACED_BATCH, OTHER_BATCH
        by = next((by for by in range(2, TRACED_BATCH + 1) if (sizes[0] // by, sizes[1] // by) == (ours, theirs)), 0)
        if not by:
            raise self.varies(node)
        return self.graph.call_function(operator.floordiv, (self.size(), by))
