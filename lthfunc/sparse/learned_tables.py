"""Parameters of which each token of a sequence reads its own numbers, such as tables of places that are trained.

Which numbers these are is found by evaluating a graph with each number's place instead of the number itself.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from lthfunc.sparse.capture import operation_of
from lthfunc.trees.types import Params

#: Operations that give numbers other places and change none of them.
MOVING = frozenset({
    "alias", "contiguous", "clone", "flatten", "view", "reshape", "_unsafe_view", "unflatten", "transpose", "swapaxes",
    "t", "mT", "permute", "movedim", "unsqueeze", "squeeze", "select", "expand", "chunk", "split", "split_with_sizes",
    "unbind", "slice", "cat", "getitem",
})  # fmt: skip


def numbered(params: Params) -> Params:
    """Each parameter with its numbers' places in the flattened one, int64, in their place."""
    return {name: torch.arange(leaf.numel()).view(leaf.shape) for name, leaf in params.items()}


class Learned:
    """What of two graphs of a network depends on its parameters and on no token.

    params: the placeholders of parameters in the first graph. fixed: the nodes that depend on no token. twins: of each
    node the one in the second graph.
    """

    def __init__(
        self, graph: Graph, params: Container[Node], fixed: Container[Node], twins: Mapping[Node, Node]
    ) -> None:
        self._params = params
        self._twins = twins
        self._nodes: set[Node] = set()
        self._different: set[Node] = set()
        for node in graph.nodes:
            if node not in fixed:
                continue
            if node in params or any(each in self._nodes for each in node.all_input_nodes):
                self._nodes.add(node)
            if any(each in self._different for each in node.all_input_nodes) or not self._is_like_its_twin(node):
                self._different.add(node)

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def is_same(self, node: Node) -> bool:
        """Whether it is computed alike in both graphs."""
        return node not in self._different

    def leaf_of(self, node: Node) -> Node | None:
        """The one parameter of whose numbers a node is made, each of them unchanged; None where it is not."""
        if node in self._params:
            return node
        inputs, name = node.all_input_nodes, operation_of(node)
        if name == "embedding":
            weight, numbers, *settings = node.args
            if node.kwargs or numbers in self._nodes or any(setting not in (-1, False) for setting in settings):
                return None
            inputs = [weight]  # type: ignore[list-item]
        elif name not in MOVING:
            return None
        found = {self.leaf_of(each) if each in self._nodes else None for each in inputs}
        return found.pop() if len(found) == 1 else None

    def _is_like_its_twin(self, node: Node) -> bool:
        twin = self._twins[node]
        shapes = [[getattr(each, "shape", None) for each in _listed(one.meta.get("val"))] for one in (node, twin)]
        plain = [map_arg((one.args, one.kwargs), lambda _: None) for one in (node, twin)]
        # Tensors that forward makes are told apart by their values alone, of which nothing is known here.
        return shapes[0] == shapes[1] and plain[0] == plain[1] and node.op != "get_attr"


def _listed(found: object) -> list[object]:
    return list(found) if isinstance(found, (list, tuple)) else [found]
