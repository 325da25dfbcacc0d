"""Parameters that several operations read: their gradient is the sum of those that the operations write in turn."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.errors import UserError
from lthfunc.sparse.builder import Builder
from lthfunc.sparse.kernels.instructions import BY_ROWS
from lthfunc.sparse.tile_buffers import LANES

#: Numbers of a gradient that are kept or added as one row of an instruction.
_SHARE = 4096


def emit_operations(b: Builder) -> None:
    """Add all operations' instructions."""
    shared = {name: numbers for name, numbers in b.claims.items() if len(numbers) > 1}
    written: set[str] = set()
    for number, operation in enumerate(b.operations):
        for read in operation.inputs:
            b.read(read, differentiates=operation.out.needs)
        before = len(b.backward)
        operation.emit(operation)
        mine = [name for name, numbers in shared.items() if number in numbers]
        if mine and len(b.backward) > before + 1:
            raise UserError(
                f"engine: sparse cannot add up the gradients of {mine[0]}, which several layers share, as one of "
                "them takes its gradient in several steps"
            )
        if mine and len(b.backward) == before + 1:
            b.backward[before] = _adding(b, mine, b.backward[before], written)


def _adding(b: Builder, names: list[str], gradient: Callable[[], None], written: set[str]) -> Callable[[], None]:
    """The gradient of an operation, which then is added to what others have written of these parameters'."""

    def added() -> None:
        kept = []
        for name in names:
            leaf = b.leaves[name]
            if name not in written or leaf.size == 0:
                written.add(name)
                continue
            room = b.allocate(-(-leaf.size // (LANES * b.tiles)))
            columns = {"gradients": leaf.first, "count": leaf.size, "share": _SHARE}
            rows = -(-leaf.size // _SHARE)
            b.emit(lambda rows=rows, room=room, columns=columns: (  # type: ignore[misc]
                "keep_gradients", BY_ROWS, rows, {**columns, "room": room.first}
            ))  # fmt: skip
            kept.append((rows, room, columns))
        gradient()
        for rows, room, columns in kept:
            b.emit(lambda rows=rows, room=room, columns=columns: (  # type: ignore[misc]
                "add_gradients", BY_ROWS, rows, {**columns, "room": room.first}
            ))  # fmt: skip

    return added
