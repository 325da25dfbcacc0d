"""Scores that compare trained with initial weights (Zhou et al. 2019, sec. 3, "mask criteria").

Their *large final* is `magnitude`. An anchor is the params compared with, usually the initial ones.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.ranking import ranks
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.types import Masks, Params


@public
def large_init(anchor: Params) -> Score:
    """Large init: |w_i|; weights that started large remain, whatever became of them (Zhou et al. 2019, sec. 3).

    anchor: the initial params. Returns a score.

    >>> score = lf.large_init({"w": torch.tensor([3.0, -1.0])})
    >>> score({"w": torch.tensor([0.0, 5.0])}, {"w": torch.tensor([True, True])})
    {'w': tensor([3., 1.])}
    """
    return _compared(anchor, lambda before, now, mask: before.abs())


@public
def magnitude_increase(anchor: Params) -> Score:
    """Magnitude increase: |w_f| - |w_i|; weights that grew remain (Zhou et al. 2019, sec. 3).

    anchor: the initial params. Returns a score.

    >>> score = lf.magnitude_increase({"w": torch.tensor([3.0, -1.0])})
    >>> score({"w": torch.tensor([0.0, 5.0])}, {"w": torch.tensor([True, True])})
    {'w': tensor([-3.,  4.])}
    """
    return _compared(anchor, lambda before, now, mask: now.abs() - before.abs())


@public
def distance_moved(anchor: Params) -> Score:
    """Movement in the sense of Zhou et al. 2019, sec. 3: |w_f - w_i|; weights that moved far remain.

    anchor: the initial params. Returns a score.

    >>> score = lf.distance_moved({"w": torch.tensor([3.0, -1.0])})
    >>> score({"w": torch.tensor([0.0, 5.0])}, {"w": torch.tensor([True, True])})
    {'w': tensor([3., 6.])}
    """
    return _compared(anchor, lambda before, now, mask: (now - before).abs())


@public
def large_init_large_final(anchor: Params) -> Score:
    """Large init, large final: the smaller percentile of |w_i| and |w_f| in the layer (Zhou et al. 2019, sec. 3).

    Theirs is min(α |w_f|, |w_i|) with an α such that both have the same percentile at the threshold; with one rate in
    every layer (`uniform`, `layerwise`) this gives the same masks without their search for α. anchor: the initial
    params. Returns a score.

    >>> score = lf.large_init_large_final({"w": torch.tensor([3.0, -1.0])})
    >>> score({"w": torch.tensor([0.0, 5.0])}, {"w": torch.tensor([True, True])})
    {'w': tensor([0.5000, 0.5000], dtype=torch.float64)}
    """

    def percentile(values: Tensor, mask: Tensor) -> Tensor:
        return 1 - ranks(values.abs(), mask).double() / mask.sum().clamp(min=1)

    return _compared(anchor, lambda before, now, mask: percentile(before, mask).minimum(percentile(now, mask)))


def _compared(anchor: Params, compare: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Score:
    """The score compare(anchor's leaf, leaf, mask). Raises UserError where the anchor is another network's."""

    def score(params: Params, masks: Masks) -> Scores:
        for name, mask in masks.items():
            if name not in anchor or anchor[name].shape != mask.shape:
                what = f"of shape {tuple(anchor[name].shape)} in it" if name in anchor else "missing in it"
                shape = tuple(mask.shape)
                raise UserError(f"anchor: belongs to another network: {name!r}, of shape {shape}, is {what}")
        return {name: compare(anchor[name], params[name], mask) for name, mask in masks.items()}

    return score
