"""Where Inductor keeps a value in memory, instead of working it out again at each of its uses."""

from __future__ import annotations

from torch import Tensor

#: A convolution's filters from which rearranging its work pays; below, Inductor's own plan is as fast or faster.
FILTERS = 64


def realized(value: Tensor) -> Tensor:
    """The same values, kept row by row."""
    import torch._inductor.inductor_prims as prims  # the compiler takes a second, and is loaded where it compiles

    whole = value.contiguous()
    kept: Tensor = prims.force_stride_order(whole, list(whole.stride()))
    return kept
