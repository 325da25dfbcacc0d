"""MEST: drop by magnitude and gradient, grow at random, fewer in time (Yuan et al. 2021, sec. 3, its MEST+EM)."""

from __future__ import annotations

from lthfunc.catalog.pruning import DROP_SCHEDULES
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.during_training import by_masks, growth_scores, period, steps_of, with_updates
from lthfunc.sparsify.drop_and_grow import exchanged_masks
from lthfunc.sparsify.scores import magnitude
from lthfunc.training.mask_updates import UpdateContext
from lthfunc.training.schedules import Schedule
from lthfunc.trees.types import NewMasks, TrainState


def mest(
    plan: Plan, update_every: int | None, update_until: float, drop_fraction: float, drop_schedule: str, growth: str,
    rates: Schedule, gradient_weight: float,
) -> Plan:  # fmt: skip
    """Drop weights where |w| + λ |gradient| is smallest (eq. 1), λ being `gradient_weight`, the gradient of a batch.

    Theirs exchanges in three stairs; ours by --drop-schedule.
    """
    end, every = period(plan, update_every, update_until)
    growing, slopes, falling = growth_of(growth, rates), growth_of("gradient"), DROP_SCHEDULES.load(drop_schedule)

    def masks(state: TrainState, now: UpdateContext) -> NewMasks:
        hopes = growth_scores(plan.trainer, growing, state, now)
        worth = magnitude(state.params, state.masks)
        if gradient_weight:
            slope = growth_scores(plan.trainer, slopes, state, now)
            worth = {name: each + gradient_weight * slope[name] for name, each in worth.items()}
        share = falling(drop_fraction, now.step, end)
        return exchanged_masks(state.params, state.masks, hopes, share, drop_score=worth)

    return with_updates(plan, by_masks(steps_of(end, every), masks))
