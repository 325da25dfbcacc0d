"""One token of a sequence that is given token by token: what it reads of the tokens before it, and of its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lthfunc.sparse.axes import Axis, Side, merged
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES, COLUMNS, HEAD, column_of
from lthfunc.sparse.lowerings.attention import scaled_dot_product_attention
from lthfunc.sparse.lowerings.interface import Unsupported, lowers
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import placed
from lthfunc.sparse.lowerings.recurrent import RECURRENT_LAYERS, recurrent
from lthfunc.sparse.machine_code import MachineCode
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view


@dataclass
class DecodingBuilder(Builder):
    """Collects the program for the last token of a sequence of `length`.

    caches: where keys and values of all tokens lie. states: what recurrent layers hand on to the next token. rows:
    numbers of a table's row, by where the last one lies among the constants.
    """

    length: int = 1
    caches: list[TileBuffer] = field(default_factory=list)
    states: list[TileBuffer] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)

    def moving(self, code: MachineCode) -> Iterator[tuple[int, int, int]]:
        """(instruction, column, step) of each column that is `step` less for each place before the last."""
        names, places = list(COLUMNS), {cache.first + self.length - 1 for cache in self.caches}
        for number, (opcode, *row) in enumerate(code.rows.tolist()):
            name = names[opcode]
            columns = dict(zip(COLUMNS[name], row[HEAD - 1 :], strict=False))
            if name == "attention":
                yield number, column_of(name, "keys"), 1
            elif name == "copy" and columns["out"] in places:
                yield number, column_of(name, "out"), 1
            elif name == "load_numbers" and columns["constant"] and columns["first"] in self.rows:
                yield number, column_of(name, "first"), self.rows[columns["first"]]


def causal_attention(*operands: Any, **settings: Any) -> None:
    """Stands for attention of a token to itself and all before it, whose keys and values are kept."""


def _standing_for(layer: str) -> Callable[..., None]:
    def one_step(*operands: Any) -> None:
        """Stands for one step of a recurrent layer, which goes on from the states that it kept."""

    one_step.__name__ = layer
    return one_step


#: What stands for PyTorch's recurrent layers: with the same arguments, but for an empty list of states.
ONE_STEP = {operation: _standing_for(kind) for operation, kind in RECURRENT_LAYERS.items()}


def row_of_place(*operands: Any) -> None:
    """Stands for the row of a table that belongs to the token's place: row_of_place(table)."""


@lowers(causal_attention, arranged=True)
def attention_to_all_so_far(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """causal_attention(q, k, v), of one query."""
    assert isinstance(b, DecodingBuilder)
    q, k, v = (as_view(b, each) for each in args)
    found: View = scaled_dot_product_attention(b, [q, _kept(b, k), _kept(b, v)], kwargs)
    return found


@lowers(row_of_place, arranged=True)
def row(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """row_of_place(table)."""
    assert isinstance(b, DecodingBuilder)
    (table,) = args
    b.numbers(table[:-1].flatten().tolist())
    b.rows[len(b.constants)] = table[0].numel()  # where the last row comes
    return as_view(b, table[-1].clone())


def _keep(b: Builder, states: TileBuffer) -> None:
    assert isinstance(b, DecodingBuilder)
    b.states.append(states)


for _operation, _kind in RECURRENT_LAYERS.items():
    lowers(ONE_STEP[_operation], arranged=True)(recurrent(_kind, _keep))


def _kept(b: DecodingBuilder, view: View) -> View:
    """Keys or values (batch, heads, 1, features) of this token beside those of all before it."""
    if len(view.arrangement.sizes) != 4:
        raise Unsupported("of other dimensions than (batch, heads, places, features)")
    one = placed(b, view, [Side.EXAMPLE, Side.CHANNEL, Side.COLUMN, Side.CHANNEL])
    channels = one.value.buffer.channels
    cache = TileBuffer(channels, 1, b.length)
    out = Value(cache, needs=False)
    b.caches.append(cache)

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(cache)
        b.emit(lambda: ("copy", BY_TILES, channels, {
            **x.buffer.columns_of_kind("in"), "in_column": 1, **cache.columns_of_kind("out"),
            "out": cache.first + b.length - 1, "out_column": 1, "height": 1, "width": 1, "accumulate": 0, "gate": -1,
        }))  # fmt: skip

    b.operations.append(Operation([one.value], out, emit))
    batch, heads, _, features = one.arrangement.dimensions
    places = merged([Axis(Side.COLUMN, b.length)])
    return arranged_view(out, one.arrangement._replace(dimensions=(batch, heads, places, features)))
