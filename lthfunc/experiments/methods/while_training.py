"""Masks that change during one training: gradual pruning, and drop and regrow."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.experiments.methods.setting import (
    Method,
    Outcome,
    Setting,
    finished,
    loss,
    pruned_to,
    samples,
    start,
    trained,
)
from lthfunc.sparsify.budgets import erk
from lthfunc.sparsify.densities import cubic, periodic
from lthfunc.sparsify.distances import mask_distance
from lthfunc.sparsify.gradients import mean_gradient
from lthfunc.sparsify.regrowth import cosine_share, exchanged
from lthfunc.sparsify.rewinding import restart
from lthfunc.sparsify.scores import Scores, random_scores
from lthfunc.sparsify.transforms import prune
from lthfunc.trees.ops import masked_like
from lthfunc.trees.types import Masks, TrainState

#: (setting, network, seed, step) -> where new weights are promising.
Promise = Callable[[Setting, TrainState, int, int], Scores]

#: Share of the training during which masks change; how often (of all steps), and the share exchanged at first. Evci et
#: al. 2020, sec. 4 (75 %, every 100 of 32,000 steps, 0.3), and more often here, since trainings are shorter.
_CHANGING, _TIMES, _SHARE = 0.75, 30, 0.3
#: Early bird (You et al. 2020, sec. 3.2): distance below which masks count as settled, among how many; looks in all.
#: Theirs is a tenth of all weights, at densities near a half, so a fifth of what is possible there.
_SETTLED, _COMPARED, _LOOKS = 0.2, 5, 40


def gradual(setting: Setting, seed: int) -> Outcome:
    """Prune by magnitude along Zhu & Gupta's cubic; the optimiser's state goes on for the weights that stay."""
    end = round(_CHANGING * setting.steps)
    state = start(setting, seed)
    for step, density in cubic(setting.density, end // 10, end, max(1, end // _TIMES)):
        state = trained(setting, seed, step)(state) if step > int(state.step) else state
        pruned = prune(density=density)(state)
        state = pruned._replace(opt=masked_like(state.opt, pruned.masks))
    return finished(setting, state, seed, int(state.step))


def exchanging(promise: Promise) -> Method:
    """Random ERK masks at first; then small weights go and as many others come, fewer and fewer."""

    def method(setting: Setting, seed: int) -> Outcome:
        end = round(_CHANGING * setting.steps)
        every = max(1, end // _TIMES)
        state = pruned_to(setting, erk(), score=random_scores(seed, "at-init"))(start(setting, seed))
        for step in periodic(every, end, every)[:-1]:
            state = trained(setting, seed, step)(state)
            state = exchanged(state, promise(setting, state, seed, step), cosine_share(_SHARE, step, end))
        return finished(setting, state, seed, int(state.step))

    return method


def by_chance(setting: Setting, state: TrainState, seed: int, step: int) -> Scores:
    """SET (Mocanu et al. 2018)."""
    return random_scores(seed, "regrow", step)(state.params, state.masks)


def by_gradient(setting: Setting, state: TrainState, seed: int, step: int) -> Scores:
    """RigL (Evci et al. 2020): where the dense gradient is largest, on a batch."""
    batch = samples(setting, seed, 1, f"regrow/{step}")
    gradient = mean_gradient(loss(setting, state), batch)(state.params, state.masks)
    return {name: leaf.abs() for name, leaf in gradient.items()}


set_, rigl = exchanging(by_chance), exchanging(by_gradient)


def early_bird(setting: Setting, seed: int) -> Outcome:
    """Train until the mask that pruning would give has settled, prune then, rewind and train (You et al. 2020)."""
    anchor = state = start(setting, seed)
    seen: list[Masks] = []
    every = max(1, setting.steps // _LOOKS)
    for step in periodic(every, setting.steps, every):
        state = trained(setting, seed, step)(state)
        masks = pruned_to(setting)(state).masks
        if len(seen) == _COMPARED and max(_unlike(masks, other, setting.density) for other in seen) < _SETTLED:
            break
        seen = [*seen, masks][-_COMPARED:]
    return finished(setting, restart(pruned_to(setting)(state), anchor), seed, int(state.step))


def _unlike(left: Masks, right: Masks, density: float) -> float:
    """Their distance, as a share of the most that two masks of one density can have."""
    return mask_distance(left, right) / (2 * min(density, 1 - density))
