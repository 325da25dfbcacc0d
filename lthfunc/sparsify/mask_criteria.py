"""Scores that compare trained weights with those they began as (Zhou et al. 2019, sec. 3, "mask criteria").

Their *large final* is `magnitude`. An anchor is the params at the step compared with, usually the initial ones.
"""

from __future__ import annotations

from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.ranking import ranks
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.types import Masks, Params


@public
def large_init(anchor: Params) -> Score:
    """|w_i|: the weights that began large stay, whatever training made of them."""

    def score(params: Params, masks: Masks) -> Scores:
        _check_of(anchor, masks)
        return {name: anchor[name].abs() for name in masks}

    return score


@public
def magnitude_increase(anchor: Params) -> Score:
    """|w_f| - |w_i|: the weights that grew stay."""

    def score(params: Params, masks: Masks) -> Scores:
        _check_of(anchor, masks)
        return {name: params[name].abs() - anchor[name].abs() for name in masks}

    return score


@public
def distance_moved(anchor: Params) -> Score:
    """|w_f - w_i|: the weights that moved far stay (their criterion *movement*)."""

    def score(params: Params, masks: Masks) -> Scores:
        _check_of(anchor, masks)
        return {name: (params[name] - anchor[name]).abs() for name in masks}

    return score


@public
def large_init_large_final(anchor: Params) -> Score:
    """min(α |w_f|, |w_i|), α so that both have one percentile where the threshold lies: the smaller of two percentiles.

    The percentiles are those of |w_i| and |w_f| among the remaining weights of a layer. A weight stays if it is large
    both then and now, however much a layer's weights grew in training; with one rate in every layer (`uniform`,
    `layerwise`) that is the criterion of the paper and its code, whose search for the percentile this saves.
    """

    def score(params: Params, masks: Masks) -> Scores:
        _check_of(anchor, masks)

        def percentile(values: Tensor, mask: Tensor) -> Tensor:
            return 1 - ranks(values.abs(), mask).double() / mask.sum().clamp(min=1)

        return {
            name: percentile(anchor[name], mask).minimum(percentile(params[name], mask)) for name, mask in masks.items()
        }

    return score


def _check_of(anchor: Params, masks: Masks) -> None:
    """Raise UserError where an anchor is another network's."""
    for name, mask in masks.items():
        if name not in anchor or anchor[name].shape != mask.shape:
            what = f"of shape {tuple(anchor[name].shape)} in it" if name in anchor else "missing in it"
            raise UserError(f"anchor: is of another network: {name!r}, of shape {tuple(mask.shape)}, is {what}")
