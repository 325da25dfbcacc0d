"""A network as a program of the machine: its graph lowered, fused, differentiated and laid out in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.errors import UserError
from lthfunc.sparse.builder import Builder, Leaf, MachineCode, Value, View, Weights, finished
from lthfunc.sparse.capture import TRACED_BATCH, Captured, line_of, operation_of
from lthfunc.sparse.fusion import fuse
from lthfunc.sparse.kernels.instructions import BY_TILES, STORED, WHOLE
from lthfunc.sparse.lowerings.interface import Buffer, Param, Unsupported
from lthfunc.sparse.lowerings.table import LOWERINGS
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.updates import Numbers, add_update
from lthfunc.training.engines.aliases import changed_by, is_seen_elsewhere
from lthfunc.trees.types import Buffers, Masks, Params, Scale

#: The dtypes of stored inputs that kernels read.
_KINDS = {getattr(torch, name): number for number, name in enumerate(STORED)}


class Stored(NamedTuple):
    """An input as the data set stores it: its shape and dtype, and what scales it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    scale: Scale | None = None


class Epilogue(NamedTuple):
    """What follows the network.

    loss: "cross_entropy", or None, where outputs are handed out. gradients: whether the network's gradient follows
    (without a loss: of what is handed in). update: the parts of the optimiser that then changes the values.
    """

    loss: str | None = "cross_entropy"
    gradients: bool = True
    update: tuple[Numbers, ...] = ()


class Program(NamedTuple):
    """A network on its survivors, ready for the machine.

    code: instructions and memory. forward, backward, update: instructions up to the outputs, to the gradients, and to
    what happens once in a step, for all parts of its batch. averages: where averages of `statistics` begin among the
    constants; -1 without any. leaves: where each parameter lies
    among the values. positions: for each masked leaf, where its survivors lie in the flattened dense one. counters:
    buffers that count steps. statistics: buffers among the constants. outputs: the network's shape, without the batch.
    """

    code: MachineCode
    forward: int
    backward: int
    update: int
    averages: int
    gradients: bool
    batch: int
    leaves: dict[str, Leaf]
    positions: dict[str, Tensor]
    counters: tuple[str, ...]
    statistics: dict[str, int]
    outputs: tuple[int, ...]


def program_of(
    graph: Captured, params: Params, buffers: Buffers, masks: Masks, *, batch: int, stored: Stored, epilogue: Epilogue
) -> Program:
    """Write the program of a network for batches of up to `batch` examples that are stored so.

    Raises UserError, with the operation and its line in the network, where there is no lowering.
    """
    b = Builder(batch, epilogue.gradients)
    for leaf, value in params.items():
        _add_leaf(b, leaf, value, masks)
    for buffer, value in buffers.items():
        if value.is_floating_point():
            b.statistics[buffer] = b.numbers([0.0] * value.numel())
    statistics = len(b.constants)
    counters: list[str] = []
    given = _given(graph, _load(b, stored))
    output = _interpreted(b, graph, given, counters)
    if not graph.outputs.single or not isinstance(output, View) or not output.flat:
        raise UserError(
            f"--engine: sparse takes networks with outputs (batch, features); those of {graph.name} are others"
        )
    output = output._replace(value=fuse(b.operations, output.value))
    for operation in b.operations:
        for read in operation.inputs:
            b.read(read)
        operation.emit(operation)
    forward, backward, update, averages = _finish(b, output, epilogue, statistics)
    positions = {leaf: weights.positions for leaf, weights in b.weights.items()}
    return Program(
        finished(b), forward, backward, update, averages, epilogue.gradients, batch, b.leaves, positions,
        tuple(counters), dict(b.statistics), output.shape,
    )  # fmt: skip


def _add_leaf(b: Builder, name: str, value: Tensor, masks: Mapping[str, Tensor]) -> None:
    first = sum(leaf.size for leaf in b.leaves.values())
    if value.dtype != torch.float32:
        raise UserError(f"--engine: sparse computes in float32; {name} is {value.dtype}")
    count = value.numel()
    if value.ndim > 1:
        mask = masks.get(name)
        positions = torch.arange(count) if mask is None else mask.flatten().nonzero().flatten()
        b.weights[name] = Weights(tuple(value.shape), positions)
        count = len(positions)
    b.leaves[name] = Leaf(first, count)


def _load(b: Builder, stored: Stored) -> View:
    shape, dtype, scale = stored
    if dtype not in _KINDS:
        raise UserError(f"--engine: sparse reads inputs stored as uint8 or float32, not as {dtype}")
    if len(shape) not in (1, 3):
        raise UserError(f"--engine: sparse takes inputs (features) or (channels, height, width), not of shape {shape}")
    flat = len(shape) == 1
    channels, height, width = (1, 1, shape[0]) if flat else shape
    if scale is not None and len(scale.mean) not in (1, channels):
        raise UserError("--engine: sparse scales inputs by channels, not features of their own")
    buffer = b.allocate(*((shape[0], 1, 1) if flat else (channels, height, width)))
    numbers = [(1.0, 0.0)] * channels
    if scale is not None:
        numbers = [(1 / (scale.unit * std), mean / std) for mean, std in zip(scale.mean, scale.std, strict=True)]
        numbers = numbers * (channels // len(numbers))
    constants = b.numbers([number for both in numbers for number in both])

    b.emit(lambda: ("load_inputs", BY_TILES, channels, {
        **buffer.columns("out"), "channels": channels, "height": height, "width": width, "kind": _KINDS[dtype],
        "constants": constants,
        # Features are one channel of as many columns: the same memory.
        **({"out_channel": buffer.tile, "out_row": buffer.features} if flat else {}),
    }))  # fmt: skip
    return View(Value(buffer, needs=False), flat)


def _given(captured: Captured, x: View) -> dict[Node, Any]:
    placeholders = [node for node in captured.graph.nodes if node.op == "placeholder"]
    values = [*map(Param, captured.params), *map(Buffer, captured.buffers), x]
    return dict(zip(placeholders, values, strict=True))


def _interpreted(b: Builder, captured: Captured, given: dict[Node, Any], counters: list[str]) -> Any:
    name = captured.name
    known: dict[Node, Any] = dict(given)
    at = {node: number for number, node in enumerate(captured.graph.nodes)}
    for node in at:
        if node.op == "output":
            return known[node.args[0][0]] if isinstance(node.args[0], (list, tuple)) else known[node.args[0]]
        if node.op == "get_attr":
            raise _no_rule(next(iter(node.users), node), " of a tensor that is made in forward", name)
        if node.op != "call_function":
            continue
        if any(is_seen_elsewhere(node, each, at) for each in changed_by(node)):
            raise _no_rule(node, " in place, of memory that another tensor sees,", name)
        args = torch.fx.node.map_arg(node.args, lambda each: known[each])
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda each: known[each])
        if node.target is torch.ops.aten.add_.Tensor and isinstance(args[0], Buffer) and args[1] == 1:
            counters.append(args[0].name)
            known[node] = args[0]
            continue
        lowering = LOWERINGS.get(node.target)
        if lowering is None:
            raise _no_rule(node, "", name)
        if not all(isinstance(each, View) for each in (args[0] if isinstance(args[0], list) else args[:1])):
            raise _no_rule(node, " of a parameter or buffer", name)
        try:
            view = lowering(b, list(args), dict(kwargs))
            _check_shape(view, node)
        except Unsupported as error:
            raise _no_rule(node, f" {error}", name) from error
        known[node] = view
        if changed_by(node):
            known[node.args[0]] = view
    raise AssertionError("a graph ends with its output")


def _check_shape(view: View, node: Node) -> None:
    """A lowering gives what the operation gave as it was traced, or it misread its arguments."""
    traced = node.meta["val"]
    if (TRACED_BATCH, *view.shape) != tuple(traced.shape) or traced.dtype != torch.float32:
        raise Unsupported("of this form")


def _no_rule(node: Node, form: str, name: str) -> UserError:
    what = f"{operation_of(node)}{form} in {name}{line_of(node)}"
    return UserError(f"--engine: sparse has no rule for {what}; --engine compile runs it")


def _finish(b: Builder, output: View, epilogue: Epilogue, statistics: int) -> tuple[int, int, int, int]:
    """Add what follows the network. Returns `forward`, `backward`, `update` and `averages` of the program."""
    value = output.value
    b.read(value)
    buffer = value.buffer

    def by_address(name: str, prefix: str, at: TileBuffer) -> None:
        b.emit(lambda: (name, BY_TILES, at.features, {
            prefix: at.first, f"{prefix}_tile": at.tile, "addresses": b.table(at.addresses())
        }))  # fmt: skip

    if epilogue.loss is None:
        by_address("store_outputs", "in", buffer)
    forward = len(b.instructions)
    target = b.target(value) if epilogue.gradients else None
    grad = None if target is None else target.buffer
    if epilogue.loss is not None:

        def late() -> Any:
            addresses = b.table(buffer.addresses())
            return "cross_entropy", WHOLE, 1, {
                "in": buffer.first, "in_tile": buffer.tile, "addresses": addresses, "classes": buffer.features,
                "grad": -1 if grad is None else grad.first, "grad_tile": 0 if grad is None else grad.tile,
                "gradients": addresses if grad is None else b.table(grad.addresses()),
            }  # fmt: skip

        b.emit(late)
    elif grad is not None:
        by_address("load_gradients", "out", grad)
    if target is not None and target.gate is not None:
        b.rectify(target, target.gate)
    if epilogue.gradients:
        for gradient in reversed(b.backward):
            gradient()
    backward = len(b.instructions)
    found = add_update(b, epilogue.update, statistics)
    return forward, backward, backward + found.each_part, found.averages
