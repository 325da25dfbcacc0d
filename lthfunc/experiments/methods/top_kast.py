"""Top-KAST: the largest weights compute, and more of them learn (Jayakumar et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lthfunc.errors import invalid
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.trained_masks import (
    around,
    as_they_are,
    largest,
    through,
    trained_masks,
    unpruned,
    whole_numbers,
)
from lthfunc.experiments.trained_masks import TrainedMasks
from lthfunc.sparsify.budgets import uniform
from lthfunc.training.chain import ChainContext, Part
from lthfunc.training.parametrize import straight_through, top_k_mask, trained_name
from lthfunc.trees.types import Buffers, Params

#: What the penalty of exploration weighs (their sec. 3).
_PENALTY = 1e-4


def top_kast(plan: Plan, backward_density: float | None) -> Plan:
    """Compute with the largest weights of each layer, and train more of them, by default twice as many.

    Both are looked for in every step, where theirs does so every 100. Weights that compute are decayed, and those that
    only learn 1 / density times as much, so that they don't stay for long (sec. 2.3); others stay as they are.
    """
    names = plan.model.prunable

    def of_density(density: float) -> TrainedMasks:
        full, more = unpruned(plan), backward_density or min(1.0, 2 * density)
        if more < density:
            raise invalid("--backward-density", more, f"at least the density, {density:g}")
        keep = uniform(1)({}, full, 1 - density)
        forward, backward = whole_numbers(keep), whole_numbers(uniform(1)({}, full, 1 - more))

        def weights(trained: Params, fixed: Params) -> Params:
            def one(name: str) -> Tensor:
                size = trained[name].abs()
                computes, learns = top_k_mask(size, forward[name]), top_k_mask(size, backward[name])
                return straight_through(trained[name] * computes, trained[name] * learns)

            return {**trained, **{name: one(name) for name in names}}

        counts = {trained_name(name): (forward[name], backward[name]) for name in names}
        optimizer = around(plan.trainer.work.optimizer, (_exploring(counts, density),), (_holding(counts),))
        return trained_masks(plan, "top-kast", as_they_are, weights, weights, largest(full, keep), optimizer)

    return through(plan, of_density)


def _exploring(counts: dict[str, tuple[int, int]], density: float) -> Part:
    """The gradient of the penalty: of half the square of what computes, and 1 / density times that of what learns."""

    def update(grads: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        def one(name: str, grad: Tensor) -> Tensor:
            weight = context.params[name]
            computes, learns = (top_k_mask(weight.abs(), count) for count in counts[name])
            return grad + _PENALTY * weight * (computes + (learns - computes) / density)

        return {name: one(name, grad) if name in counts else grad for name, grad in grads.items()}, state

    return Part("exploration", _nothing, update, mixes=True)


def _holding(counts: dict[str, tuple[int, int]]) -> Part:
    """Weights that don't learn stay as they are, whatever their momentum and decay."""

    def update(new: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        def one(name: str, leaf: Tensor) -> Tensor:
            old = context.params[name]
            learns = top_k_mask(old.abs(), counts[name][1])
            return old + (leaf - old) * learns

        return {name: one(name, leaf) if name in counts else leaf for name, leaf in new.items()}, state

    return Part("holding", _nothing, update, follows=True, mixes=True)


def _nothing(params: Params, buffers: Buffers) -> tuple[()]:
    return ()
