"""Which operations of a graph change a tensor in place, who else sees it, and which views may be copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node


def memory_of(node: Node) -> int:
    """What tells apart the memory of a node's value, which views of it share; 0 for none."""
    value = node.meta.get("val")
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else 0


def changed_by(node: Node) -> list[Node]:
    """The arguments that an operation changes; names tell nothing (``__and__`` changes none)."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return []
    found: list[Any] = []
    for place, told in enumerate(node.target._schema.arguments):
        if told.alias_info is not None and told.alias_info.is_write:
            given = node.args[place] if place < len(node.args) else node.kwargs.get(told.name)
            found += given if isinstance(given, (list, tuple)) else [given]
    return [each for each in found if isinstance(each, Node)]


def is_seen_elsewhere(node: Node, changed: Node, at: Mapping[Node, int]) -> bool:
    """Whether a change of a tensor shows in another value of the same memory, made before it and read after it.

    at: each node's place in the graph.
    """
    return any(
        each is not changed and at[each] < at[node] and memory_of(each) == memory_of(changed)
        and any(at[user] > at[node] for user in each.users)
        for each in at
    )  # fmt: skip


def free_views(graph: Graph) -> None:
    """Views become `reshape`, which copies where a tensor's strides are others than those of the trace.

    Not those of memory that is changed in place, which has to stay one.
    """
    changed = {memory_of(each) for node in graph.nodes for each in changed_by(node)}
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default and memory_of(node) not in changed:
            node.target = torch.ops.aten.reshape.default
