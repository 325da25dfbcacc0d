"""Pruning and rewinding as transformations TrainState -> TrainState, to compose and to iterate."""

from __future__ import annotations

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.allocation import Allocate, fraction_to, globally
from lthfunc.sparsify.checks import checked_allocation, checked_selection
from lthfunc.sparsify.rewinding import rewound
from lthfunc.sparsify.scores import Score, checked_score, magnitude
from lthfunc.sparsify.selection import Select, unstructured
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.transformations import Transformation
from lthfunc.trees.types import Ticket, TrainState


@public
def prune(
    *,
    fraction: float | None = None,
    density: float | None = None,
    score: Score = magnitude,
    allocate: Allocate = globally,
    select: Select = unstructured,
) -> Transformation:
    """Score, allocate, select, and set the pruned weights to zero.

    Give either `fraction`, the share of the remaining weights to prune, or `density`, the share of all prunable
    weights to leave. The optimiser's state is dropped, since its moments belong to the network before.
    """
    if (fraction is None) == (density is None):
        raise UserError("prune: give either fraction or density")

    def transformation(state: TrainState) -> TrainState:
        share = fraction_to(density, state.masks) if density is not None else fraction
        assert share is not None
        return prune_once(state, share, checked_score(score), allocate, select)

    return transformation


def prune_once(state: TrainState, fraction: float, score: Score, allocate: Allocate, select: Select) -> TrainState:
    """The state without a fraction of its remaining weights, by a score that was checked."""
    scores = score(state.params, state.masks)
    keep = checked_allocation(allocate)(scores, state.masks, fraction)
    masks = checked_selection(select)(scores, state.masks, keep)
    return state._replace(params=apply_masks(state.params, masks), masks=masks, opt=())


@public
def rewind(*, to: TrainState) -> Transformation:
    """Put the anchor `to` (its params, buffers and step) under the masks of whatever comes in."""
    return lambda state: rewound(state, to)


@public
def ticket(state: TrainState) -> Ticket:
    """The ticket in a state: what training would start from."""
    return Ticket(apply_masks(state.params, state.masks), state.buffers, state.masks)
