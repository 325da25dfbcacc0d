"""Interpolation, padding and other orders of rows and columns on the sparse engine, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from sparse_programs import Head, check, conv, kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Through(nn.Module):
    """A convolution, then a function's code."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.conv, self.code = conv(2, 3), code

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = eval(self.code, {"F": F, "torch": torch, "x": torch.tanh(self.conv(x))})
        return found


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.long)])
def test_interpolation(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        size=st.tuples(st.integers(1, 6), st.integers(1, 9)),
        mode=st.sampled_from(["nearest", "nearest-exact", "bilinear", "aligned"]),
        to=st.one_of(
            st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda each: f"size={each}"),
            st.tuples(st.sampled_from([0.5, 1.5, 2.0, 3.0]), st.sampled_from([0.7, 1.0, 2.0])).map(
                lambda each: f"scale_factor={each}"
            ),
        ),
        batch=st.sampled_from([1, 17]),
    )
    def holds(size: tuple[int, int], mode: str, to: str, batch: int) -> None:
        named = "mode='bilinear', align_corners=True" if mode == "aligned" else f"mode={mode!r}"
        assume(min(size) > 1 or "0." not in to)
        body = Through(f"F.interpolate(x, {to}, {named})")
        check(Head(body, (2, *size)), (2, *size), batch, density=0.6)

    holds()


BORDERS = [
    "F.pad(x, (1, 2, 3, 0), mode='reflect')", "F.pad(x, (4, 1, 0, 2), mode='replicate')",
    "F.pad(x, (2, 1, 3, 4), mode='circular')", "F.pad(x, (1, 0, 2, 1), value=-1.5)", "F.pad(x, (-1, 2, 1, -2))",
    "F.pad(x, (-1, -1, 0, 0, 1, -1), value=0.5)", "x.flip(2)", "x.flip((2, 3))", "x.roll((1, -2), (3, 2))", "x.flip(1)",
    "x.roll((1, -2), (1, -1))", "x.flatten(2).flip(-1)", "x.flatten(2).mT.roll(2, 1)", "x.flatten(2).mT.flip((1, 2))",
    "x.flatten(1).roll(7, -1)", "x.roll((1, 1), (3, 3))", "torch.relu(x).mT.flip(3) + torch.relu(x).mT",
    "x[:, :2, 1:].flip((1, 2)).flip(3)",
    "x[:, ::2, 1::2, 1::3]", "F.pad(torch.relu(x), (1, 1, 1, 1), mode='reflect') + F.pad(x, (1, 1, 1, 1))",
]  # fmt: skip


@pytest.mark.parametrize("code", BORDERS)
def test_borders_and_orders(code: str) -> None:
    check(Head(Through(code), (2, 5, 6)), (2, 5, 6), batch=18, density=0.6)


@pytest.mark.parametrize("code", ["F.interpolate(x, scale_factor=2)", "F.pad(x, (1, 1, 1, 1), mode='reflect')"])
def test_gradients_of_rectified_values(code: str) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = conv(2, 3), nn.LazyLinear(3), nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            found: Tensor = self.one(eval(code, {"F": F, "x": x}).flatten(1)) + self.two(x.flatten(1))
            return found

    net = Both()
    net(torch.zeros(2, 2, 5, 4))
    check(net, (2, 5, 4), batch=20, density=0.7)


@pytest.mark.parametrize("code", ["F.interpolate(x, size=(7, 9), mode='bilinear')", *BORDERS[:5]])
def test_one_example(code: str) -> None:
    model = lf.from_module(Head(Through(code), (2, 5, 6)))
    state = lf.prune(density=0.5)(lf.init(model, seed=1))
    run, x = lf.sparse_program(model, state), torch.randn(1, 2, 5, 6)
    expected = lf.trees.model.apply_evaluating(model, lf.apply_masks(state.params, state.masks), state.buffers, x)
    torch.testing.assert_close(run(x), expected, rtol=1e-5, atol=1e-5)
    assert next(iter(run._ready.values())).single


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        ("F.interpolate(x, scale_factor=2, mode='bicubic')", "upsample_bicubic2d"),
        ("x.flip(0)", "flip over the batch"),
        ("x.roll(1)", "roll of all dimensions as one"),
    ],
)
def test_refusals(code: str, refusal: str) -> None:
    model = lf.from_module(Head(Through(code), (2, 5, 6)))
    with pytest.raises(lf.UserError, match=f"no rule for {refusal}"):
        lf.sparse_program(model, lf.init(model))(torch.zeros(1, 2, 5, 6))
