"""A module as a short graph of ATen operations: traced once on fake tensors, nothing computed."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from lthfunc.errors import UserError
from lthfunc.trees.types import Buffers, Params


class Captured(NamedTuple):
    """graph: its first placeholders are the parameters and buffers of these names, the last one the input."""

    graph: Graph
    params: tuple[str, ...]
    buffers: tuple[str, ...]


#: Examples in the traced batch: a number that no network has as a size, so that a view can be told from a mistake.
TRACED_BATCH = 11


def captured(module: nn.Module, params: Params, buffers: Buffers, shape: tuple[int, ...], name: str) -> Captured:
    """The module's operations on inputs of `shape`. Raises UserError where it cannot be traced."""

    def forward(params: Params, buffers: Buffers, x: torch.Tensor) -> object:
        return functional_call(module, (params, buffers), (x,))

    # Before decompositions, so that a convolution is one node, and so is a normalisation.
    trace = make_fx(forward, tracing_mode="fake", pre_dispatch=True, record_stack_traces=True)
    try:
        with torch.no_grad():
            cloned = {key: value.clone() for key, value in buffers.items()}
            graph = trace(dict(params), cloned, torch.zeros(TRACED_BATCH, *shape)).graph
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"--engine: sparse cannot trace {name}: {lines[0]}") from error
    return Captured(graph, tuple(params), tuple(buffers))


def line_of(node: Node) -> str:
    """Where in the user's code an operation comes from: " (line 12 of net.py: x = x.cumsum(1))", or nothing."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    library = str(Path(str(torch.__file__)).parent)
    ours = str(Path(__file__).parent)
    for file, number in reversed(frames):
        if not file.startswith((library, ours)):
            return f" (line {number} of {file}: {linecache.getline(file, int(number)).strip()})"
    return ""
