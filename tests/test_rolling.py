"""Convolutions beside batch normalisations, whose images' rows roll."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from half_networks import SHAPE, Residual, batch_of, changed, instructions, made_of, of_batches, on_threads
from sparse_programs import (
    TOLERANCE,
    Head,
    check,
    kernels,  # noqa: F401
    rows_roll,  # noqa: F401
)
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse import rolling
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import BY_TILES, OPCODES, column_of
from lthfunc.sparse.program import Program
from lthfunc.sparse.tile_buffers import LANES, VECTOR_BYTES
from lthfunc.sparse.workspace import Workspace

pytestmark = [
    pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels())),
    pytest.mark.usefixtures("rows_roll"),
]


def between(convolution: nn.Module, ins: int, outs: int, *, relu: bool = True) -> nn.Module:
    """Batch normalisation before and behind a convolution of an image of three channels."""
    first = nn.Conv2d(3, ins, 3, padding=1, bias=False), nn.BatchNorm2d(ins), *([nn.ReLU()] if relu else [])
    return nn.Sequential(*first, convolution, nn.BatchNorm2d(outs), nn.ReLU())


def program_for(module: nn.Module, shape: tuple[int, ...] = SHAPE, batch: int = 40, **given: Any) -> Program:
    return made_of(module, shape, batch, **{"precision": "fp32", **given})[0]


def rolls(program: Program) -> list[int]:
    """How many products roll, and how many gradients."""
    return [len(instructions(program, name)) for name in ("rolling_products", "rolling_gradients")]


@pytest.mark.parametrize(
    ("convolution", "sizes"),
    [
        (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), [(8, 16), (9, 19), (13, 11)]),
        (lambda: nn.Conv2d(4, 6, 5, padding=2, bias=False), [(15, 13), (12, 22)]),
        (lambda: nn.Conv2d(4, 6, 7, padding="same", bias=False), [(17, 24)]),
        (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False), [(16, 14)]),
        (lambda: nn.Conv2d(4, 6, 3, padding=3, dilation=3, bias=False), [(21, 23)]),
    ],
)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_gradients_of_rows_that_roll(
    convolution: Callable[[], nn.Module], sizes: list[tuple[int, int]], density: float
) -> None:
    """Also of widths that no number of columns divides, and of weights of which rows have none."""
    for height, width in sizes:
        shape = (3, height, width)
        module = Head(between(convolution(), 4, 6), shape)
        assert rolls(program_for(module, shape, 33)) == [1, 1]
        check(module, shape, 33, density)


@pytest.mark.parametrize("groups", [8, 2])
def test_gradients_of_grouped_convolutions(groups: int) -> None:
    convolution = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
    module = Head(between(convolution, 8, 8, relu=False), SHAPE)
    assert rolls(program_for(module)) == [1, 1]
    check(module, SHAPE)


def test_gradients_of_blocks_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows of lists than run in turn, and blocks in which some find nothing."""
    monkeypatch.setattr(rolling, "_NEAR_BYTES", 4096)
    monkeypatch.setattr(rolling, "_LEAST_ENTRIES", 1)
    for module in (Head(between(nn.Conv2d(20, 36, 3, padding=1, bias=False), 20, 36), SHAPE), Residual(20)):
        program = program_for(module, density=0.3)
        for name in ("rolling_products", "rolling_gradients"):
            assert min(row["blocks"] for row in instructions(program, name)) > 1
        check(module, SHAPE, 20, 0.3)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # Of an image that pooling made; of one whose outputs' gradient lies in memory, since pooling reads them.
        ([nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)], [0, 1]),
        ([nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.AvgPool2d(2)], [1, 1]),
        # A bias has a gradient besides, a kernel of one place reads nothing around it, and a stride skips rows.
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)], [0, 0]),
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)], [0, 0]),
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(4)], [0, 0]),
        # Nothing else between convolutions.
        ([nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False)], [0, 0]),
    ],
)
def test_which_rows_roll(body: list[nn.Module], expected: list[int]) -> None:
    shape = (3, 18, 18)
    module = Head(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), *body), shape)
    program = program_for(module, shape)
    assert rolls(program) == expected
    assert [row["saved"] < 0 for row in instructions(program, "rolling_gradients")] == [expected[0] == 1] * expected[1]
    check(module, shape, 40)


def test_a_bias_that_does_not_learn_is_added() -> None:
    """No normalisation behind it takes it away again."""
    convolution = nn.Conv2d(4, 6, 3, padding=1)
    assert convolution.bias is not None
    convolution.bias.requires_grad_(False)
    first = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
    module = Head(nn.Sequential(*first, convolution, nn.AvgPool2d(2)), (3, 18, 18))
    assert rolls(program_for(module, (3, 18, 18))) == [1, 1]
    check(module, (3, 18, 18), 40)


def test_gradients_of_residual_networks() -> None:
    program = program_for(Residual())
    assert rolls(program) == [3, 3]
    assert [row["accumulate"] for row in instructions(program, "rolling_gradients")] == [0, 0, 1]
    check(Residual(), SHAPE, 40)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_any_number_of_threads_has_the_same_bits(precision: Any) -> None:
    x, y = batch_of((3, 24, 24), 80)

    def gradients() -> Tensor:
        program, workspace, _ = made_of(Residual(8), (3, 24, 24), 80, precision=precision)
        for step in range(2):
            workspace.run(x[None], y[None], step=step)
        assert rolls(program) == [3, 3]
        return workspace.gradients

    found = on_threads(gradients)
    assert float(found[0].abs().max()) > 0
    assert torch.equal(*found)


def test_numbers_of_16_bits_are_those_of_a_network_that_rounds_alike() -> None:
    program, *_ = made_of(Residual(), SHAPE, 40, precision="bf16")
    rows = [*instructions(program, "rolling_products"), *instructions(program, "rolling_gradients")]
    assert [row["in_half"] + row["out_half"] for row in rows] == [2] * 6
    assert [row.get("copy_half", row.get("image_half")) for row in rows] == [1, 0, 1, 1, 1, 1]
    losses, close = of_batches(functools.partial(Residual, 4))
    assert sorted(losses)[-2] <= 1e-5, losses
    assert min(close) <= TOLERANCE, close
    assert statistics.median(close) <= 1e-4, close


def test_gradients_may_be_written_where_values_were_read_for_the_last_time() -> None:
    program = program_for(Residual())
    behind = instructions(program, "rolling_gradients")
    assert any(row["out"] == row["in"] or row["out"] == row["grad"] for row in behind)


def test_what_lay_where_rows_roll_is_not_read() -> None:
    """Nor where sums and lanes are added up: the same bits as of memory that is zero."""
    x, y = batch_of(SHAPE, 40)
    found = []
    for before in (0.0, float("nan")):
        program, workspace, _ = made_of(Residual(), SHAPE, 40, precision="fp32")
        memory = workspace.activations.view(-1, LANES)
        for row in (*instructions(program, "rolling_products"), *instructions(program, "rolling_gradients")):
            height, width = 2 * row["halo"] + 1, row["width"] + 2 * row["halo"]
            memory[row["room"] :][: row["channels"] * height * width] = before
            memory[[row[name] for name in ("sums", "lanes") if row.get(name, -1) >= 0]] = before
        workspace.run(x[None], y[None])
        found.append(workspace.gradients.clone())
    assert torch.isfinite(found[1]).all()
    assert torch.equal(*found)


def test_what_does_not_fit_into_a_cache_goes_past_it() -> None:
    """The same bits as if it were written into the caches."""
    shape, batch = (3, 16, 16), 16 * 40
    program, workspace, params = made_of(Residual(8), shape, batch, precision="fp32")
    rows = program.code.rows.clone()
    where = rows[:, 0] == OPCODES["rolling_products"]
    columns = [column_of("rolling_products", name) for name in ("streamed", "copy_streamed")]
    assert rows[where][:, columns].tolist() == [[1, 1], [1, 0], [1, 1]]
    for column in columns:
        rows[where, column] = 0
    x, y = batch_of(shape, batch)
    inside = Workspace(
        program._replace(code=dataclasses.replace(program.code, rows=rows)),
        params,
        lf.from_module(Residual(8), warn=False).init(0)[1],
    )
    found = []
    for each in (workspace, inside):
        each.run(x[None], y[None])
        found.append(each.gradients.clone())
    assert float(found[0].abs().max()) > 0
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("channels", "width", "halo", "expected"),
    [(16, 32, 1, True), (16, 32, 3, True), (16, 32, 0, False), (16, 32, 4, False), (400, 32, 1, False)],
)
def test_rows_roll_where_a_cache_holds_them(channels: int, width: int, halo: int, expected: bool) -> None:
    found = rolling.rolling_of(channels, 10, width, halo)
    assert (found is not None) is expected
    if found is not None:
        assert channels * found.rows * found.row * VECTOR_BYTES <= 512 * 1024


def test_rows_do_not_roll_without_registers_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "have_avx512", lambda: False)
    assert rolling.rolling_of(16, 32, 32, 1) is None


@pytest.mark.parametrize(
    ("entries", "rows", "channels", "expected"),
    [(100, 16, 16, 1), (10**4, 16, 16, 1), (10**4, 64, 64, 4), (10**3, 64, 64, 1)],
)
def test_blocks_fit_into_a_near_cache_unless_rows_find_little_there(
    entries: int, rows: int, channels: int, expected: int
) -> None:
    assert rolling.Rolling(32, 32, 1).blocks(entries, rows, channels) == expected


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("rolling_products", {"halo": 0}, "halo: 1 to"),
        ("rolling_gradients", {"halo": 4}, "halo: 1 to"),
        ("rolling_products", {"channels": 0}, "channels, height and width"),
        ("rolling_products", {"blocks": 0}, "blocks: out of range"),
        ("rolling_products", {"room": "end"}, "room reaches outside"),
        ("rolling_products", {"channels": 1}, "offsets: outside the room"),
        ("rolling_gradients", {"width": 3}, "offsets: outside the room"),
        ("rolling_products", {"in": "end"}, "in reaches outside"),
        ("rolling_products", {"copy": "end"}, "copy reaches outside"),
        ("rolling_products", {"out": -1}, "out reaches outside"),
        ("rolling_products", {"sums": "end"}, "sums reaches outside"),
        ("rolling_products", {"values": 10**6}, "values reaches outside"),
        ("rolling_products", {"saved": 10**6}, "saved reaches outside"),
        ("rolling_products", {"out_half": 2}, "half: 0 or 1"),
        ("rolling_gradients", {"split": BY_TILES}, "cannot be split like this"),
        ("rolling_gradients", {"which": 0}, "which: no such entry"),
        ("rolling_gradients", {"lanes": "end"}, "lanes reaches outside"),
        ("rolling_gradients", {"image": "end"}, "image reaches outside"),
        ("rolling_gradients", {"gate": "end"}, "gate reaches outside"),
        ("rolling_gradients", {"norm": "end"}, "norm reaches outside"),
        ("rolling_gradients", {"gradients": 10**6}, "gradients reaches outside"),
        ("rolling_gradients", {"grad_half": 2}, "half: 0 or 1"),
    ],
)
def test_programs_that_reach_outside_are_refused(name: str, columns: dict[str, Any], said: str) -> None:
    program = program_for(Residual())
    assert program.code.verified
    with pytest.raises(ValueError, match=said):
        _ = changed(program, name, columns).verified
