"""Drop and regrow: masks of one density that change during training (SET, RigL)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import invalid
from lthfunc.sparsify.allocation import number_pruned
from lthfunc.sparsify.ranking import ranks
from lthfunc.sparsify.scores import Scores, magnitude
from lthfunc.trees.ops import apply_masks, masked_like
from lthfunc.trees.types import Masks, TrainState


@public
def drop(worth: Scores, masks: Masks, share: float) -> Masks:
    """Each layer without round(share · remaining) of its weights, those of least worth."""
    _check_share(share)

    def fewer(name: str, mask: Tensor) -> Tensor:
        living = mask.sum()
        return (ranks(worth[name], mask) < living - number_pruned(living, share)) & mask

    return {name: fewer(name, mask) for name, mask in masks.items()}


@public
def grow(promise: Scores, masks: Masks, counts: Mapping[str, Tensor | int]) -> Masks:
    """Each layer with `counts` more weights, the most promising of those that it has not."""
    return {name: mask | ((ranks(promise[name], ~mask) < counts[name]) & ~mask) for name, mask in masks.items()}


@public
def drop_and_grow(state: TrainState, promise: Scores, share: float) -> TrainState:
    """Drop `share` of each layer's weights by magnitude, regrow as many by `promise`, new ones at zero.

    RigL's promise is |gradient| (Evci et al. 2020, alg. 1), SET's random (Mocanu et al. 2018). A weight just dropped
    may come back, at zero. The optimiser's state goes on for weights that stayed, and starts at zero for new ones.
    """
    masks = state.masks
    fewer = drop(magnitude(state.params, masks), masks, share)
    counts = {name: masks[name].sum() - fewer[name].sum() for name in masks}
    return state._replace(
        params=apply_masks(state.params, fewer),
        masks=grow(promise, fewer, counts),
        opt=masked_like(state.opt, fewer),
    )


@public
def cosine_drop_fraction(initial: float, step: int, end: int) -> float:
    """initial / 2 · (1 + cos(π step / end)), and 0 from `end` on: the share exchanged (Evci et al. 2020, sec. 3)."""
    _check_share(initial)
    if step < 0 or end < 0:
        raise invalid("step" if step < 0 else "end", min(step, end), "a step of at least 0")
    return initial / 2 * (1 + math.cos(math.pi * min(step, end) / end)) if end else 0.0


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise invalid("share", share, "a number in [0, 1]")
