"""A graph as a module: with PyTorch's own linear layers and convolutions, and outputs as the network returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lthfunc.deployment.compaction.liveness import args_of
from lthfunc.deployment.compaction.operations import LAYERS
from lthfunc.sparse.lowerings.interface import argument
from lthfunc.trees.outputs import Outputs
from lthfunc.trees.types import Buffers, Params

_aten = torch.ops.aten


def module_of(graph: Graph, params: Params, buffers: Buffers) -> GraphModule:
    """A module with parameters and buffers of these names and values that computes the graph.

    Each layer with weights of its own becomes an ``nn.Linear``, ``nn.Conv1d`` or ``nn.Conv2d`` under its weight's name,
    so that quantisation, ``nn.utils.prune`` and hooks find it.
    """
    tensors: dict[str, Any] = {key: nn.Parameter(value, requires_grad=False) for key, value in params.items()}
    module = GraphModule(tensors | buffers, graph, class_name="Compacted")
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in LAYERS:
            _as_layer(module, node)
    module.graph.eliminate_dead_code(lambda node: node.op not in ("get_attr",))
    module.graph.lint()
    module.recompile()
    return module


def _as_layer(module: GraphModule, node: Node) -> None:
    weight, bias = args_of(node)[1], argument(args_of(node), 2, None)
    owner, _, leaf = str(weight.target).rpartition(".")
    if leaf != "weight" or not owner or (bias is not None and bias.target != f"{owner}.bias"):
        return
    holder: Any = module.get_submodule(owner)
    own = {key for key, _ in holder.named_parameters()} | {key for key, _ in holder.named_buffers()}
    if own != ({"weight"} if bias is None else {"weight", "bias"}):
        return
    layer = _layer(node, holder.weight, biased=bias is not None)
    for name in sorted(own):
        value = getattr(holder, name)
        if isinstance(value, nn.Parameter):
            setattr(layer, name, value)
        else:  # frozen
            delattr(layer, name)
            layer.register_buffer(name, value)
    module.set_submodule(owner, layer)
    with module.graph.inserting_after(node):
        call = module.graph.call_module(owner, (args_of(node)[0],))
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _layer(node: Node, weight: Tensor, *, biased: bool) -> Any:
    """An empty layer of the node's kind and settings."""
    outs, ins, *size = weight.shape
    with torch.device("meta"):
        if node.target is _aten.linear.default:
            return nn.Linear(ins, outs, bias=biased)
        given = [tuple(each) if isinstance(each, (list, tuple)) else each for each in args_of(node)[3:7]]
        stride, padding, dilation, groups = given + [1, 0, 1, 1][len(given) :]
        kind: Any = nn.Conv2d if weight.ndim == 4 else nn.Conv1d
        return kind(ins * groups, outs, tuple(size), stride, padding, dilation, groups, bias=biased)


class BuildOutput:
    """Builds an output from its tensors, where its class is one that a graph cannot express.

    keys: the tensors' names in it, or None for a kind of tuple.
    """

    def __init__(self, outputs: Outputs, keys: Sequence[str] | None) -> None:
        self.outputs, self.keys = outputs, keys and tuple(keys)
        self.__name__ = self.__qualname__ = "nested"

    def __call__(self, *tensors: Any) -> Any:
        """Build the output."""
        return self.outputs.rebuilt(tensors)


def set_outputs(graph: Graph, outputs: Outputs, tensors: Sequence[Node]) -> None:
    """Add the output node."""
    whole = outputs.rebuilt(tensors)
    if not _is_plain(whole):
        whole = graph.call_function(BuildOutput(outputs, _keys(whole, len(tensors))), tuple(tensors))
    graph.output(whole)


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return isinstance(value, (Node, int, float, complex, bool, str, type(None)))


def _keys(whole: Any, count: int) -> list[str] | None:
    if isinstance(whole, tuple):
        return None
    if isinstance(whole, Mapping):
        names = [str(key) for key, value in whole.items() if isinstance(value, Node)]
        if len(names) == count:
            return names
    return [f"output{place}" for place in range(count)]
