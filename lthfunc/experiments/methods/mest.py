"""MEST: drop by magnitude and gradient, grow at random, fewer in time (Yuan et al. 2021, sec. 3, its MEST+EM)."""

from __future__ import annotations

from lthfunc.catalog.pruning import DROP_SCHEDULES
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.during_training import growth_scores, period, steps_of, with_updates
from lthfunc.sparsify.drop_and_grow import drop_and_grow
from lthfunc.sparsify.scores import magnitude
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext
from lthfunc.trees.types import TrainState


def mest(
    plan: Plan, update_every: int | None, update_until: float, drop_fraction: float, drop_schedule: str, growth: str,
    gradient_weight: float,
) -> Plan:  # fmt: skip
    """Drop weights where |w| + λ |gradient| is smallest (eq. 1), λ being `gradient_weight`, the gradient of a batch.

    Theirs exchanges in three stairs; ours by --drop-schedule.
    """
    end, every = period(plan, update_every, update_until)
    growing, slopes, falling = growth_of(growth), growth_of("gradient"), DROP_SCHEDULES.load(drop_schedule)

    def change(state: TrainState, now: UpdateContext) -> TrainState:
        hopes = growth_scores(plan.trainer, growing, state, now)
        worth = magnitude(state.params, state.masks)
        if gradient_weight:
            slope = growth_scores(plan.trainer, slopes, state, now)
            worth = {name: each + gradient_weight * slope[name] for name, each in worth.items()}
        return drop_and_grow(state, hopes, falling(drop_fraction, now.step, end), drop_score=worth)

    return with_updates(plan, MaskUpdates(steps_of(end, every), change))
