"""Cannistraci-Hebb training: drop small weights, grow where the topology lacks links (Zhang et al. 2024)."""

from __future__ import annotations

from lthfunc.catalog.pruning import DROP_SCHEDULES
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.during_training import growth_scores, period, steps_of, with_updates
from lthfunc.sparsify.drop_and_grow import drop, drop_and_grow
from lthfunc.sparsify.scores import Scores, magnitude
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext
from lthfunc.training.results import DenseNetwork
from lthfunc.training.schedules import Schedule
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import TrainState


def cht(
    plan: Plan,
    update_every: int | None,
    update_until: float,
    drop_fraction: float,
    drop_schedule: str,
    growth: str,
    rates: Schedule,
) -> Plan:
    """Drop the smallest weights of each layer, then grow as many by a score of what is left (their sec. 3.2).

    Theirs also begins with links and weights by the data's correlations, removes neurons that have lost all links on
    one side, and stops a layer's updates once its links hardly change.
    """
    end, every = period(plan, update_every, update_until)
    growing, falling = growth_of(growth, rates), DROP_SCHEDULES.load(drop_schedule)

    def exchange(network: DenseNetwork, now: UpdateContext) -> tuple[Scores, float]:
        state, share = network(), falling(drop_fraction, now.step, end)
        fewer = drop(magnitude(state.params, state.masks), state.masks, share)
        left = state._replace(params=apply_masks(state.params, fewer), masks=fewer)
        return growth_scores(plan.trainer, growing, left, now), share

    def change(state: TrainState, now: UpdateContext) -> TrainState:
        return drop_and_grow(state, *exchange(lambda: state, now))

    return with_updates(plan, MaskUpdates(steps_of(end, every), change, exchange=exchange))
