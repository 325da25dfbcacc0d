"""Pruning and rewinding as transformations TrainState -> TrainState, to compose and to iterate."""

from __future__ import annotations

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.allocation import Allocate, fraction_to, globally
from lthfunc.sparsify.checks import checked_allocation, checked_selection
from lthfunc.sparsify.rewinding import rewound
from lthfunc.sparsify.scores import Score, checked_score, magnitude
from lthfunc.sparsify.structures import Select, unstructured
from lthfunc.trees.ops import apply_masks, masked_like
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
    keep_moments: bool = False,
) -> Transformation:
    """Prune a state: score, allocate, select, and set the pruned weights to zero.

    fraction: of the remaining weights to prune, in [0, 1); or density: of all prunable weights to keep, in (0, 1].
    score, allocate and select are functions as `magnitude`, `globally` and `unstructured`. keep_moments: whether the
    optimiser's moments of the remaining weights continue, as in gradual pruning; by default the optimiser state is
    dropped, since it belongs to the network before. Returns a transformation. Raises UserError where not exactly one of
    fraction and density is given.

    >>> state = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> lf.count(lf.prune(fraction=0.25)(state).masks)
    Count(kept=6, total=8)
    """
    if (fraction is None) == (density is None):
        raise UserError("prune: give either fraction or density")

    def transformation(state: TrainState) -> TrainState:
        share = fraction_to(density, state.masks) if density is not None else fraction
        assert share is not None
        return prune_once(state, share, checked_score(score), allocate, select, keep_moments)

    return transformation


def prune_once(
    state: TrainState,
    fraction: float,
    score: Score,
    allocate: Allocate = globally,
    select: Select = unstructured,
    keep_moments: bool = False,
) -> TrainState:
    """The state without a fraction of its remaining weights, by a checked score."""
    scores = score(state.params, state.masks)
    keep = checked_allocation(allocate)(scores, state.masks, fraction)
    masks = checked_selection(select)(scores, state.masks, keep)
    opt = masked_like(state.opt, masks) if keep_moments else ()
    return state._replace(params=apply_masks(state.params, masks), masks=masks, opt=opt)


@public
def rewind(*, to: TrainState) -> Transformation:
    """Rewind to a state: put the params, buffers and step of the anchor `to` under the masks of a state.

    Returns a transformation (`rewound` with a fixed anchor).

    >>> start = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> find = lf.compose(lf.prune(fraction=0.5), lf.rewind(to=start))
    >>> lf.density(find(start).masks)
    0.5
    """
    return lambda state: rewound(state, to)


@public
def ticket(state: TrainState) -> Ticket:
    """The ticket in a state: its masks, and the masked params and buffers that training would start from.

    >>> lf.density(lf.ticket(lf.init(lf.from_module(nn.Linear(4, 2)))).masks)
    1.0
    """
    return Ticket(apply_masks(state.params, state.masks), state.buffers, state.masks)
