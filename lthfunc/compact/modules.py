"""A graph as a module whose linear layers and convolutions are PyTorch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lthfunc.compact.flows import LAYERS
from lthfunc.trees.types import Buffers, Params

_aten = torch.ops.aten


def module_of(graph: Graph, params: Params, buffers: Buffers, name: str) -> GraphModule:
    """A module with parameters and buffers of these names and values, that computes the graph.

    Each layer of weights of its own becomes an ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d`` under the name that its
    weight has, so that whatever knows those (quantisation, ``nn.utils.prune``, hooks) knows it.
    """
    tensors: dict[str, Any] = {key: nn.Parameter(value, requires_grad=False) for key, value in params.items()}
    module = GraphModule(tensors | buffers, graph, class_name=name)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in LAYERS:
            _as_layer(module, node)
    module.graph.eliminate_dead_code(lambda node: node.op not in ("get_attr",))
    module.graph.lint()
    module.recompile()
    return module


def _as_layer(module: GraphModule, node: Node) -> None:
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    owner, _, leaf = str(weight.target).rpartition(".")  # type: ignore[union-attr]
    if leaf != "weight" or not owner or (bias is not None and bias.target != f"{owner}.bias"):  # type: ignore[union-attr]
        return
    holder = module.get_submodule(owner)
    own = {key for key, _ in holder.named_parameters()} | {key for key, _ in holder.named_buffers()}
    if own != ({"weight"} if bias is None else {"weight", "bias"}):
        return
    value = holder.weight
    layer = _layer(node, value, biased=bias is not None)
    layer.weight = nn.Parameter(value.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(holder.bias.detach(), requires_grad=False)  # type: ignore[union-attr, arg-type]
    parent, _, name = owner.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
    with module.graph.inserting_after(node):
        call = module.graph.call_module(owner, (node.args[0],))
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _layer(node: Node, weight: Tensor, *, biased: bool) -> Any:
    """An empty layer of the node's kind and settings."""
    with torch.device("meta"):
        if node.target is _aten.linear.default:
            return nn.Linear(weight.shape[1], weight.shape[0], bias=biased)
        stride, padding, dilation, groups = (*node.args[3:7], *(1, 0, 1, 1)[len(node.args[3:7]) :])
        kind = nn.Conv2d if weight.ndim == 4 else nn.Conv1d
        size = tuple(weight.shape[2:])
        return kind(
            weight.shape[1] * groups, weight.shape[0], size, _given(stride), _given(padding), _given(dilation),
            groups, bias=biased,
        )  # type: ignore[arg-type]  # fmt: skip


def _given(setting: Any) -> Any:
    return tuple(setting) if isinstance(setting, (list, tuple)) else setting
