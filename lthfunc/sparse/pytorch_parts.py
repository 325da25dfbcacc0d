"""Operations of a graph that are left to PyTorch, as a function for any batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from lthfunc.errors import UserError
from lthfunc.sparse.batch_sizes import Resizing
from lthfunc.sparse.capture import Captured, line_of, operation_of
from lthfunc.sparse.interpretation import leaves_of
from lthfunc.sparse.partition import Part, Partition


def pytorch_part(
    captured: Captured, part: Part, partition: Partition, twins: Mapping[Node, Node]
) -> Callable[..., tuple[Any, ...]]:
    """The function (parameters, buffers, what the part reads, the batch size) -> what it gives, each one by one.

    twins: each operation with that of a trace on another batch size. Raises UserError for an operation that is no
    function of the batch size.
    """
    graph, new = Graph(), dict[Node, Node]()
    leaves = {leaf.name: node for node, leaf in leaves_of(captured).items()}
    for node in (*(leaves[name] for name in (*part.params, *part.buffers)), *part.reads):
        new[node] = graph.placeholder(node.name)
    size = graph.placeholder("batch_size")

    def varies(node: Node) -> UserError:
        what = f"{operation_of(node)} depends on the batch size{line_of(node)}"
        return UserError(f"sparse_module: {captured.name} cannot be traced: {what}")

    resizing = Resizing(graph, new, lambda: size, None, varies)
    for node in part.nodes:
        for each in node.all_input_nodes:
            if each not in new:  # a tensor that is made in forward
                new[each] = graph.get_attr(str(each.target))
        copy = new[node] = graph.node_copy(node, lambda each: new[each])
        resizing.resize(copy, node, twins[node])
        if node in partition.quiet:
            operation: Any = copy.target
            copy.args, copy.target = (operation, *copy.args), _without_gradient
    graph.output(tuple(new[node] for node in part.gives))
    return GraphModule(captured.constants, graph).forward


def _without_gradient(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return operation(*args, **kwargs)
