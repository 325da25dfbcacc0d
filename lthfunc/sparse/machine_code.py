"""A finished program: memory laid out, instructions as rows of numbers, and the machine's own copy of them."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lthfunc.sparse.builder import Builder
from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.sparse.kernels.instructions import encoded
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.sparse.written import Instruction, Late, Written


@dataclass(eq=False)
class MachineCode:
    """A finished program. rows: its instructions (n, width); lists, constants; and sizes of the memory that it needs:
    vectors of activations, values, those of them that have gradients (`trained`), and examples. local: the vectors of
    local buffers; their copies come last."""

    rows: Tensor
    lists: Tensor
    constants: Tensor
    vectors: int
    values: int
    trained: int
    batch: int
    local: int = 0

    @functools.cached_property
    def verified(self) -> int:
        """The number of the machine's own copy, which lives as long as this object.

        The kernels are loaded now, and built where they were not yet: what only checks a network waits for no compiler.
        Raises ValueError where an instruction could read or write outside the memory that it is given.
        """
        load_kernels()
        number: int = torch.ops.lthfunc.make_program(
            self.rows, self.lists, self.vectors, self.local, self.values, self.trained, len(self.constants), self.batch
        )
        weakref.finalize(self, _free, number).atexit = False
        return number


def _free(number: int) -> None:
    """Have the machine forget a program. This may run at any time, so no trace may take it for an operation of its
    own."""
    with _disable_current_modes():
        torch.ops.lthfunc.free_program(number)


#: Instructions whose rows touch more vectors of a tile than an image has: columns whose product that is.
_OF_A_ROW: dict[str, tuple[str, ...]] = {
    "attention": ("queries", "keys", "features"),
    "attention_gradient": ("queries", "keys", "features"),
    "lane_products": ("height", "width", "count"),
    "token_normalise": ("width", "channels"),
    "token_normalise_gradient": ("height", "width", "channels"),
    "group_normalise": ("height", "width", "channels"),
    "group_normalise_gradient": ("height", "width", "channels"),
    "number_gradients": ("ny", "nx"),
    "largest_gradients": ("columns", "ny", "nx"),
    "largest_embedding_gradients": ("channels",),
    "largest_number_gradients": (),
    "combine_gradient": ("height", "width", "over_channels", "over_height", "over_width"),
}


#: Instructions that do the same at each place of each channel.
_ALIKE = frozenset({"add", "copy", "fill", "pointwise", "pointwise_gradient", "rectify"})


def _in_one_row(instruction: Instruction) -> Instruction:
    """Such an instruction of images of one place, whose channels lie side by side, as that of one row of as many
    places: each row takes its time."""
    name, split, rows, columns = instruction
    steps = [step for column, step in columns.items() if column.endswith("_channel")]
    if name not in _ALIKE or (columns["height"], columns["width"], {*steps}) != (1, 1, {1}):
        return instruction
    return name, split, 1, columns | {"width": rows} | {each: 1 for each in columns if each.endswith("_column")}


def _work(name: str, tiles: int, lists: Tensor, rows: int, columns: dict[str, int]) -> int:
    """About how many vectors an instruction touches."""
    if name in _OF_A_ROW:
        return rows * tiles * math.prod(columns[each] for each in _OF_A_ROW[name])
    if "vocabulary" in columns:  # a row is as many channels as a vector has lanes
        return rows * columns["places"] * tiles * LANES
    if name in ("keep_gradients", "add_gradients"):
        return columns["count"] // LANES
    if "entries" in columns:
        positions = columns.get("count", columns.get("ny", 1) * columns.get("nx", 1))
        return rows * columns["entries"] * positions * tiles
    if name.startswith("rolling_"):  # gradients are of the weights and of the image
        entries = int(lists[columns["starts"] + rows * columns["blocks"]])
        return entries * (1 + ("which" in columns)) * columns["height"] * columns["width"] * tiles
    if "starts" in columns and "ny" in columns:
        entries = int(lists[columns["starts"] + rows * columns["blocks"]])
        positions = 1 if columns["across"] else columns["ny"] * columns["nx"]
        return entries * positions * tiles
    if "features" in columns and "length" in columns:  # of tokens that are lanes, each with about half of the others
        return rows * columns["group"] * columns["features"] * columns["tiles"] * LANES * tiles
    if "features" in columns:
        return rows * columns["features"] * tiles
    if "last" in columns:
        return (columns["last"] - columns["first"]) // 4
    sides = columns.get("height", columns.get("out_height", 1)) * columns.get("width", columns.get("out_width", 1))
    return rows * sides * tiles


def finished(builder: Builder) -> MachineCode:
    """Lay out memory and write all instructions down.

    Once more for a builder that was finished already, where others of its weights survive.
    """
    vectors = 0
    for buffer in builder.tile_buffers:
        buffer.base = vectors
        vectors += 0 if buffer.local else builder.tiles * buffer.vectors
    local = _lay_out_local(builder, vectors)
    return _assembled(builder, builder.write_all(), vectors + builder.tiles * local, local)


def of_other_survivors(builder: Builder, code: MachineCode) -> MachineCode:
    """A builder's program once more, where others of its weights survive. code: its last one."""
    of_survivors = builder.all_of_survivors()
    if of_survivors is None:
        return finished(builder)
    lists = code.lists.clone()
    for begin, (_, weight, of) in of_survivors:
        of.write(builder.positions[weight], lists[begin : begin + sum(of.lengths)])
    return MachineCode(
        code.rows, lists, code.constants, code.vectors, code.values, code.trained, code.batch, code.local
    )


def finished_beside(builder: Builder, instructions: Sequence[Late], code: MachineCode) -> MachineCode:
    """Instructions of their own on the activations of a builder's finished program."""
    return _assembled(builder, builder.write_beside(instructions), code.vectors, 0)


def _assembled(builder: Builder, written: Sequence[Written], room: int, local: int) -> MachineCode:
    tables = [table for each in written for table in each.lists]
    lists = torch.cat(tables) if tables else torch.zeros(0, dtype=torch.int32)
    for each in written:
        if not each.row:
            name, split, count, columns = _in_one_row(each.instruction)
            each.row = encoded(name, split, count, _work(name, builder.tiles, lists, count, columns), **columns)
    rows = [each.row for each in written]
    constants = torch.tensor(builder.constants or [0.0], dtype=torch.float32)
    return MachineCode(
        torch.tensor(rows, dtype=torch.int64), lists, constants, room, builder.values, builder.trained, builder.batch,
        local,
    )  # fmt: skip


def _lay_out_local(builder: Builder, first: int) -> int:
    """Place local buffers from a vector on; returns how many vectors they need together."""
    places: dict[object, int] = {}
    end = first
    for buffer in builder.tile_buffers:
        if buffer.local is None:
            continue
        key = buffer.local, buffer.layout
        if key not in places:
            places[key], end = end, end + buffer.vectors
        buffer.base = places[key]
    return end - first
