"""A program under construction: operations first, then their instructions, forward and backward.

A lowering (in `lowerings/`) adds an operation of the network, and says which instructions compute it and its gradient.
Whatever depends on addresses is a function that is called once all halos are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.errors import UserError
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.parts import Places
from lthfunc.sparse.tile_buffers import LANES, TileBuffer
from lthfunc.sparse.views import Normalised as Normalised, Value as Value, View as View
from lthfunc.sparse.written import Late as Late, Writer


class FusedStep(IntEnum):
    """What an operation can do as it writes its value, in the order in which it does it: normalise it by what batch
    normalisation saved; add another value; zero what is not above zero; take 2 × 2 maxima."""

    NORMALISE = 1
    ADD = 2
    RECTIFY = 3
    MAXIMA = 4


@dataclass(eq=False)
class Operation:
    """An operation of the network, before it is instructions.

    inputs, out: the values that it reads and the one that it gives. emit: adds its instructions and says what its
    gradient does. step: what it is to the operation before it, if that one can do it on the way. accepts: what it can
    do on the way itself. deferred: its value is written when it is first read. fused: the operations that it does on
    the way, in their order. host: the one that does this one. kept: what a fused operation keeps for its host: where
    the constants of a normalisation lie, or the codes of maxima. reads_local: it reads its input, and gives that one's
    gradient, tile by tile, so that a local buffer may hold it; gradient_local: and so it reads its own gradient.
    writes_half, reads_half: it can write its value in 16 bits a number, and read its inputs so; gives_half, takes_half:
    and so it can write its input's gradient, and read its own. keeps_half: it can do both with a value that is kept in
    memory, also as it adds such a one to it; shares_half: it can read such a value, and add to its gradient. copies:
    what it copies of each of its inputs, if it does nothing else. in_rows: what it reads tile by tile it takes some
    rows at a time (`bands.py`, `rolling.py`), unless anything is fused with it.
    """

    inputs: list[Value]
    out: Value
    emit: Callable[[Operation], None]
    step: FusedStep | None = None
    accepts: frozenset[FusedStep] = frozenset()
    deferred: bool = False
    fused: dict[FusedStep, Operation] = field(default_factory=dict)
    host: Operation | None = None
    kept: Any = None
    reads_local: bool = False
    gradient_local: bool = False
    writes_half: bool = False
    reads_half: bool = False
    gives_half: bool = False
    takes_half: bool = False
    keeps_half: bool = False
    shares_half: bool = False
    copies: list[Places] = field(default_factory=list)
    in_rows: bool = False


class GradientTarget(NamedTuple):
    """Where to write a gradient: added to what is there or not, and zeroed where `gate` is not above zero.

    normalised: of its last part, how batch normalisation gave the value; whoever can may then write the sums as well.
    """

    buffer: TileBuffer
    accumulate: bool
    gate: TileBuffer | None
    normalised: Normalised | None = None

    @property
    def columns(self) -> dict[str, int]:
        """Of an instruction."""
        return {"accumulate": int(self.accumulate), "gate": -1 if self.gate is None else self.gate.first}


class Leaf(NamedTuple):
    """Where a parameter lies among the values: `size` numbers from `first` on."""

    first: int
    size: int


class Weights(NamedTuple):
    """A layer's weights: their shape, and how many survive. Which, late functions ask `Builder.positions_of`."""

    shape: tuple[int, ...]
    survivors: int


@dataclass
class Builder(Writer):
    """Collects a program for batches of up to `batch` examples; training: with gradients.

    leaves: where parameters lie among the values; frozen: those without a gradient, behind all others. weights: of the
    prunable leaves. shapes: of all parameters and buffers, when dense. statistics: where buffers lie among the
    constants. claims: of each parameter, the operations that write its gradient. read_as_values: parameters and buffers
    that are values themselves. outputs: the network's, which are handed out. spare: memory that was read for the last
    time. once: gradients are taken once of what a step computed, so that values may be overwritten as soon as nothing
    reads them. fixed: buffers that nothing changes; folded: those of them whose values the program is made of.
    size_free: tells of an operation whether none of its numbers depends on the size of the batch. whole_layers: the
    names of weights, and for each an instruction that takes all their gradients, and the program's before which it may
    run. local: whether values may lie in memory of one tile at a time; otherwise the program may run in parts. half:
    whether values and gradients that wait for long may be held in 16 bits (`half_buffers.py`). tokens: of a sequence,
    where examples are the tokens of sequences (`token_lanes.py`); else 0. draws: operations so far that draw numbers.

    How many weights survive decides what is added; where they lie, late functions alone ask (`Lowered`).
    """

    batch: int
    training: bool
    operations: list[Operation] = field(default_factory=list)
    backward: list[Callable[[], None]] = field(default_factory=list)
    tile_buffers: list[TileBuffer] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    weights: dict[str, Weights] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    statistics: dict[str, int] = field(default_factory=dict)
    claims: dict[str, list[int]] = field(default_factory=dict)
    outputs: set[Value] = field(default_factory=set)
    read_as_values: dict[object, View] = field(default_factory=dict)
    once: bool = False
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    folded: dict[str, Tensor] = field(default_factory=dict)
    size_free: Callable[[Node], bool] = field(default=lambda node: False)
    spare: dict[tuple[bool, tuple[int, ...]], list[TileBuffer]] = field(default_factory=dict)
    whole_layers: list[tuple[str, int, Late]] = field(default_factory=list)
    local: bool = True
    half: bool = False
    tokens: int = 0
    draws: int = 0

    @property
    def tiles(self) -> int:
        """Tiles of 16 examples."""
        return -(-self.batch // LANES)

    @property
    def values(self) -> int:
        """Numbers of all leaves."""
        return sum(leaf.size for leaf in self.leaves.values())

    @property
    def trained(self) -> int:
        """Numbers of the leaves that have gradients, which come first."""
        return sum(leaf.size for name, leaf in self.leaves.items() if name not in self.frozen)

    def add_leaf(self, name: str, shape: tuple[int, ...], positions: Tensor | None, *, frozen: bool = False) -> None:
        """Have room for a parameter. positions: of its survivors; None: all. frozen: once all others are there."""
        count = math.prod(shape)
        if len(shape) > 1:
            positions = torch.arange(count) if positions is None else positions
            self.positions[name], count = positions, len(positions)
            self.weights[name] = Weights(shape, count)
        self.leaves[name] = Leaf(self.values, count)
        if frozen:
            self.frozen.add(name)

    def fold(self, name: str) -> Tensor:
        """The value of a fixed buffer, on which the program then depends."""
        return self.folded.setdefault(name, self.fixed[name].clone())

    def emit(self, late: Late) -> None:
        """Add an instruction."""
        self.instructions.append(late)

    def whole_layer(self, name: str, late: Late) -> None:
        """Have an instruction beside the program that takes the gradients of all of a layer's weights, as far as one
        operation gives them. It may run before the instruction that is added next."""
        self.whole_layers.append((name, len(self.instructions), late))

    def emit_first(self, late: Late) -> None:
        """Add an instruction that depends on no other, before all others."""
        self.instructions.insert(0, late)

    def allocate(self, channels: int, height: int = 1, width: int = 1, halo: int = 0) -> TileBuffer:
        """Room for numbers of this shape."""
        return self.hold(TileBuffer(channels, height, width, halo))

    def hold(self, buffer: TileBuffer) -> TileBuffer:
        """Have room for a buffer."""
        self.tile_buffers.append(buffer)
        return buffer

    def numbers(self, values: list[float]) -> int:
        """Store constants; returns where they begin."""
        self.constants.extend(values)
        return len(self.constants) - len(values)

    def read(self, value: Value, *, differentiates: bool = True) -> None:
        """Have a value written, if it is not yet. differentiates: whoever reads it writes a part of its gradient."""
        if value.pending is not None:
            value.pending(None)
            value.pending = None
        value.uses += differentiates

    def gradient_of(self, value: Value) -> TileBuffer:
        """Where a value's own gradient lies, once all of it was written.

        Raises UserError where nothing wrote any, since the value does not lead to the network's output.
        """
        for write in value.owed:
            write()
        if value.pending_gradient is not None:
            write, value.pending_gradient = value.pending_gradient, None
            write()
        if value.grad is None:
            raise UserError("engine: sparse takes networks all of whose operations lead to the output")
        return value.grad

    def target(self, value: Value) -> GradientTarget:
        """Where the next part of a value's gradient goes."""
        if value.grad is None:
            # The value's own layout, since `gate` is read beside it; all halos are settled by now.
            shape, half = value.buffer.layout, value.half_gradient
            kept = self.spare.get((half, shape))
            # Memory of a gradient that was read already; of the same shape, so that its halo still holds zeros.
            value.grad = kept.pop() if kept else self.hold(TileBuffer(*shape, half=half))
        value.written += 1
        last = value.written == value.uses
        gate = value.buffer if value.rectified and last else None
        return GradientTarget(value.grad, value.written > 1, gate, value.normalised if last else None)

    def differentiate(
        self, x: Value, out: Value, write: Callable[[TileBuffer, GradientTarget], Late], *, gates: bool = True
    ) -> None:
        """Say how the gradient of an operation of one value, from x to out, is written: `write(gradient, target)`.

        gates: its instruction zeroes the gradient where the target says so; otherwise another one follows that does.
        """

        def gradient() -> None:
            if not x.needs:
                return
            grad, target = self.gradient_of(out), self.target(x)
            self.emit(write(grad, target))
            if not gates and target.gate is not None:
                self.rectify(target, target.gate)
            self.release(out)

        self.backward.append(gradient)

    def copy(self, source: TileBuffer, target: TileBuffer | GradientTarget) -> None:
        """Copy a buffer to another, or a part of a gradient to where that goes."""
        into = target if isinstance(target, GradientTarget) else GradientTarget(target, False, None)
        self.emit(lambda: ("copy", BY_TILES, source.channels, {
            **source.columns_of_kind("in"), "in_column": 1, **into.buffer.columns_of_kind("out"), "out_column": 1,
            **source.sides, **into.columns,
        }))  # fmt: skip

    def fill(self, buffer: TileBuffer, number: int = -1) -> None:
        """Fill a buffer with a constant, or with zeros. number: of the constant."""
        self.emit(lambda: ("fill", BY_TILES, buffer.channels, {
            **buffer.columns_of_kind("out"), **buffer.sides, "number": number,
        }))  # fmt: skip

    def rectify(self, target: GradientTarget, gate: TileBuffer) -> None:
        """Zero a finished gradient where the value is not above zero."""
        self.emit(lambda: (
            "rectify", BY_TILES, gate.channels,
            {**target.buffer.columns_of_kind("out"), **gate.sides, "gate": gate.first},
        ))  # fmt: skip

    def release(self, value: Value) -> None:
        """The gradient was read for the last time."""
        buffer = self.gradient_of(value)
        if value.donation is None or not value.donation():
            self._spare(buffer)

    def forget(self, value: Value) -> None:
        """The value itself was read for the last time. Gradients that are written next find its memory in a cache."""
        if self.once and value not in self.outputs:
            self._spare(value.buffer)

    def _spare(self, buffer: TileBuffer) -> None:
        if not buffer.local:
            self.spare.setdefault((buffer.half, buffer.layout), []).append(buffer)
