"""Attention within windows of an image, as in Swin and MaxViT, on the sparse engine, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import Head, check, check_inference, kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

SIDE, WIDTH, HEADS, SHAPE = 6, 8, 2, (2, 6, 6)


def relative_places(window: int) -> Tensor:
    """Of each pair of a window's places the number of their distance."""
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    down, across = places[:, :, None] - places[:, None] + window - 1
    found: Tensor = down * (2 * window - 1) + across
    return found


class Shifted(nn.Module):
    """Windows that are shifted, with biases by relative places, and four places merged to one (Liu et al. 2021)."""

    places: Tensor

    def __init__(self, window: int = 3) -> None:
        super().__init__()
        self.window, self.conv = window, nn.Conv2d(2, WIDTH, 1)
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.biases = nn.Parameter(torch.randn((2 * window - 1) ** 2, HEADS))
        self.merge, self.last = nn.Linear(4 * WIDTH, 5), nn.LayerNorm(5)
        self.register_buffer("places", relative_places(window).flatten())

    def mask(self, x: Tensor) -> Tensor:
        """Of windows, with what was rolled there apart from what was there."""
        w = self.window
        regions, number = x.new_zeros((SIDE, SIDE)), 0
        for rows in ((0, -w), (-w, -1), (-1, None)):
            for columns in ((0, -w), (-w, -1), (-1, None)):
                regions[slice(*rows), slice(*columns)] = number
                number += 1
        regions = regions.view(SIDE // w, w, SIDE // w, w).permute(0, 2, 1, 3).reshape(-1, w * w)
        apart = regions.unsqueeze(1) - regions.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        w, n, each = self.window, len(x), SIDE // self.window
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        rows = torch.roll(x, (-1, -1), (1, 2)).view(n, each, w, each, w, WIDTH)
        rows = rows.permute(0, 1, 3, 2, 4, 5).reshape(n * each**2, w * w, WIDTH)
        q, k, v = self.qkv(rows).reshape(n * each**2, w * w, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        bias = self.biases[self.places].view(w * w, w * w, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        scores = (q * 0.5) @ k.transpose(-2, -1) + bias
        scores = scores.view(n, each**2, HEADS, w * w, w * w) + self.mask(x).unsqueeze(1).unsqueeze(0)
        mixed = F.softmax(scores.view(-1, HEADS, w * w, w * w), -1) @ v
        rows = self.out(mixed.transpose(1, 2).reshape(n * each**2, w * w, WIDTH))
        rows = rows.view(n, each, each, w, w, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(n, SIDE, SIDE, WIDTH)
        x = x + torch.roll(rows, (1, 1), (1, 2))
        four = [x[..., a::2, b::2, :] for a in (0, 1) for b in (0, 1)]
        merged: Tensor = self.last(self.merge(torch.cat(four, -1)))
        return merged


class Grid(nn.Module):
    """Attention among places of the same number in all windows, by einsums (Tu et al. 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.qkv = nn.Conv2d(2, WIDTH, 1), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).reshape(-1, WIDTH, 2, 3, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 4, 9, WIDTH)
        x = torch.swapaxes(x, -2, -3)
        q, k, v = (
            each.reshape(len(x), 9, 4, HEADS, -1).permute(0, 1, 3, 2, 4) for each in self.qkv(self.norm(x)).chunk(3, -1)
        )
        scores = F.softmax(torch.einsum("B G H I D, B G H J D -> B G H I J", q, k), -1)
        mixed = torch.einsum("B G H I J, B G H J D -> B G H I D", scores, v)
        x = torch.swapaxes(x + mixed.permute(0, 1, 3, 2, 4).reshape(-1, 9, 4, WIDTH), -2, -3)
        x = x.reshape(-1, 2, 2, 3, 3, WIDTH).permute(0, 5, 1, 3, 2, 4).reshape(len(x), WIDTH, 6, 6)
        return F.layer_norm(x.reshape(len(x), WIDTH, 9, 4), (4,))


@pytest.mark.parametrize("make", [Shifted, Grid])
@pytest.mark.parametrize("batch", [1, 5, 19])
def test_gradients_and_inference(make: Callable[[], nn.Module], batch: int) -> None:
    torch.manual_seed(0)
    check(Head(make(), SHAPE), SHAPE, batch, density=0.7)
    check_inference(Head(make(), SHAPE), SHAPE, batch, density=0.7)


@pytest.mark.parametrize("examples", [8, pytest.param(150, marks=pytest.mark.long)])
def test_slices_and_views_of_any_arrangement(examples: int) -> None:
    """What strides cannot express is a view of a copy."""

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        order=st.permutations([1, 2, 3, 4, 5]),
        merged=st.sampled_from([(120,), (6, 20), (8, 15), (2, 60), (4, 5, 6), (10, 12), (3, 8, 5)]),
        start=st.integers(0, 1),
        step=st.integers(1, 3),
        batch=st.sampled_from([1, 17]),
    )
    def holds(order: list[int], merged: tuple[int, ...], start: int, step: int, batch: int) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.conv = nn.Conv2d(2, 4, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = torch.tanh(self.conv(x)).unflatten(1, (2, 2)).unflatten(-1, (2, 3)).permute(0, *order)
                x = x.reshape(len(x), *merged)
                return x[:, start::step] * 2 + x.reshape(len(x), merged[0], -1)[:, start::step, :1].view(
                    len(x), -1, *[1] * (len(merged) - 1)
                )

        check(Head(Net(), (2, 5, 6)), (2, 5, 6), batch, density=0.8)

    holds()


class Looked(nn.Module):
    """Rows of a layer's weight by constant numbers, some of them several times."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.up, self.table, self.numbers = nn.Linear(4, 6), nn.Linear(6, 7, bias=False), numbers

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.tanh(self.up(x))[:, None] * self.table.weight[torch.tensor(self.numbers)]
        return found


@pytest.mark.parametrize("numbers", [[3], [1, 1, 1], [6, 0, -1, 2, 2, 5], list(range(7)), [1, 3, 5], [-2, -1]], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_rows_of_a_parameter(numbers: list[int], density: float) -> None:
    check(Head(Looked(numbers), (4,)), (4,), batch=19, density=density)
    check_inference(Head(Looked(numbers), (4,)), (4,), batch=19, density=density)


@pytest.mark.parametrize("function", [lambda x: x[:, torch.tensor([0, 2])], lambda x: x[:, :2][x[:, 0] > 0]])
def test_other_rows_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.out = nn.Linear(4, 4), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(function(self.up(x)))
            return found

    model = lf.from_module(Net(), warn=False)
    with pytest.raises(
        lf.UserError, match=r"no rule for index of anything but a matrix of parameters|cannot trace Net"
    ):
        lf.sparse_program(model, lf.init(model))(torch.zeros(3, 4))
