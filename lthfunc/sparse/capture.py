"""A module as a short graph of ATen operations: traced once on fake tensors, nothing computed."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from lthfunc.errors import UserError
from lthfunc.frames import first_line, place_of, users_line
from lthfunc.trees.model import Model, example_of
from lthfunc.trees.types import Buffers, Params


class Captured(NamedTuple):
    """graph: its first placeholders are the parameters and buffers of these names, the last one the input.

    name: of the model.
    """

    graph: Graph
    params: tuple[str, ...]
    buffers: tuple[str, ...]
    name: str


#: Examples in the traced batch: a number that no network has as a size, so that a view can be told from a mistake.
TRACED_BATCH = 11


@functools.lru_cache(maxsize=8)  # a ResNet takes half a second, and several ask for it
def captured(model: Model, shape: tuple[int, ...], *, training: bool) -> Captured:
    """The model's operations on inputs of `shape`, in one of its modes. Raises UserError where it cannot be traced."""
    module = model.training if training else model.evaluating
    params, buffers = dict(module.named_parameters()), dict(module.named_buffers())

    def forward(params: Params, buffers: Buffers, x: Tensor) -> object:
        return functional_call(module, (params, buffers), (x,))

    # Before decompositions, so that a convolution is one node, and so is a normalisation.
    trace = make_fx(forward, tracing_mode="fake", pre_dispatch=True, record_stack_traces=True)
    try:
        with torch.no_grad():
            cloned = {name: buffer.clone() for name, buffer in buffers.items()}
            graph = trace(params, cloned, example_of(model, shape, TRACED_BATCH)).graph
    except Exception as error:
        raise UserError(f"--engine: sparse cannot trace {model.name}{place_of(error)}: {first_line(error)}") from error
    _drop_dead(graph)
    return Captured(graph, tuple(params), tuple(buffers), model.name)


def _drop_dead(graph: Graph) -> None:
    """Leave out operations whose results nothing reads, unless they change what they are given."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not _changes(node):
            graph.erase_node(node)


def _changes(node: Node) -> bool:
    """Whether an operation changes an argument: its name says so, or it moves running statistics."""
    return is_in_place(node) or node.target is torch.ops.aten.batch_norm.default


def is_in_place(node: Node) -> bool:
    """Whether an operation changes its first argument, whoever reads that later."""
    return str(node.target).split(".")[1].endswith("_")


def operation_of(node: Node) -> str:
    """What an operation is called, whether or not it changes its argument: "relu"."""
    return str(node.target).split(".")[1].removesuffix("_")


def line_of(node: Node) -> str:
    """Where in the user's code an operation comes from: " (line 12 of net.py: x = x.cumsum(1))", or nothing."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return users_line((file, int(number)) for file, number in frames)
