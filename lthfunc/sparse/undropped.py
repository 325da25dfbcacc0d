"""A network without what it drops at random, so that a program of it can be compared with its graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from lthfunc.sparse.capture import Captured, operation_of
from lthfunc.trees.types import Buffers, Params


def undropped(captured: Captured) -> Captured:
    """The same graph, of which no operation drops anything."""
    graph, at = Graph(), dict[Node, Node]()
    graph.output(graph.graph_copy(captured.graph, at))
    for node in graph.nodes:
        name = operation_of(node) if node.op == "call_function" else ""
        if name == "dropout":
            node.args, node.kwargs = (*node.args[:2], False), {}
        elif name == "scaled_dot_product_attention":
            node.args = (*node.args[:4], *(0.0 for _ in node.args[4:5]), *node.args[5:])
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "dropout_p"}
    return captured._replace(graph=graph, other=None)


def outputs_of_graph(captured: Captured, params: Params, buffers: Buffers, x: Tensor) -> list[Any]:
    """What a graph gives for a batch of as many examples as it was traced on."""
    leaves = [params[name] for name in captured.params] + [buffers[name].clone() for name in captured.buffers]
    run = Interpreter(GraphModule(captured.constants, captured.graph))
    found = run.run(*leaves, x, enable_io_processing=False)
    return list(found) if isinstance(found, (list, tuple)) else [found]
