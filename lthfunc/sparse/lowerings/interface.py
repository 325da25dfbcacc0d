"""What a lowering is given, and how it refuses a form of an operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.tile_buffers import LANES


class Param(NamedTuple):
    """An argument that is a parameter, or a buffer that no operation changes, which is a frozen one."""

    name: str


class Buffer(NamedTuple):
    """An argument that is any other buffer."""

    name: str


class Unsupported(Exception):  # noqa: N818 - says what it is
    """This form of the operation has no lowering; the text says which form."""


#: (builder, arguments, keyword arguments) -> what the operation gives: a View, or several. Arguments are Views, Params,
#: Buffers or plain.
Lowering = Callable[[Builder, list[Any], dict[str, Any]], Any]
#: By operation; filled by `lowers` as the files of this folder are imported (table.py).
LOWERINGS: dict[object, Lowering] = {}
#: Operations whose lowerings take views of any arrangement, and parameters as values; others get plain views alone.
ARRANGED: set[object] = set()
aten = torch.ops.aten
#: Operations whose first argument may be a parameter or buffer.
OF_LEAVES: set[object] = set()
#: Columns of gradients of weights that one instruction sums up.
WHOLE_SUMS = {"sums": -1, "sums_tile": 0, "goes_on": 0, "unfinished": 0}


def lowers(*operations: object, leaves: bool = False, arranged: bool = False) -> Callable[[Lowering], Lowering]:
    """Make a function the lowering of operations. leaves: whether it takes parameters and buffers in the first place,
    where others get values alone. arranged: whether it takes views of any arrangement."""

    def add(lowering: Lowering) -> Lowering:
        if leaves:
            OF_LEAVES.update(operations)
        LOWERINGS.update(dict.fromkeys(operations, lowering))
        if arranged:
            ARRANGED.update(operations)
        return lowering

    return add


def claim(b: Builder, *params: Param | Buffer | None) -> bool:
    """Note that the operation that is added next writes the gradients of these parameters, but for frozen ones. Returns
    whether it writes any. None of them can be computed from others."""
    learns = False
    for param in params:
        if param is None:
            continue
        if not isinstance(param, Param):
            raise Unsupported("with weights that are no parameters of their own")
        if param.name not in b.frozen:
            learns = True
            b.claims.setdefault(param.name, []).append(len(b.operations))
    return learns


def value_at(b: Builder, param: Param | None) -> int:
    """Where a parameter begins among the values; -1 for none."""
    return -1 if param is None else b.leaves[param.name].first


def gradient_at(b: Builder, param: Param | None) -> int:
    """Where a parameter's gradient begins among the gradients; -1 for none, and for a frozen one."""
    return -1 if param is None or param.name in b.frozen else b.leaves[param.name].first


def check_real(view: View) -> None:
    """Refuse whole numbers and truth values, which PyTorch multiplies by no weights."""
    if view.value.dtype != torch.float32:
        raise Unsupported("of whole numbers")


def drop_threshold(share: float) -> int:
    """Below which a random number of 32 bits drops what it was drawn for, so that this share is dropped."""
    threshold = round(share * 2**32)
    if threshold >= 2**32:
        raise Unsupported("that drops everything")
    return threshold


def drawn(b: Builder, share: float) -> dict[str, int]:
    """Columns of an instruction that drops this share: what it draws follows from the operation's number among those of
    the graph, so that other instructions for the same operation draw the same."""
    b.draws += 1
    return {"threshold": drop_threshold(share), "number": b.draws}


def sequences(b: Builder) -> dict[str, int]:
    """Columns of an instruction to which examples are tokens of sequences: the tiles of each, and its tokens. Zeros
    where they are none."""
    return {"tiles": -(-b.tokens // LANES), "length": b.tokens}


def pair(value: Any) -> tuple[int, int]:
    """A setting for both sides, given once or twice."""
    both = value if isinstance(value, (list, tuple)) else (value,)
    return int(both[0]), int(both[-1])


def argument(args: Sequence[Any], position: int, default: Any) -> Any:
    """A positional argument, or its default where the graph leaves it out."""
    return args[position] if len(args) > position else default
