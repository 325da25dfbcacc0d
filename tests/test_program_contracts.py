"""What the machine refuses of instructions written by hand, and how it splits, moves and draws for those it takes."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, COLUMNS, HEAD, OPCODES, STORED, SUMS, WHOLE, encoded
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.tile_buffers import LANES

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    build.load_kernels()


def made(
    name: str,
    split: int = BY_TILES,
    rows: int = 1,
    *,
    vectors: int = 64,
    local: int = 0,
    batch: int = 20,
    **columns: int,
) -> int:
    """A program of one instruction, whose other columns are 0; it is freed with the process."""
    row = encoded(name, split, rows, 0, **(dict.fromkeys(COLUMNS[name], 0) | columns))
    number: int = torch.ops.lthfunc.make_program(
        torch.tensor([row]), torch.zeros(64, dtype=torch.int32), vectors, local, 64, 64, 64, batch
    )
    return number


@pytest.mark.parametrize("sides", [(0, 2), (2, 0), (0, 0)])
def test_sums_of_no_places_are_refused(sides: tuple[int, int]) -> None:
    """Their shift is the first place's value."""
    with pytest.raises(ValueError, match="height and width: positive"):
        made("value_sums", height=sides[0], width=sides[1], **{"in": 2**31 - 1})
    assert made("value_sums", height=1, width=1)


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("attention_gradient", {BY_TILES}), ("lane_products", {BY_TILES}), ("embed", {BY_TILES}),
        ("token_attention", {BY_ROWS}), ("token_attention_gradient", {BY_ROWS}), ("place_gradients", {BY_ROWS}),
        ("load_place_values", {BY_TILES}),
        ("token_normalise_gradient", {SUMS}), ("group_normalise_gradient", {SUMS}),
        ("weight_gradients", {BY_ROWS, SUMS}),
        ("number_gradients", {BY_ROWS}), ("gather_gradients", {BY_ROWS}), ("keep_gradients", {BY_ROWS}),
        ("add_gradients", {BY_ROWS}), ("embedding_gradient", {BY_ROWS}), ("dense_products", {BY_ROWS}),
        ("adam", {BY_ROWS}), ("products", {BY_ROWS, BY_TILES}), ("cross_entropy", {WHOLE}),
        ("largest_gradients", {WHOLE}),
    ],
)  # fmt: skip
def test_instructions_are_split_as_their_kernels_allow(name: str, splits: set[int]) -> None:
    for split in (-1, BY_ROWS, BY_TILES, SUMS, WHOLE, 4):
        refused = ""
        try:
            made(name, split)
        except ValueError as error:
            refused = str(error)
        assert ("cannot be split like this" not in refused) == (split in splits), split


LSTM = {
    "gates": 8, "gates_channel": 1, "state": 12, "state_before": 13, "cell": 14, "cell_before": 15, "bias": -1,
    "gates_tile": 0, "state_tile": 0, "cell_tile": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "columns", "local"),
    [
        ("recurrent_cell", LSTM, {"gates": 60}),
        ("recurrent_cell", LSTM, {"state_before": 60}),
        ("recurrent_cell", LSTM, {"cell_before": 60}),
        ("rectify", {"out": 8, "height": 1, "width": 2}, {"out": 60}),
        ("rectify", {"out": 8, "height": 1, "width": 2}, {"gate": 60}),
        ("fill", {"height": 1, "width": 4}, {"out": 60}),
        ("fill", {"height": 1, "width": 4}, {"out": 54}),
    ],
)
def test_local_buffers_lie_where_a_tile_finds_its_copy(
    name: str, columns: dict[str, int], local: dict[str, int]
) -> None:
    """Two tiles have 8 local vectors each, of 72: from vector 56 and from 64 on."""
    assert made(name, vectors=72, local=8, **columns)
    ((column, place),) = local.items()
    movable = f"{column}_tile" in COLUMNS[name] and place >= 56
    if movable:
        assert made(name, vectors=72, local=8, **(columns | local))
    else:
        with pytest.raises(ValueError, match=f"{column} cannot be a local buffer"):
            made(name, vectors=72, local=8, **(columns | local))


def test_what_takes_all_tiles_at_once_has_no_local_buffers() -> None:
    columns = {"classes": 1, "places": 1, "grad": -1}
    assert made("cross_entropy", WHOLE, vectors=72, local=8, **columns)
    with pytest.raises(ValueError, match="in cannot be a local buffer"):
        made("cross_entropy", WHOLE, vectors=72, local=8, **columns, **{"in": 60})


@pytest.mark.parametrize("column", ["height", "width", "channels"])
def test_sizes_whose_product_would_overflow_are_refused(column: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        made("load_inputs", height=2**32 - 1, width=2**32 - 1, channels=1, kind=STORED.index("float32"))
    with pytest.raises(ValueError, match="a column is out of range"):
        made("load_inputs", **({"height": 1, "width": 1, "channels": 1} | {column: 2**31}))
    assert made("dropout", height=1, width=1, threshold=2**32 - 1)


@pytest.mark.parametrize(("sides", "rows"), [((1, 1), 65), ((13, 1), 5), ((1, 13), 5), ((2**30, 2**30), 2**30)])
def test_programs_that_would_hardly_end_are_refused(sides: tuple[int, int], rows: int) -> None:
    """Steps of 0 stay inside any memory, however many they are: at most as many as it has vectors, 64."""
    assert made("copy", rows=4, height=4, width=4, gate=-1)
    with pytest.raises(ValueError, match="in: more places than there are"):
        made("copy", rows=rows, height=sides[0], width=sides[1], gate=-1)


def test_batches_that_no_memory_holds_are_refused() -> None:
    """Their numbers, (2³¹ − 1)² · 4, are more than 64 bits count."""
    most, nothing = 2**31 - 1, torch.zeros(0)
    sizes = {"height": 1, "width": 4, "channels": 1, "out_row": 4, "kind": STORED.index("float32")}
    program = made("load_inputs", batch=most, **sizes)
    with pytest.raises(ValueError, match="more numbers than memory has"):
        torch.ops.lthfunc.run(
            program, 0, 1, torch.zeros(64 * LANES), torch.zeros(64), nothing, nothing, torch.zeros(64), nothing,
            nothing.double(), nothing.double(), nothing, torch.zeros(1, 4), torch.zeros(1, 1, dtype=torch.int64),
            nothing, most, most, 1, 1, 0, 0,
        )  # fmt: skip


@pytest.mark.parametrize("columns", list(itertools.product([0, 1, 2], repeat=2)))
def test_one_example_reads_operands_side_by_side_or_repeated(columns: tuple[int, int]) -> None:
    program = made("combine", height=1, width=2, a_column=columns[0], b_column=columns[1])
    assert torch.ops.lthfunc.runs_single(program) == (2 not in columns)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_example_reads_keys_side_by_side(place: int) -> None:
    sizes = {"queries": 1, "keys": 2, "features": 1, "value_features": 1, "group": 1}
    for name in ("k_place", "v_place"):
        places = {"k_place": 1, "v_place": 1} | {name: place}
        assert torch.ops.lthfunc.runs_single(made("attention", **sizes, **places)) == (place == 1)
    assert not torch.ops.lthfunc.runs_single(made("attention", **sizes, k_place=1, v_place=1, threshold=1))


@pytest.mark.parametrize("spread", [-1, 0])
def test_one_example_reads_tables_among_the_values(spread: int) -> None:
    program = made("embed", vocabulary=2, channels=3, value_row=3, places=1, spread=spread)
    assert torch.ops.lthfunc.runs_single(program) == (spread < 0)


MOVING = {"attention": ("keys", 5), "copy": ("out", 4), "load_numbers": ("first", 4)}


@pytest.mark.parametrize("name", MOVING)
def test_columns_move_within_their_memory(name: str) -> None:
    """A sequence of five places, of which the program is for the last; the first one's attention sees one key."""
    rows = [
        encoded("load_inputs", BY_TILES, 1, 0, **dict.fromkeys(COLUMNS["load_inputs"], 0)
                | {"height": 1, "width": 1, "channels": 1, "kind": STORED.index("int64")}),
        encoded(name, BY_TILES, 1, 0, **dict.fromkeys(COLUMNS[name], 0) | _SIZES[name] | dict([MOVING[name]])),
    ]  # fmt: skip
    program = torch.ops.lthfunc.make_program(
        torch.tensor(rows), torch.zeros(64, dtype=torch.int32), 64, 0, 64, 64, 64, 1
    )

    def decode(moving: list[list[int]], places: int = 5, states: list[list[int]] = []) -> None:  # noqa: B006
        torch.ops.lthfunc.decode(
            program, torch.tensor(moving, dtype=torch.int64).view(-1, 3),
            torch.tensor(states, dtype=torch.int64).view(-1, 2), places, torch.zeros(64 * LANES),
            torch.zeros(64), torch.zeros(64), torch.zeros(places, dtype=torch.int64),
        )  # fmt: skip

    column = HEAD + COLUMNS[name].index(MOVING[name][0])
    decode([[1, column, 1]])
    for moving, places, words in (
        ([[1, column, 1]], 6, "moves too far"), ([[1, column, 2]], 5, "moves too far"),
        ([[1, column, 1]] * 2, 5, "moves too far"), ([[1, column, -1]], 5, "moves too far"),
        ([[1, column, 0]], 5, "moves too far"), ([[1, column - 1, 1]], 5, "a column that cannot move"),
        ([[0, column, 1]], 5, "a column that cannot move"), ([[2, column, 1]], 5, "a column that cannot move"),
        ([[-1, column, 1]], 5, "a column that cannot move"), ([], 0, "places: positive"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            decode(moving, places)
    decode([[1, column, 1]], states=[[0, 64], [63, 1]])
    for state in ([0, 65], [64, 1], [-1, 1], [0, -1], [2**62, 2**62]):
        with pytest.raises(ValueError, match="a state outside"):
            decode([[1, column, 1]], states=[state])


_SIZES = {
    "attention": {"queries": 1, "features": 1, "value_features": 1, "group": 1, "k_place": 1, "v_place": 1},
    "copy": {"height": 1, "width": 1, "gate": -1},
    "load_numbers": {"constant": 1},
}


@pytest.mark.long
def test_dropout_draws_anew_beyond_two_to_the_28_places() -> None:
    """A place has 16 lanes: the lanes' numbers would repeat with 32 bits. Each channel keeps its last row's draw."""
    rows, height = 2**14 + 1, 2**14
    program = made(
        "dropout", rows=rows, vectors=rows + 1, batch=16, height=height, width=1, out=1, out_channel=1,
        threshold=2**31, gate=-1,
    )  # fmt: skip
    activations = torch.ones((rows + 1) * LANES)
    outputs = torch.ones(1, 0)
    torch.ops.lthfunc.run_half(
        program, 0, 1, activations, torch.zeros(64), outputs, outputs, torch.ones(64), outputs, outputs, outputs, 16, 3
    )
    drawn = activations.view(-1, LANES)[1:]
    assert {float(each) for each in drawn.unique()} == {0.0, 1.0}
    assert not torch.equal(drawn[0], drawn[2**14])  # places 2^14 - 1 and 2^28 + 2^14 - 1


def test_work_is_what_kernels_read() -> None:
    """Vectors of a step of a transformer, by which the machine decides whether threads are woken."""
    length, width, batch = 9, 24, 40
    model = lf.from_module(CharTransformer((length,), 7, layers=1, heads=2, width=width), tokens=True, warn=False)
    params, buffers = model.init(0)
    rows = program_of(
        captured(model, (length,), training=True), params, buffers, {}, batch=batch,
        stored=Stored((length,), torch.int64), epilogue=Epilogue(),
    ).code.rows  # fmt: skip
    tiles = -(-batch // LANES)
    places = length * width * tiles
    for name, least in {
        "attention": length * places, "attention_gradient": length * places, "token_normalise": places,
        "token_normalise_gradient": places, "embedding_gradient": places,
    }.items():  # fmt: skip
        work = rows[rows[:, 0] == OPCODES[name], 3]
        assert len(work) > 0
        assert (work >= least).all(), name
        assert (work <= 2 * least).all(), name


def test_work_of_products_of_two_values_counts_what_they_sum_over() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.gain, self.out = nn.Linear(4, 8), nn.Parameter(torch.ones(8)), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(x.unflatten(1, (5, 4))) * self.gain
            found: torch.Tensor = self.out(x @ x.mT)
            return found

    model = lf.from_module(Products(), warn=False)
    rows = program_of(
        captured(model, (20,), training=True), *model.init(0), {}, batch=LANES, stored=Stored((20,), torch.float32),
        epilogue=Epilogue(),
    ).code.rows  # fmt: skip
    assert rows[rows[:, 0] == OPCODES["lane_products"], 3].tolist() == [5 * 5 * 8] * 3
    assert 8 * 5 in rows[rows[:, 0] == OPCODES["combine_gradient"], 3].tolist()


def test_a_program_that_is_freed_while_a_network_is_traced_is_no_part_of_it() -> None:
    """As the garbage collector does it, whenever it runs."""
    held = [program_of(
        captured(lf.from_module(nn.Linear(3, 2)), (3,), training=False), *lf.from_module(nn.Linear(3, 2)).init(0), {},
        batch=1, stored=Stored((3,), torch.float32), epilogue=Epilogue(None, gradients=False),
    )]  # fmt: skip
    assert held[0].code.verified

    def function(x: Tensor) -> Tensor:
        held.clear()
        gc.collect()
        return x + 1

    graph = make_fx(function, tracing_mode="fake", pre_dispatch=True)(torch.zeros(2)).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == ["aten.add.Tensor"]
