"""A network as a program of the machine: its graph lowered, fused, differentiated and laid out in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.errors import UserError
from lthfunc.sparse.batch_sizes import pairs_of, size_free
from lthfunc.sparse.boundaries import KINDS, loaded, loaded_sequence
from lthfunc.sparse.builder import Builder, Leaf, View
from lthfunc.sparse.capture import Captured
from lthfunc.sparse.constants import has_values
from lthfunc.sparse.ends import ONE, Ends, add_ends, ends_of
from lthfunc.sparse.half_buffers import hold_in_half
from lthfunc.sparse.interpretation import (
    add_leaves,
    counts_steps,
    fixed_buffers,
    inputs_of,
    leaves_of,
    lowered,
    moved_statistics,
    no_rule,
    results_of,
)
from lthfunc.sparse.lowerings.interface import Unsupported
from lthfunc.sparse.machine_code import MachineCode, finished, finished_beside, of_other_survivors
from lthfunc.sparse.shared_weights import emit_operations
from lthfunc.sparse.updates import Numbers, add_update
from lthfunc.training.engines.aliases import changed_by
from lthfunc.training.precision import Precision
from lthfunc.trees.types import Buffers, Masks, Params, Scale


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


class WholeLayers(NamedTuple):
    """Instructions that take the gradients of all weights of a layer, on a program's memory.

    steps: the name of each one's layer, and the program's instruction before which it may run, in their order. sizes:
    how many weights layers have, some of which have no gradient, and others one that is the sum of several
    instructions'.
    """

    code: MachineCode
    steps: tuple[tuple[str, int], ...]
    sizes: dict[str, int]


class Program(NamedTuple):
    """A network on its survivors, ready for the machine.

    code: instructions and memory. forward, backward, update: instructions up to the outputs, to the gradients, and to
    what happens once in a step, for all parts of its batch. averages: where averages of `statistics` begin among the
    constants; -1 without any. leaves: where each parameter lies among the values; frozen: buffers that follow them.
    positions: for each masked leaf, where its survivors lie in the flattened dense one. counters: buffers that count
    steps. statistics: buffers among the constants. moved: those of them that steps change. folded: the values of
    buffers that instructions were made of. outputs: the shapes of what is handed out, without the batch; rebuilt: what
    the network gives, from as many tensors. whole_layers: gives them, made once. tokens: of each sequence, where
    examples are the tokens of sequences (`token_lanes.py`); else 0.
    """

    code: MachineCode
    forward: int
    backward: int
    update: int
    averages: int
    gradients: bool
    batch: int
    leaves: dict[str, Leaf]
    frozen: tuple[str, ...]
    positions: dict[str, Tensor]
    counters: tuple[str, ...]
    statistics: dict[str, int]
    moved: tuple[str, ...]
    folded: dict[str, Tensor]
    outputs: tuple[tuple[int, ...], ...]
    rebuilt: Callable[[Sequence[Any]], Any]
    whole_layers: Callable[[], WholeLayers]
    tokens: int = 0

    @property
    def gives_rows(self) -> bool:
        """Whether the network gives one tensor (examples, features), as the memory has it that is handed out."""
        return self.rebuilt is ONE and len(self.outputs[0]) == 1

    def fits(self, buffers: Mapping[str, Tensor]) -> bool:
        """Whether it computes a network with these buffers."""
        return has_values(buffers, self.folded)

    def positions_under(self, masks: Masks) -> dict[str, Tensor]:
        """Where the survivors of its masked leaves lie under other masks."""
        return {name: mask.flatten().nonzero().flatten() for name, mask in masks.items() if name in self.positions}


#: Makes what collects a program that may run in parts.
IN_PARTS = functools.partial(Builder, local=False)


def builder_for(precision: Precision) -> Callable[..., Builder]:
    """What collects a program that computes in a precision: under bf16, values that wait for long have 16 bits."""
    return functools.partial(Builder, half=precision == "bf16")


class Lowered:
    """A network that is lowered once, and its program for whatever survives while each layer keeps as many weights.

    A new one costs its lists alone, since lowerings decide by numbers of survivors, not by where these lie.
    """

    def __init__(self, builder: Builder, program: Program) -> None:
        self._builder, self.program = builder, program

    def move_to(self, positions: Mapping[str, Tensor]) -> bool:
        """Have the program of other survivors, to the bits of one that is lowered anew; False, with nothing done, where
        a layer has more of them or fewer. positions: as `Program` has them, of all or of some leaves."""
        b, known = self._builder, self.program.positions
        if all(torch.equal(places, known[name]) for name, places in positions.items()):
            return True
        if any(len(places) != b.weights[name].survivors for name, places in positions.items()):
            return False
        b.positions = {**b.positions, **positions}
        code = of_other_survivors(b, self.program.code)
        self.program = self.program._replace(code=code, positions={**known, **positions})
        return True


def program_of(
    graph: Captured, params: Params, buffers: Buffers, masks: Masks, *, batch: int, stored: Stored, epilogue: Epilogue,
    positions: Mapping[str, Tensor] | None = None, builder: Callable[..., Builder] = Builder,
) -> Program:  # fmt: skip
    """The program of a network for batches of up to `batch` examples that are stored so.

    positions: where the survivors of masked leaves lie, if that is known, as `Program` has them. builder: makes what
    collects it, where lowerings need more than others. Raises UserError, with the operation and its line in the
    network, where there is no lowering.
    """
    given: Any = {"batch": batch, "stored": stored, "epilogue": epilogue, "positions": positions, "builder": builder}
    return lower(graph, params, buffers, masks, **given).program


def lower(
    graph: Captured, params: Params, buffers: Buffers, masks: Masks, *, batch: int, stored: Stored, epilogue: Epilogue,
    positions: Mapping[str, Tensor] | None = None, builder: Callable[..., Builder] = Builder,
) -> Lowered:  # fmt: skip
    """Lower a network; all as of `program_of`."""
    fixed = {name: buffers[name] for name in fixed_buffers(graph)}
    b = builder(batch, epilogue.gradients, once=True, fixed=fixed, size_free=size_free(pairs_of(graph)))
    for leaf, value in params.items():
        if value.dtype != torch.float32:
            raise UserError(f"engine: sparse computes in float32; {leaf} is {value.dtype}")
    known = positions or {}
    kept = {leaf: mask.flatten().nonzero().flatten() for leaf, mask in masks.items() if leaf not in known}
    leaves = leaves_of(graph)
    add_leaves(b, leaves, {**kept, **known}, buffers)
    statistics = len(b.constants)
    counters: list[str] = []
    given = {**leaves, **dict.fromkeys(inputs_of(graph), _load(b, stored))}
    ends = ends_of(b, graph, _interpreted(b, graph, given, counters), loss=epilogue.loss is not None)
    if b.half:
        hold_in_half(b)
    emit_operations(b)
    forward, backward, update, averages = _finish(b, ends, epilogue, statistics)
    trained = {leaf: at for leaf, at in b.leaves.items() if leaf not in b.frozen}
    code, found = finished(b), {leaf: b.positions[leaf] for leaf in trained if leaf in b.weights}
    return Lowered(b, Program(
        code, forward, backward, update, averages, epilogue.gradients, batch, trained,
        tuple(leaf for leaf in b.leaves if leaf in b.frozen), found, tuple(counters), dict(b.statistics),
        moved_statistics(graph.graph.nodes, given), dict(b.folded), tuple(view.shape for view in ends.views),
        ends.rebuilt, functools.cache(functools.partial(_whole_layers, b, code)),
    ))  # fmt: skip


def _whole_layers(b: Builder, code: MachineCode) -> WholeLayers:
    beside = finished_beside(b, [late for *_, late in b.whole_layers], code)
    sizes = {name: math.prod(weights.shape) for name, weights in b.weights.items()}
    return WholeLayers(beside, tuple((name, before) for name, before, _ in b.whole_layers), sizes)


def _load(b: Builder, stored: Stored) -> View:
    shape, dtype, scale = stored
    if dtype not in KINDS:
        raise UserError(f"engine: sparse reads inputs stored as uint8 or float32, or tokens (int64), not as {dtype}")
    if dtype == torch.int64 or len(shape) not in (1, 3):
        if dtype == torch.uint8:
            raise UserError(f"engine: sparse reads uint8 as (features) or (channels, height, width), not as {shape}")
        if scale is not None:
            raise UserError(f"engine: sparse scales inputs (features) or (channels, height, width), not {shape}")
        return loaded_sequence(b, shape, dtype)
    channels = 1 if len(shape) == 1 else shape[0]
    if scale is not None and len(scale.mean) not in (1, channels):
        raise UserError("engine: sparse scales inputs by channels, not features of their own")
    gains = None
    if scale is not None:
        gains = [(1 / (scale.unit * std), mean / std) for mean, std in zip(scale.mean, scale.std, strict=True)]
        gains = gains * (channels // len(gains))
    return loaded(b, shape, dtype, gains=gains)


def _interpreted(b: Builder, captured: Captured, given: dict[Node, Any], counters: list[str]) -> list[Any]:
    """The values that the network gives."""
    name = captured.name
    known: dict[Node, Any] = dict(given)
    at = {node: number for number, node in enumerate(captured.graph.nodes)}
    for node in at:
        if node.op == "output":
            return [known[each] for each in results_of(captured)]
        if node.op == "get_attr":
            known[node] = captured.constants[str(node.target)].clone()
        if node.op != "call_function":
            continue
        args = torch.fx.node.map_arg(node.args, lambda each: known[each])
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda each: known[each])
        if counts_steps(node, args[0] if args else None):
            counters.append(args[0].name)
            known[node] = args[0]
            continue
        try:
            view = known[node] = lowered(b, node, args, kwargs, at)
        except Unsupported as error:
            raise no_rule(node, str(error), name) from error
        if changed_by(node):
            known[node.args[0]] = view
    raise AssertionError("a graph ends with its output")


def _finish(b: Builder, ends: Ends, epilogue: Epilogue, statistics: int) -> tuple[int, int, int, int]:
    """Add what follows the network. Returns `forward`, `backward`, `update` and `averages` of the program."""
    forward = add_ends(b, ends, gradients=epilogue.gradients)
    if epilogue.gradients:
        for gradient in reversed(b.backward):
            gradient()
    backward = len(b.instructions)
    found = add_update(b, epilogue.update, statistics)
    return forward, backward, backward + found.each_part, found.averages
