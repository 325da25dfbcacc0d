"""Activations, limits and shrinkages: functions of single numbers."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from lthfunc.sparse.builder import Builder, FusedStep, View
from lthfunc.sparse.kernels.instructions import POINTWISE
from lthfunc.sparse.lowerings.interface import Lowering, Unsupported, argument, aten, lowers
from lthfunc.sparse.lowerings.pointwise import COMPARISONS, pointwise

#: What PyTorch's operations take besides the value, unless they are given others.
_DEFAULTS: dict[str, tuple[float, ...]] = {
    "leaky_relu": (0.01,), "hardtanh": (-1.0, 1.0), "softplus": (1.0, 20.0), "hardshrink": (0.5,),
    "softshrink": (0.5,), "threshold": (0.0, 0.0),
}  # fmt: skip
#: SELU's slope and factor (Klambauer et al. 2017, sec. 2).
_SELU = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


@lowers(aten.relu.default, aten.relu_.default, arranged=True)
def relu(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """The operation before rectifies its value as it writes it, where nothing else reads that."""
    return pointwise(b, args[0], "relu", step=FusedStep.RECTIFY)


def activation(kind: str) -> Lowering:
    """The lowering of an activation by its name in PyTorch."""
    defaults = _DEFAULTS.get(kind, ())

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        approximate = kind == "gelu" and kwargs.get("approximate", "none") != "none"
        numbers = (float(argument(args, 1 + place, default)) for place, default in enumerate(defaults))
        return pointwise(b, args[0], "gelu_tanh" if approximate else kind, *numbers)

    return lowering


#: With lowerings of their own.
_OTHERS = ("relu", "scale", "shift", "elu", "clamp", *COMPARISONS)
for _kind in POINTWISE:
    for _name in (_kind, f"{_kind}_"):
        if _kind not in _OTHERS and hasattr(aten, _name):
            lowers(getattr(aten, _name).default, arranged=True)(activation(_kind))


@lowers(aten.elu.default, aten.elu_.default, arranged=True)
def elu(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """elu(x, alpha, scale)."""
    alpha, scale, inner = (float(argument(args, place, 1.0)) for place in (1, 2, 3))
    if inner != 1.0:
        raise Unsupported("with a scale of what is below zero")
    found = pointwise(b, args[0], "elu", alpha)
    return found if scale == 1.0 else pointwise(b, found, "scale", scale)


@lowers(aten.selu.default, aten.selu_.default, arranged=True)
def selu(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """selu(x)."""
    found: View = elu(b, [args[0], *_SELU], {})
    return found


@lowers(aten.celu.default, aten.celu_.default, arranged=True)
def celu(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """celu(x, alpha) (Barron 2017)."""
    alpha = float(argument(args, 1, 1.0))
    return pointwise(b, pointwise(b, pointwise(b, args[0], "scale", 1 / alpha), "elu", 1.0), "scale", alpha)


@lowers(aten.clamp.default, aten.clamp_.default, aten.clip.default, aten.clip_.default, arranged=True)
def clamp(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """clamp(x, low, high), of which one may be missing."""
    return _within(b, args[0], argument(args, 1, None), argument(args, 2, None))


@lowers(aten.clamp_min.default, aten.clamp_min_.default, arranged=True)
def clamp_min(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """clamp_min(x, low)."""
    return _within(b, args[0], args[1], None)


@lowers(aten.clamp_max.default, aten.clamp_max_.default, arranged=True)
def clamp_max(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """clamp_max(x, high)."""
    return _within(b, args[0], None, args[1])


def _within(b: Builder, given: Any, low: Any, high: Any) -> View:
    if any(isinstance(each, float) and math.isnan(each) for each in (low, high)):
        raise Unsupported("with a limit that is no number")
    # The machine takes NaN for no limit, since no number is beyond it.
    limits = [math.nan if each is None else float(each) for each in (low, high)]
    beyond = [_next(limit, towards) for limit, towards in zip(limits, (-math.inf, math.inf), strict=True)]
    return pointwise(b, given, "clamp", *limits, slope=beyond if _passes_at_limits() else limits)


def _next(number: float, towards: float) -> float:
    """The float32 after another."""
    both = torch.tensor([number, towards], dtype=torch.float32)
    return float(torch.nextafter(both[0], both[1]))


@functools.cache
def _passes_at_limits() -> bool:
    """Whether a gradient passes where a number is one of clamp's limits: PyTorch's releases differ."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        at = torch.zeros((), requires_grad=True)
        (slope,) = torch.autograd.grad(at.clamp(0, 1), at)
    return bool(slope)
