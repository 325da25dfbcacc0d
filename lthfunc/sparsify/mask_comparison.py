"""How far masks differ, and what is left of layers."""

from __future__ import annotations

from lthfunc.arguments import public
from lthfunc.trees.ops import as_numbers
from lthfunc.trees.types import Masks


@public
def mask_distance(left: Masks, right: Masks) -> float:
    """The share of weights, in [0, 1], at which the masks `left` and `right` differ (You et al. 2020, sec. 3.2).

    >>> lf.mask_distance({"w": torch.tensor([True, False])}, {"w": torch.tensor([True, True])})
    0.5
    """
    total = sum(mask.numel() for mask in left.values())
    return float(sum(as_numbers([(left[name] != right[name]).sum() for name in left])) / total)


@public
def mask_overlap(left: Masks, right: Masks) -> float:
    """The Jaccard index of the masks `left` and `right`: weights in both / weights in either, 1 where both are empty.

    >>> lf.mask_overlap({"w": torch.tensor([True, False])}, {"w": torch.tensor([True, True])})
    0.5
    """
    pairs = [(left[name], right[name]) for name in left]
    found = as_numbers([(a & b).sum() for a, b in pairs] + [(a | b).sum() for a, b in pairs])
    both, either = sum(found[: len(pairs)]), sum(found[len(pairs) :])
    return both / either if either else 1.0


@public
def collapsed_layers(masks: Masks) -> tuple[str, ...]:
    """The names of layers of which `masks` leave nothing: no signal passes them, unless a connection skips them.

    >>> lf.collapsed_layers({"a": torch.tensor([False]), "b": torch.tensor([True])})
    ('a',)
    """
    alive = as_numbers([mask.any() for mask in masks.values()])
    return tuple(name for name, any_left in zip(masks, alive, strict=True) if not any_left)
