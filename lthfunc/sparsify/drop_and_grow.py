"""Drop and grow: masks that change during training while the density stays the same (SET, RigL)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.allocation import number_pruned
from lthfunc.sparsify.ranking import best
from lthfunc.sparsify.scores import Scores, magnitude
from lthfunc.trees.ops import apply_masks, masked_like
from lthfunc.trees.types import Growth, Masks, NewMasks, Params, TrainState


@public
def drop(scores: Scores, masks: Masks, drop_fraction: float) -> Masks:
    """Drop round(drop_fraction · remaining) of each layer's weights, those with the lowest scores.

    drop_fraction: in [0, 1]. Returns the new masks. Raises UserError for a fraction out of range, and for scores
    of other weights.

    >>> lf.drop({"w": torch.tensor([3.0, 1.0, 2.0, 4.0])}, {"w": torch.tensor([True] * 4)}, 0.5)
    {'w': tensor([ True, False, False,  True])}
    """

    def fewer(name: str, mask: Tensor) -> Tensor:
        living = mask.sum()
        return best(scores[name], mask, living - number_pruned(living, drop_fraction))

    return {name: fewer(name, mask) for name, mask in masks.items()}


@public
def grow(growth: Scores | Growth, masks: Masks, counts: Mapping[str, Tensor | int]) -> Masks:
    """Grow `counts[name]` pruned weights of each layer, those with the highest scores.

    growth: scores, or a function that picks the weights (`random_growth`). Returns the new masks.

    >>> masks = {"w": torch.tensor([True, False, False, False])}
    >>> lf.grow({"w": torch.tensor([9.0, 1.0, 2.0, 3.0])}, masks, {"w": 2})
    {'w': tensor([ True, False,  True,  True])}
    """
    if isinstance(growth, dict):
        _check_growth(growth, masks)
        return {name: mask | best(growth[name], ~mask, counts[name]) for name, mask in masks.items()}

    def more(name: str, mask: Tensor) -> Tensor:
        taken = mask.flatten().nonzero().flatten().cpu()
        places = growth(name, taken, mask.numel(), int(counts[name])).to(mask.device)
        return mask.flatten().index_fill(0, places, True).view(mask.shape)

    return {name: more(name, mask) for name, mask in masks.items()}


def _check_growth(scores: Scores, masks: Masks) -> None:
    """Raise UserError for scores of other weights than the masks'."""
    for name, mask in masks.items():
        if name not in scores:
            raise UserError(f"growth: has no scores of {name}")
        if scores[name].shape != mask.shape:
            expected = f"a score for each weight, in the shape {tuple(mask.shape)}"
            raise invalid(f"growth: {name}", tuple(scores[name].shape), expected)


@public
def drop_and_grow(
    state: TrainState,
    growth: Scores | Growth,
    drop_fraction: float,
    *,
    drop_score: Scores | None = None,
    keep_values: bool = False,
) -> TrainState:
    """Drop a fraction of each layer's weights by magnitude and grow as many elsewhere, which start at zero.

    growth: scores, RigL's being |gradient| (Evci et al. 2020, alg. 1; `mean_gradient`), or a function that picks the
    weights, SET's being `random_growth` (Mocanu et al. 2018). drop_fraction: in [0, 1] of the remaining weights;
    `cosine_drop_fraction` decays it. drop_score: by which the lowest are dropped, instead of the magnitude. A weight
    that was just dropped may grow again, from zero, or as it was with keep_values. Returns the new state: optimiser
    moments of surviving weights continue, those of grown weights start at zero. Raises UserError for a fraction out of
    range, and for scores of other weights.

    >>> state = lf.prune(density=0.5)(lf.init(lf.from_module(nn.Linear(4, 2))))
    >>> lf.count(lf.drop_and_grow(state, lf.random_growth(0), 0.5).masks)
    Count(kept=4, total=8)
    """
    exchange = exchanged_masks(
        state.params, state.masks, growth, drop_fraction, drop_score=drop_score, keep_values=keep_values
    )
    return under_new_masks(state, exchange)


def exchanged_masks(
    params: Params,
    masks: Masks,
    growth: Scores | Growth,
    drop_fraction: float,
    *,
    drop_score: Scores | None = None,
    keep_values: bool = False,
) -> NewMasks:
    """The masks of `drop_and_grow`."""
    fewer = drop(magnitude(params, masks) if drop_score is None else drop_score, masks, drop_fraction)
    counts = {name: masks[name].sum() - fewer[name].sum() for name in masks}
    new = grow(growth, fewer, counts)
    return NewMasks(new, {name: new[name] & mask for name, mask in masks.items()} if keep_values else fewer)


@public
def under_new_masks(state: TrainState, new: NewMasks) -> TrainState:
    """The state from which training goes on under other masks, of any density.

    What an update of `MaskUpdates` changes where its `exchange` gives `NewMasks`. state: as training left it. new: the
    masks, and `stays`: of which of their weights values and optimiser moments go on; others begin at zero. Both are
    bool, in the shapes of the state's masks. Returns the new state.

    >>> state = lf.prune(density=0.5)(lf.init(lf.from_module(nn.Linear(4, 2))))
    >>> everywhere = lf.NewMasks(lf.tree_map(torch.ones_like, state.masks), state.masks)
    >>> lf.count(lf.under_new_masks(state, everywhere).masks)
    Count(kept=8, total=8)
    """
    params, opt = apply_masks(state.params, new.stays), masked_like(state.opt, new.stays)
    return state._replace(params=params, masks=new.masks, opt=opt)


@public
def cosine_drop_fraction(initial: float, step: int, end: int) -> float:
    """The drop fraction at a step: initial / 2 · (1 + cos(π step / end)), 0 from step `end` on.

    Evci et al. 2020, sec. 3, "Update schedule". Raises UserError where `initial` is not in [0, 1], or a step is
    negative.

    >>> [round(lf.cosine_drop_fraction(0.3, step, end=100), 3) for step in (0, 50, 100)]
    [0.3, 0.15, 0.0]
    """
    return initial / 2 * (1 + math.cos(math.pi * min(step, end) / end)) if end else 0.0


@public
def linear_drop_fraction(initial: float, step: int, end: int) -> float:
    """The drop fraction at a step: initial · (1 - step / end), 0 from step `end` on.

    Raises UserError where `initial` is not in [0, 1], or a step is negative.

    >>> [round(lf.linear_drop_fraction(0.3, step, end=100), 3) for step in (0, 50, 100)]
    [0.3, 0.15, 0.0]
    """
    return initial * (1 - min(step, end) / end) if end else 0.0


def constant_drop_fraction(initial: float, step: int, end: int) -> float:
    """The same fraction in all updates (Mocanu et al. 2018)."""
    return initial
