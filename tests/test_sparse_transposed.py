"""Transposed convolutions and pixel shuffles on the sparse engine, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from sparse_programs import Head, check, conv, kernels  # noqa: F401
from torch import nn

import lthfunc as lf
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

Pair = tuple[int, int]


@pytest.mark.parametrize("examples", [6, pytest.param(80, marks=pytest.mark.long)])
def test_transposed_convolutions(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        groups=st.sampled_from([1, 1, 2]),
        size=st.tuples(st.integers(1, 6), st.integers(1, 9)),
        kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        dilation=st.integers(1, 2),
        extra=st.tuples(st.integers(0, 1), st.integers(0, 1)),
        relu=st.booleans(),
        bias=st.booleans(),
        batch=st.sampled_from([1, 16, 19]),
        density=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def holds(
        channels: Pair, groups: int, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: int, extra: Pair,
        relu: bool, bias: bool, batch: int, density: float,
    ) -> None:  # fmt: skip
        after = [
            (s - 1) * step - 2 * p + dilation * (k - 1) + e + 1
            for s, step, p, k, e in zip(size, stride, padding, kernel, extra, strict=True)
        ]
        assume(min(after) > 0 and all(e < max(step, dilation) for e, step in zip(extra, stride, strict=True)))
        torch.manual_seed(0)
        ins, outs = channels[0] * groups, channels[1] * groups
        body = nn.Sequential(
            nn.Conv2d(2, ins, 1), nn.ReLU(),
            nn.ConvTranspose2d(ins, outs, kernel, stride, padding, extra, groups, bias, dilation),
            nn.ReLU() if relu else nn.Identity(), nn.Conv2d(outs, 2, 1),
        )  # fmt: skip
        check(Head(body, (2, *size)), (2, *size), batch, density)

    holds()


def test_between_normalisations() -> None:
    body = nn.Sequential(
        conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2, 2), nn.BatchNorm2d(5), nn.ReLU(),
        nn.ConvTranspose2d(5, 3, 3, 1, 1),
    )  # fmt: skip
    check(Head(body, (2, 4, 5)), (2, 4, 5), 20)


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffles(factor: int) -> None:
    up = nn.Sequential(conv(2, 2 * factor**2), nn.ReLU(), nn.PixelShuffle(factor), conv(2, 3))
    check(Head(up, (2, 3, 4)), (2, 3, 4), 18)
    down = nn.Sequential(conv(2, 2), nn.ReLU(), nn.PixelUnshuffle(factor), conv(2 * factor**2, 3))
    check(Head(down, (2, 2 * factor, factor)), (2, 2 * factor, factor), 18)


@pytest.mark.parametrize("batch", [1, 20])
def test_inference(batch: int) -> None:
    """With normalisation and ReLU as each phase writes its part."""
    body = nn.Sequential(conv(2, 8), nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.PixelShuffle(2))  # fmt: skip
    model = lf.from_module(Head(body, (2, 4, 5)))
    state = lf.prune(density=0.5)(lf.init(model, seed=1))
    statistics = {name: leaf + 0.3 if leaf.is_floating_point() else leaf for name, leaf in state.buffers.items()}
    state, x = state._replace(buffers=statistics), torch.randn(batch, 2, 4, 5)
    expected = lf.trees.model.apply_evaluating(model, lf.apply_masks(state.params, state.masks), state.buffers, x)
    torch.testing.assert_close(lf.sparse_program(model, state)(x), expected, rtol=1e-5, atol=1e-5)
