"""A module's call whose parts take turns on the machine and in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.sparse.capture import Captured
from lthfunc.sparse.halves import Halves
from lthfunc.sparse.interpretation import inputs_of, leaves_of, results_of
from lthfunc.sparse.partition import Input, Part, Twins, partition
from lthfunc.sparse.pytorch_parts import pytorch_part
from lthfunc.sparse.regions import region_program
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.trees.ops import scattered

#: Programs for other numbers of tiles that a part keeps.
_PROGRAMS = 8


class Weights:
    """A module's parameters and buffers as they are now, and where its survivors lie.

    params: by name; of masked ones the vector of survivors. positions: of masked ones, int64 (survivors,), in the
    flattened leaf. shapes: of all parameters, when they are dense.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        positions: Mapping[str, Tensor],
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self.params, self.buffers, self.positions, self.shapes = params, buffers, positions, shapes

    def leaf(self, name: str) -> Tensor:
        """A parameter, of its survivors alone, or a buffer."""
        found = self.params.get(name)
        return self.buffers[name] if found is None else found

    def dense(self, name: str) -> Tensor:
        """The same with zeros where it is pruned, as a function of its survivors."""
        leaf, kept = self.leaf(name), self.positions.get(name)
        return leaf if kept is None else scattered(leaf, kept, self.shapes[name])


class PartitionedCall:
    """Calls a module on its survivors. refused: what PyTorch computes since the machine has no lowering, in words.

    It holds nothing that depends on masks but programs, which `forget` drops. needs_several: whether a batch of one
    example has too few numbers for its statistics.
    """

    def __init__(
        self, captured: Captured, inputs: tuple[Input, ...], twins: Twins, buffers: Mapping[str, Tensor], *,
        gradients: bool,
        frozen: Container[str] = (),
    ) -> None:  # fmt: skip
        found = partition(captured, inputs, twins, buffers, gradients=gradients, frozen=frozen)
        self.refused, self._twins = found.refused, twins
        self.needs_several = any(map(_needs_several, captured.graph.nodes))
        self._captured, self._partition, self._gradients = captured, found, gradients
        self._functions = [
            None if part.machine else pytorch_part(captured, part, found, twins()) for part in found.parts
        ]
        self._batched = next((number for number, each in enumerate(inputs) if each.batched), 0)
        self._inputs, self._results, self._leaves = inputs_of(captured), results_of(captured), leaves_of(captured)
        self._halves: list[dict[int, Halves]] = [{} for _ in found.parts]

    def forget(self) -> None:
        """Drop what was made for the masks of before."""
        for halves in self._halves:
            halves.clear()

    def __call__(self, inputs: Sequence[Tensor], weights: Weights) -> Any:
        """What the module gives."""
        known: dict[Node, Any] = dict(zip(self._inputs, inputs, strict=True))
        for number, (part, function) in enumerate(zip(self._partition.parts, self._functions, strict=True)):
            reads = [known[node] for node in part.reads]
            if function is None:
                halves = self._halves_of(number, part, len(reads[0]), weights)
                given = halves(reads, [*map(weights.leaf, halves.program.leaves)], weights.buffers)
            else:
                leaves = [*map(weights.dense, part.params), *(weights.buffers[name] for name in part.buffers)]
                given = list(function(*leaves, *reads, len(inputs[self._batched])))
            known.update(zip(part.gives, given, strict=True))
        if self._partition.counters:
            torch._foreach_add_([weights.buffers[name] for name in self._partition.counters], 1)
        results = [known[node] if node in known else self._leaf(node, weights) for node in self._results]
        return results[0] if self._captured.outputs.single else self._captured.outputs.rebuilt(results)

    def _leaf(self, node: Node, weights: Weights) -> Tensor:
        """A parameter, a buffer or a constant that the module gives as it is."""
        leaf = self._leaves.get(node)
        if leaf is None:
            return self._captured.constants[str(node.target)]
        return weights.dense(leaf.name)

    def _halves_of(self, number: int, part: Part, examples: int, weights: Weights) -> Halves:
        tiles = _room(max(1, -(-examples // LANES)))
        known = self._halves[number]
        if tiles in known and not known[tiles].program.fits(weights.buffers):
            known.clear()
        if tiles not in known:
            if len(known) >= _PROGRAMS:
                known.pop(next(iter(known)))
            program = region_program(
                self._captured, part, self._partition, weights.positions, weights.buffers, self._twins,
                batch=tiles * LANES, gradients=self._gradients,
            )  # fmt: skip
            known[tiles] = Halves(program)
        return known[tiles]


def _needs_several(node: Node) -> bool:
    """Whether it is a batch normalisation in training, of one place."""
    found = node.target is torch.ops.aten.batch_norm.default and bool(node.args[5])
    return found and math.prod(node.meta["val"].shape[2:]) == 1


def _room(tiles: int) -> int:
    """Tiles that a program has room for: a few more, so that batches of many sizes share few programs."""
    step = 1 << max(0, tiles.bit_length() - 3)
    return -(-tiles // step) * step
