"""A part of a graph as a program of the machine: a forward half and, where gradients are taken, a backward half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.sparse.batch_sizes import size_free
from lthfunc.sparse.boundaries import apart, handed_in, load_gradient, store, store_input_gradient
from lthfunc.sparse.builder import Builder, Leaf, Value, View
from lthfunc.sparse.capture import Captured
from lthfunc.sparse.constants import has_values
from lthfunc.sparse.fusion import fuse
from lthfunc.sparse.interpretation import add_leaves, fixed_buffers, leaves_of, lowered, moved_statistics
from lthfunc.sparse.kernels.instructions import COLUMNS, OPCODES, column_of
from lthfunc.sparse.machine_code import MachineCode, finished
from lthfunc.sparse.partition import Part, Partition, Twins
from lthfunc.sparse.shared_weights import emit_operations

Shape = tuple[int, ...]


class RegionProgram(NamedTuple):
    """A part of a network on its survivors.

    code: instructions and memory. forward: instructions of the forward half. gradients: whether there is a backward
    half. leaves: where each parameter lies among the values; frozen: those without a gradient, which come last.
    statistics: where each buffer lies among the constants; moved: those that a call changes. outputs: the shapes of an
    example's outputs; given: for each value that the part gives, the number of the output that it is, and its shape.
    inputs: the shapes of an example's inputs; wanted: those whose gradients are handed out. folded: the values of
    buffers that instructions were made of. draws: whether it draws random numbers.
    """

    code: MachineCode
    forward: int
    gradients: bool
    leaves: dict[str, Leaf]
    frozen: frozenset[str]
    statistics: dict[str, Leaf]
    moved: tuple[str, ...]
    outputs: tuple[Shape, ...]
    given: tuple[tuple[int, Shape], ...]
    inputs: tuple[Shape, ...]
    wanted: tuple[bool, ...]
    folded: dict[str, Tensor]
    draws: bool

    def fits(self, buffers: Mapping[str, Tensor]) -> bool:
        """Whether it computes a part of a network with these buffers."""
        return has_values(buffers, self.folded)


def region_program(
    captured: Captured,
    part: Part,
    partition: Partition,
    positions: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    twins: Twins,
    *,
    batch: int,
    gradients: bool,
) -> RegionProgram:
    """Write the program of a part for up to `batch` examples. positions: of each masked leaf's survivors. buffers: the
    module's. twins: each operation with that of a trace on another batch size."""
    fixed = {name: buffers[name] for name in fixed_buffers(captured)}
    b, leaves = Builder(batch, gradients, fixed=fixed, size_free=size_free(twins)), leaves_of(captured)
    mine = {*part.params, *part.buffers}
    add_leaves(b, {node: leaf for node, leaf in leaves.items() if leaf.name in mine}, positions, partition.frozen)
    at = {node: place for place, node in enumerate(captured.graph.nodes)}
    known: dict[Node, Any] = dict(leaves)
    first = 0
    for node in part.reads:
        shape = node.meta["val"].shape[1:]
        needs = gradients and node in partition.differentiable
        known[node] = handed_in(b, tuple(shape), node.meta["val"].dtype, first, needs=needs)
        first += shape.numel()
    inputs: list[Value] = [known[node].value for node in part.reads]
    known |= {node: captured.constants[str(node.target)].clone() for node in at if node.op == "get_attr"}
    for node in sorted((*partition.constants, *part.nodes), key=at.__getitem__):
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: known[each])
        known[node] = lowered(b, node, args, kwargs, at)
    given, shapes = apart(b, [known[node] for node in part.gives]), [known[node].shape for node in part.gives]
    values = fuse(b.operations, [view.value for view in given])
    given = [view.of(value) for view, value in zip(given, values, strict=True)]
    outputs = list(dict.fromkeys(given))
    b.outputs.update(values)
    emit_operations(b)
    forward = _halves(b, outputs, inputs)
    code = finished(b)
    return RegionProgram(
        code, forward, gradients, b.leaves, frozenset(b.frozen), _places(b, leaves),
        moved_statistics(part.nodes, known),
        tuple(view.shape for view in outputs),
        tuple((outputs.index(view), shape) for view, shape in zip(given, shapes, strict=True)),
        tuple(known[node].shape for node in part.reads), tuple(value.needs for value in inputs), dict(b.folded),
        _draws(code),
    )  # fmt: skip


def _draws(code: MachineCode) -> bool:
    """Whether any instruction drops something."""
    columns = {OPCODES[name]: column_of(name, "threshold") for name, each in COLUMNS.items() if "threshold" in each}
    return any(int(row[columns[int(row[0])]]) > 0 for row in code.rows if int(row[0]) in columns)


def _halves(b: Builder, outputs: list[View], inputs: list[Value]) -> int:
    """Add what hands values in and out, and the backward half; returns how many instructions the forward half has."""
    firsts = [0]
    for view in outputs:
        b.read(view.value)
        store(b, view, view.value, firsts[-1])
        firsts.append(firsts[-1] + view.value.buffer.features)
    forward = len(b.instructions)
    if b.training:
        for view, first in zip(outputs, firsts, strict=False):
            load_gradient(b, view, view.value, first)
        for gradient in reversed(b.backward):
            gradient()
        first = 0
        for value in inputs:
            if value.needs:
                store_input_gradient(b, value, first)
                first += value.buffer.features
    return forward


def _places(b: Builder, leaves: Mapping[Node, Any]) -> dict[str, Leaf]:
    sizes = {leaf.name: node.meta["val"].numel() for node, leaf in leaves.items()}
    return {name: Leaf(first, sizes[name]) for name, first in b.statistics.items()}
