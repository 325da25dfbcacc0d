"""A program's workspace: filled from dense trees, changed in place by the machine, and read back as dense trees."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.sparse.pages import zeros
from lthfunc.sparse.program import Program
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.trees.ops import clone, map_leaves_like
from lthfunc.trees.packing import columns, packed_like, unpacked_like
from lthfunc.trees.types import Buffers, Params

_NOTHING = torch.zeros(0)
#: A target that counts for nothing in cross entropy.
IGNORED = -100


class Workspace:
    """The tensors that the machine works on. Private to whoever runs it. values: of the survivors; memory: these, and
    behind them those of frozen parameters."""

    def __init__(self, program: Program, params: Params, buffers: Buffers) -> None:
        self.program = program
        self.shapes = {name: tuple(value.shape) for name, value in params.items()}
        code = program.code
        self.end, self._verified = len(code.rows), code.verified
        self._apart: Tensor | None = None
        self.sizes = {name: buffer.numel() for name, buffer in buffers.items()}
        self.constants = code.constants.clone()
        self.load(params, buffers)
        self._make_room()
        self.outputs = torch.zeros(program.batch * sum(map(math.prod, program.outputs)))
        self.totals = torch.zeros(2, dtype=torch.float64)
        #: What an optimiser keeps from step to step: rows of a number for each value. Its clock (6,) is powers of
        #: Adam's betas and of an average's decay, and these three.
        self.kept = torch.zeros(0, len(self.values))
        self.clock = torch.zeros(0, dtype=torch.float64)
        self.schedule = torch.zeros(0)

    def _make_room(self) -> None:
        """For what a step computes."""
        self.gradients = torch.zeros_like(self.values) if self.program.gradients else _NOTHING
        # Zeros, since halos and tiles that are not full are read and never written.
        self.activations = zeros(LANES * max(1, self.program.code.vectors))

    def moved(self, program: Program, sources: Tensor) -> Workspace:
        """The workspace of another program, of the same network under other masks, that goes on from this one.

        sources: int64 (values,), for each of its values the number of the value that it is here, or -1: it is zero, and
        so is what an optimiser keeps of it.
        """
        other = self._under(program)
        values, other.kept = (torch.empty(*numbers.shape[:-1], len(sources)) for numbers in (self.values, self.kept))
        for numbers, moved in ((self.values, values), (self.kept, other.kept)):
            if moved.numel():  # plain SGD keeps nothing
                torch.ops.lthfunc.move_numbers.default(numbers, sources, moved)
        other._hold(values, self.memory[len(self.values) :])
        other._make_other_room(self)
        return other

    def loaded(self, program: Program, params: Params, buffers: Buffers) -> Workspace:
        """The workspace of another program, of the same network under other masks, with these values. It takes the
        memory of this one, which is over."""
        other = self._under(program)
        other.load(params, buffers)
        other._make_other_room(self)
        return other

    def _under(self, program: Program) -> Workspace:
        other = copy.copy(self)
        other.program, other.end, other._verified = program, len(program.code.rows), program.code.verified
        other._apart = None
        return other

    def _make_other_room(self, before: Workspace) -> None:
        """For as many values as there are now, unless the same places are written, and the same stay zero."""
        here, there = before.program.code, self.program.code
        same = here.rows is there.rows or torch.equal(here.rows, there.rows)
        if here.vectors != there.vectors or len(before.values) < len(self.values) or not same:
            self._make_room()

    def aside(self, program: Program) -> Workspace:
        """A workspace for steps that change nothing of the network here, by its own program or one of the same network,
        survivors and numbers among the constants."""
        other = self._under(program) if program is not self.program else copy.copy(self)
        other._make_other_room(self)
        other.constants, other.totals = self.constants.clone(), self.totals.clone()
        return other

    def still(self) -> Workspace:
        """A copy of what `dense`, `buffers` and an optimiser's state are read from, for as long as this one runs on."""
        other = copy.copy(self)
        for name in ("values", "kept", "constants", "clock"):
            setattr(other, name, getattr(self, name).clone())
        return other

    def is_finite(self) -> bool:
        """Whether all numbers of the network, of its optimiser's state and the sums of losses are finite."""
        # Other buffers stay as they were given, and may hold infinities, as a mask of attention does.
        moved, averages = self.program.moved, self.averages
        places = [(self.program.statistics[name], self.sizes[name]) for name in moved]
        statistics = [self.constants[at : at + size] for at, size in places]
        parts = [self.values, self.kept, *statistics, *(averages[name] for name in moved if averages)]
        finite = torch.ops.lthfunc.are_finite.default
        return all(map(math.isfinite, self.totals.tolist())) and all(map(finite, parts))

    def _hold(self, values: Tensor, frozen: Tensor) -> None:
        """Have these values in one memory, those that are trained first."""
        self.memory = torch.cat([values, frozen]) if len(frozen) else values
        self.values = self.memory[: len(values)]

    def load(self, params: Params, buffers: Buffers) -> None:
        """Take the values of a network with these survivors."""
        frozen = [buffers[name].flatten() for name in self.program.frozen]
        self._hold(self.vector(params), torch.cat(frozen) if frozen else _NOTHING)
        for name, first in self.program.statistics.items():
            self.constants[first : first + buffers[name].numel()] = buffers[name].flatten()

    @property
    def averages(self) -> dict[str, Tensor]:
        """Averages of running statistics, as views."""
        begin, first = self.program.averages, self.program.statistics
        if begin < 0:
            return {}
        return {name: self.constants[begin + at : begin + at + self.sizes[name]] for name, at in first.items()}

    def _partials(self) -> Tensor:
        """Several threads sum up gradients tile by tile, beside each other."""
        threads = torch.get_num_threads()
        if threads == 1 or not self.program.gradients:
            return _NOTHING
        if self._apart is None:
            self._apart = torch.empty(-(-self.program.batch // LANES) * len(self.values))
        return self._apart

    def vector(self, tree: Params) -> Tensor:
        """The survivors of all leaves, one after the other. tree: leaves are dense, or on their survivors already."""
        places = self.program.positions
        dense = {name: where for name, where in places.items() if len(where) < tree[name].numel()}
        packed = packed_like(tree, dense)
        return torch.cat([packed[name].flatten() for name in self.program.leaves]).float()

    def parts(self, vector: Tensor) -> Params:
        """Survivors by leaf, as views of a vector."""
        return {name: vector[leaf.first : leaf.first + leaf.size] for name, leaf in self.program.leaves.items()}

    def frozen(self) -> dict[str, Tensor]:
        """Of frozen parameters the values, as views."""
        names, memory = self.program.frozen, self.memory[len(self.values) :]
        return dict(zip(names, memory.split([self.sizes[name] for name in names]), strict=True))

    def shaped(self, vector: Tensor) -> Params:
        """The same, with as many dimensions as the dense leaves have: (n, 1, …)."""
        return columns(self.parts(vector), self.shapes)

    def dense(self, vector: Tensor) -> Params:
        """Dense leaves, in memory of their own."""
        leaves = unpacked_like(self.parts(vector.clone()), self.program.positions, self.shapes)
        return {name: leaf.view(self.shapes[name]) for name, leaf in leaves.items()}

    def packed(self, vector: Tensor, masked: Container[str]) -> Params:
        """Leaves in memory of their own: those that are masked on their survivors, others dense."""
        positions = {name: where for name, where in self.program.positions.items() if name not in masked}
        leaves = unpacked_like(self.parts(vector.clone()), positions, self.shapes)
        return {name: leaf if name in masked else leaf.view(self.shapes[name]) for name, leaf in leaves.items()}

    def buffers(self, before: Buffers, steps: int) -> Buffers:
        """The module's buffers after `steps` more steps."""
        after = {name: value.clone() for name, value in before.items()}
        for name, first in self.program.statistics.items():
            after[name] = self.constants[first : first + before[name].numel()].clone().view(before[name].shape)
        for name in self.program.counters:  # twice where the layer is called twice
            after[name] = after[name] + steps
        return after

    def handed_out(self, examples: int) -> list[Tensor]:
        """The network's outputs of a batch of so many examples, as views: (examples, …) of each."""
        return side_by_side(self.outputs, examples, self.program.outputs)

    def run(
        self,
        x: Tensor,
        y: Tensor,
        steps: int = 1,
        step: int = 0,
        seed: int = 0,
        within: tuple[int, int] | None = None,
        parts: int = 1,
    ) -> None:
        """Take the instructions (or those `within`) on slots 0 … steps-1 of x and y, a batch of `parts` in each."""
        begin, end = within or (0, self.end)
        if self.program.tokens:
            x, y, length = x[:steps], y[:steps], self.program.tokens
            x, y = as_tokens(x, length, 0), as_tokens(y, length, IGNORED) if y.shape[2:] == (length,) else y
        torch.ops.lthfunc.run.default(
            self._verified, begin, end, self.activations, self.memory, self.gradients, self._partials(), self.constants,
            self.kept, self.clock, self.totals, self.schedule, x, y, self.outputs, x.shape[1] // parts, parts,
            self.program.update, steps, step, seed,
        )  # fmt: skip


def as_tokens(sequences: Tensor, length: int, rest: int) -> Tensor:
    """Sequences (…, numbers · length) as examples that are tokens (…, tokens, numbers), with lengths of whole tiles.

    rest: what stands behind the last token.
    """
    *slots, _, _ = sequences.shape
    apart = sequences.unflatten(-1, (-1, length))
    return F.pad(apart, (0, -length % LANES), value=rest).mT.reshape(*slots, -1, apart.shape[-2])


def side_by_side(memory: Tensor, examples: int, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of a memory as tensors (examples, *shape), one after the other."""
    sizes = [examples * math.prod(shape) for shape in shapes]
    parts = memory[: sum(sizes)].split(sizes)
    return [part.view(examples, *shape) for part, shape in zip(parts, shapes, strict=True)]


def pack_moments(workspace: Workspace, params: Params, tree: Any) -> Any:
    """An optimiser's state with every tree that is shaped like params on the survivors, as `Workspace.shaped`."""
    shapes, positions = workspace.shapes, workspace.program.positions
    return map_leaves_like(params, tree, lambda leaves: clone(columns(packed_like(leaves, positions), shapes)))


def unpack_moments(workspace: Workspace, params: Params, tree: Any) -> Any:
    """The inverse of `pack_moments`."""
    positions, shapes = workspace.program.positions, workspace.shapes

    def dense(leaves: Params) -> Params:
        flat = {name: leaf.flatten() if name in positions else leaf.view(shapes[name]) for name, leaf in leaves.items()}
        return clone(unpacked_like(flat, positions, shapes))

    return map_leaves_like(params, tree, dense)
