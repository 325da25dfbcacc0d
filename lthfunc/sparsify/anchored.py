"""Scores that compare trained weights with those they began as (Zhou et al. 2019, sec. 3, "mask criteria").

Their *large final* is `magnitude`. An anchor is the params at the step compared with, usually the initial ones.
"""

from __future__ import annotations

from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.types import Masks, Params


def large_init(anchor: Params) -> Score:
    """|w_i|: the weights that began large stay, whatever training made of them."""

    def score(params: Params, masks: Masks) -> Scores:
        return {name: anchor[name].abs() for name in masks}

    return score


def magnitude_increase(anchor: Params) -> Score:
    """|w_f| - |w_i|: the weights that grew stay."""

    def score(params: Params, masks: Masks) -> Scores:
        return {name: params[name].abs() - anchor[name].abs() for name in masks}

    return score


def distance_moved(anchor: Params) -> Score:
    """|w_f - w_i|: the weights that moved far stay (their criterion *movement*)."""

    def score(params: Params, masks: Masks) -> Scores:
        return {name: (params[name] - anchor[name]).abs() for name in masks}

    return score


def large_init_large_final(anchor: Params) -> Score:
    """min(|w_i|, |w_f|) (their criterion of that name, without its scale, which ranks don't see)."""

    def score(params: Params, masks: Masks) -> Scores:
        return {name: params[name].abs().minimum(anchor[name].abs()) for name in masks}

    return score
