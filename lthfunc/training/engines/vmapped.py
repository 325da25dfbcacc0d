"""Several states as one: every leaf gets a leading dimension, and the pure functions run under vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.data_parallel import surviving_indices
from lthfunc.training.steps import Carry, EvalStep, LoopBody, boolean_masks, floating_masks
from lthfunc.trees.ops import tree_map
from lthfunc.trees.rng import counter_key
from lthfunc.trees.types import TrainState

T = TypeVar("T")


def stacked(trees: Sequence[T]) -> T:
    """One tree whose leaves are the trees' leaves, stacked along a new first dimension; a single tree as it is."""
    return trees[0] if len(trees) == 1 else tree_map(lambda *leaves: torch.stack(leaves), trees[0], *trees[1:])


def unstacked(tree: T, width: int) -> list[T]:
    """The trees that `stacked` put together."""
    if width == 1:
        return [tree]
    return [tree_map(lambda leaf, i=i: leaf[i], tree) for i in range(width)]


def carry_of(
    states: Sequence[TrainState], seeds: Sequence[int], collectives: Collectives = SINGLE_RANK, *, floating: bool = True
) -> Carry:
    """The loop's carry of some states: keys of the seeds, no loss yet. floating: masks as floats."""

    def single(state: TrainState, seed: int) -> Carry:
        device = state.step.device
        key = counter_key(seed, "step").to(device)
        index = surviving_indices(state) if collectives.world_size > 1 else ()
        return Carry(
            floating_masks(state) if floating else state, key, torch.zeros(1, dtype=torch.float64, device=device), index
        )

    return stacked([single(state, seed) for state, seed in zip(states, seeds, strict=True)])


def states_of(carry: Carry, width: int, copy: Callable[[Any], Any] = lambda leaf: leaf) -> list[TrainState]:
    """The public states in a carry, each leaf through `copy`."""
    return [boolean_masks(tree_map(copy, part.state)) for part in unstacked(carry, width)]


def vmapped(advance: LoopBody, width: int) -> LoopBody:
    """The body of the loop for `width` states and batches."""
    # Random layers draw their own numbers for each state.
    return advance if width == 1 else torch.vmap(advance, randomness="different")


def vmapped_eval(step: EvalStep, width: int, *, own_inputs: bool = False) -> EvalStep:
    """The evaluation of `width` networks on one batch. own_inputs: each gets inputs that it may write into."""
    if width == 1:
        return step
    if not own_inputs:
        return torch.vmap(step, in_dims=(0, 0, None), randomness="different")
    wide = torch.vmap(step, in_dims=(0, 0, (0, None)), randomness="different")
    return lambda params, buffers, batch: wide(params, buffers, (batch[0].expand(width, *batch[0].shape), batch[1]))
