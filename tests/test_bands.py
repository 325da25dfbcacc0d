"""Convolutions that take their images, and the gradients of their outputs, in bands of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from half_networks import SHAPE, Residual, batch_of, changed, instructions, made_of, on_threads
from sparse_programs import (
    Head,
    check,
    kernels,  # noqa: F401
    no_rows_roll,  # noqa: F401
)
from torch import Tensor, nn

from lthfunc.sparse import bands
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import BY_TILES, OPCODES, SUMS, column_of
from lthfunc.sparse.program import Program

pytestmark = [
    pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels())),
    pytest.mark.usefixtures("no_rows_roll"),
]

Convolution = Callable[[], nn.Module]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of as few rows as there can be."""
    monkeypatch.setattr(bands, "_BAND_BYTES", 1)


def between(convolution: nn.Module, shape: tuple[int, ...], channels: int = 4) -> nn.Module:
    """A network in which batch normalisation is before and behind a convolution, and nothing else reads its values."""
    body = nn.Sequential(
        nn.Conv2d(shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), convolution,
        nn.BatchNorm2d(channels), nn.ReLU(),
    )  # fmt: skip
    return Head(body, shape)


def parts(program: Program, name: str) -> list[dict[str, int]]:
    """Instructions that go on from those of the rows before."""
    return [row for row in instructions(program, name) if row["goes_on"]]


@pytest.mark.parametrize(
    "convolution",
    [
        lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False), lambda: nn.Conv2d(4, 4, 5, padding=2),
        lambda: nn.Conv2d(4, 4, 1), lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
        lambda: nn.Conv2d(4, 4, 3, padding="same", groups=4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("height", [8, 11])
def test_gradients_in_bands(convolution: Convolution, height: int, narrow: None) -> None:
    """Also where the last band has fewer rows, and where the halo is as high as a band."""
    shape = (3, height, 16)
    module = between(convolution(), shape)
    program, *_ = made_of(module, shape, 20)
    assert parts(program, "products")
    assert parts(program, "weight_gradients")
    check(module, shape, density=0.5)


def test_gradients_of_long_rows_and_of_many_survivors(narrow: None) -> None:
    """More places of a row than registers hold, lists of several blocks, and weights without survivors."""
    check(between(nn.Conv2d(24, 24, 3, padding=1), (3, 6, 19), 24), (3, 6, 19), density=0.7)
    check(between(nn.Conv2d(4, 4, 3, padding=1), (3, 6, 19)), (3, 6, 19), density=0.03)


def test_blocks_of_residual_networks(narrow: None) -> None:
    check(Residual(), SHAPE, 40)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bands_change_no_bit_but_those_of_sums_over_rows(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, found = (3, 9, 12), []  # stretches of a row that have one length are summed up row after row
    x, y = batch_of(shape, 40)
    for size in (1, 2**30):
        monkeypatch.setattr(bands, "_BAND_BYTES", size)
        program, workspace, _ = made_of(Residual(), shape, 40, precision=precision)
        workspace.run(x[None], y[None])
        assert bool(parts(program, "products")) is (size == 1)
        found.append(workspace)
    assert torch.equal(found[0].totals, found[1].totals)
    ours, whole = (workspace.dense(workspace.gradients) for workspace in found)
    for name, wanted in whole.items():
        assert torch.allclose(ours[name], wanted, rtol=0, atol=2e-6 * float(wanted.abs().max())), name
        if wanted.ndim == 1:
            assert torch.equal(ours[name], wanted), name


def test_any_number_of_threads_has_the_same_bits(narrow: None) -> None:
    x, y = batch_of((3, 24, 24), 40)

    def gradients() -> Tensor:
        program, workspace, _ = made_of(Residual(8), (3, 24, 24), 40)
        workspace.run(x[None], y[None])
        assert parts(program, "weight_gradients")
        return workspace.gradients

    found = on_threads(gradients)
    assert float(found[0].abs().max()) > 0
    assert torch.equal(*found)


def test_steps_after_each_other_find_zeros_around_images(narrow: None) -> None:
    """A band's memory has other rows of the step before."""
    x, y = batch_of(SHAPE, 40)
    _, workspace, _ = made_of(Residual(), SHAPE, 40)
    found: list[Tensor] = []
    for _ in range(2):
        workspace.run(x[None], y[None])
        found.append(workspace.gradients.clone())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("height", "halo", "size"), [(9, 1, 1), (9, 2, 1), (7, 0, 1), (32, 1, 4 * 34 * 64 * 7), (1, 0, 1), (12, 3, 10**6)]
)
def test_bands_have_every_row_once(height: int, halo: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_BAND_BYTES", size)
    found = bands.bands_of(4, height, 32, halo)
    if found is None:
        assert height == 1 or 4 * (32 + 2 * halo) * (height + 2 * halo) * 64 <= 2 * size
        return
    all_of_them = list(found)
    assert [row for band in all_of_them for row in range(band.first, band.first + band.rows)] == list(range(height))
    assert all(band.rows >= 2 * halo for band in all_of_them[:-1])
    assert [band.last for band in all_of_them] == [False] * (len(all_of_them) - 1) + [True]
    assert found.rows == 2 * halo or 4 * (32 + 2 * halo) * (found.rows + 2 * halo) * 64 <= size or found.rows == 1


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("products", {"goes_on": 2}, "goes_on: 0 or 1"),
        ("weight_gradients", {"goes_on": 2}, "goes_on and unfinished"),
        ("weight_gradients", {"unfinished": 2}, "goes_on and unfinished"),
        ("weight_gradients", {"unfinished": 0, "split": BY_TILES}, "cannot be split like this"),
        ("weight_gradients", {"sums": -1}, "sums reaches outside"),
        ("weight_gradients", {"sums": "end"}, "sums reaches outside"),
        ("weight_gradients", {"across": 1}, "goes_on and unfinished"),
    ],
)
def test_parts_that_go_on_nowhere_are_refused(name: str, columns: dict[str, Any], said: str, narrow: None) -> None:
    program, *_ = made_of(Residual(), SHAPE, 40)
    assert program.code.verified
    with pytest.raises(ValueError, match=said):
        _ = changed(program, name, columns, behind=True).verified


def test_gradients_are_written_with_the_last_rows_alone(narrow: None) -> None:
    program, *_ = made_of(Residual(), SHAPE, 40)
    rows = program.code.rows[program.code.rows[:, 0] == OPCODES["weight_gradients"]]
    unfinished = rows[:, column_of("weight_gradients", "unfinished")]
    assert rows[unfinished == 1, 1].unique().tolist() == [BY_TILES]
    assert SUMS in rows[unfinished == 0, 1]
