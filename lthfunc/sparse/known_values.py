"""What of a network's graph depends on no input, and its values."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from lthfunc.sparse.capture import Captured, operation_of
from lthfunc.sparse.lowerings.interface import argument
from lthfunc.training.engines.aliases import changed_by
from lthfunc.trees.types import Buffers, Params

_ATTENTION, _SEEDED = "scaled_dot_product_attention", torch.Tag.nondeterministic_seeded


def dropped_of(node: Node) -> float:
    """Which share an operation drops, of its values or of attention's weights."""
    args: Any = node.args
    if operation_of(node) == "dropout":
        return float(args[1]) if args[2] else 0.0
    if operation_of(node) == _ATTENTION:
        return float(argument(args, 4, node.kwargs.get("dropout_p", 0.0)))
    return 0.0


def _draws(node: Node) -> bool:
    if operation_of(node) in ("dropout", _ATTENTION):
        return dropped_of(node) > 0
    return _SEEDED in getattr(node.target, "tags", ())


class Known:
    """What of a graph depends on no token, and is drawn nowhere. params, buffers: of the network."""

    def __init__(self, captured: Captured, params: Params, buffers: Buffers) -> None:
        self.captured = captured
        self.params = {name: params[name] for name in captured.params}
        self.buffers = {name: buffers[name] for name in captured.buffers}
        *leaves, _ = captured.placeholders
        self._values: dict[Node, Any] = dict(zip(leaves, (*self.params.values(), *self.buffers.values()), strict=True))
        self._fixed: set[Node] = set(leaves)
        for node in captured.graph.nodes:
            computed = node.op == "get_attr" or (node.op == "call_function" and not _draws(node))
            if computed and all(each in self._fixed for each in node.all_input_nodes) and not changed_by(node):
                self._fixed.add(node)

    def __contains__(self, node: object) -> bool:
        return node in self._fixed

    def value(self, node: Node) -> Any:
        """Of such a node."""
        if node not in self._values:
            args, kwargs = map_arg((node.args, node.kwargs), self.value)
            constant = node.op == "get_attr"
            self._values[node] = (
                self.captured.constants[str(node.target)] if constant else node.target(*args, **kwargs)  # type: ignore[operator]
            )
        return self._values[node]


def leaves_of(node: Node) -> set[Node]:
    """The placeholders that a node depends on."""
    found, left = set[Node](), [node]
    while left:
        each = left.pop()
        left += [before for before in each.all_input_nodes if before not in found]
        found.add(each)
    return {each for each in found if each.op == "placeholder"}
