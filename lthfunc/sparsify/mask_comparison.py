"""How far masks lie apart, and what is left of layers."""

from __future__ import annotations

from lthfunc.arguments import public
from lthfunc.trees.ops import as_numbers
from lthfunc.trees.types import Masks


@public
def mask_distance(left: Masks, right: Masks) -> float:
    """Share of the prunable weights where two masks differ, in [0, 1] (You et al. 2020, sec. 3.2)."""
    total = sum(mask.numel() for mask in left.values())
    return float(sum(as_numbers([(left[name] != right[name]).sum() for name in left])) / total)


@public
def mask_overlap(left: Masks, right: Masks) -> float:
    """Weights in both masks / weights in either (Jaccard's index), in [0, 1]; 1 where both are empty."""
    pairs = [(left[name], right[name]) for name in left]
    found = as_numbers([(a & b).sum() for a, b in pairs] + [(a | b).sum() for a, b in pairs])
    both, either = sum(found[: len(pairs)]), sum(found[len(pairs) :])
    return both / either if either else 1.0


@public
def collapsed_layers(masks: Masks) -> tuple[str, ...]:
    """Layers of which nothing remains: no signal passes a network that has one without a way round it."""
    alive = as_numbers([mask.any() for mask in masks.values()])
    return tuple(name for name, any_left in zip(masks, alive, strict=True) if not any_left)
