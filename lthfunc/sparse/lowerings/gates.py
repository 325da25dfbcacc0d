"""Activations that are made of others: gated linear units, and a slope that is learned."""

from __future__ import annotations

import math
from typing import Any

import torch

from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.lowerings.broadcasting import add, multiply
from lthfunc.sparse.lowerings.dimensions import chunk, strided
from lthfunc.sparse.lowerings.interface import argument, aten, lowers
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.pointwise import pointwise


@lowers(aten.glu.default, arranged=True)
def glu(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """glu(x, dim) (Dauphin et al. 2017): the first half times the second one's logistic function."""
    value, gate = chunk(b, [args[0], 2, argument(args, 1, -1)], {})
    found: View = multiply(b, [value, pointwise(b, gate, "sigmoid")], {})
    return found


@lowers(aten.prelu.default, arranged=True)
def prelu(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """prelu(x, weight) (He et al. 2015): a slope below zero, one of all numbers or one of each channel."""
    x, weight = as_view(b, args[0]), as_view(b, args[1])
    for _ in range(len(x.arrangement.sizes) - 2):
        dims = len(weight.arrangement.sizes)
        weight = strided(weight, lambda each, dims=dims: each.with_one(dims))  # type: ignore[misc]
    # Zero and NaN have the slope that numbers below zero have. NaN as a setting is no limit.
    above = pointwise(b, x, "clamp", 0.0, math.nan)
    below = pointwise(b, x, "hardtanh", math.nan, 0.0, slope=(math.nan, torch.finfo(torch.float32).tiny))
    found: View = add(b, [above, multiply(b, [below, weight], {})], {})
    return found
