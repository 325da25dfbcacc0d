"""Linear layers that a network writes as products with a parameter's transpose, as it often does with tied ones."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch.fx import Graph, Node

_aten = torch.ops.aten
_TURNS = {_aten.numpy_T.default, _aten.t.default, _aten.mT.default}


def name_linear_layers(graph: Graph, leaves: Container[Node]) -> None:
    """Have each ``x @ weight.T`` of a graph be ``linear(x, weight)``. leaves: nodes of parameters and buffers."""
    for node in graph.nodes:
        if node.target is not _aten.matmul.default:
            continue
        x, turned = node.args
        weight = turned_from(turned)
        if weight in leaves and x not in leaves and x.meta["val"].ndim > 1:
            node.target, node.args = _aten.linear.default, (x, weight)


def turned_from(node: Any) -> Node | None:
    """The matrix that a node transposes, if it does."""
    given = node.args[0] if node.op == "call_function" else None
    if not isinstance(given, Node) or getattr(given.meta["val"], "ndim", 0) != 2:
        return None
    swaps = node.target is _aten.transpose.int and {dim % 2 for dim in node.args[1:]} == {0, 1}
    permutes = node.target is _aten.permute.default and [dim % 2 for dim in node.args[1]] == [1, 0]
    return given if node.target in _TURNS or swaps or permutes else None
