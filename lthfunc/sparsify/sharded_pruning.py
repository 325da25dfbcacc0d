"""Pruning where no rank holds the whole network: exact thresholds without gathering scores.

Every rank holds a shard of each leaf, cut along dimension 0 in the order of ranks. The threshold is found by bisection
on the bits of the scores: 32 sums (64 for float64 scores) of one count per group of layers. Ties at the threshold are
broken by position over all ranks, with one more sum of a count per layer and rank. The masks have the bits of the same
pruning in one place (`globally` or `layerwise`, then `unstructured`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.distributed.collectives import Collectives, count_tensor, like_dtensors, local_shards
from lthfunc.errors import UserError
from lthfunc.sparsify.allocation import check_fraction, fraction_from, layerwise, number_pruned
from lthfunc.sparsify.ranking import rising_integers
from lthfunc.sparsify.scores import Score, Scores, checked_score, magnitude
from lthfunc.trees.ops import Count, apply_masks, count
from lthfunc.trees.transformations import Transformation
from lthfunc.trees.types import Masks, TrainState

#: (shards of scores, shards of masks, fraction to prune) -> shards of the new masks.
ShardedSelect = Callable[[Scores, Masks, float], Masks]


@public
def globally_on(collectives: Collectives) -> ShardedSelect:
    """`globally`, then `unstructured`, on sharded trees: one threshold for all layers, wherever their shards lie.

    collectives: of the ranks that hold the shards. Returns what `prune_sharded` takes as `choose`.

    >>> from lthfunc.distributed.collectives import SINGLE_RANK
    >>> scores, masks = {"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([True, True])}
    >>> lf.globally_on(SINGLE_RANK)(scores, masks, 0.5)
    {'w': tensor([ True, False])}
    """

    def choose(scores: Scores, masks: Masks, fraction: float) -> Masks:
        check_fraction(fraction)
        if not masks:
            return {}
        living = _living(masks, collectives).sum()
        budget = living - number_pruned(living, fraction)
        return best_of_groups(scores, masks, budget[None], dict.fromkeys(masks, 0), collectives)

    return choose


@public
def layerwise_on(
    collectives: Collectives, rates: Mapping[str, float] | None = None, output_rate: float = 0.5
) -> ShardedSelect:
    """`layerwise`, then `unstructured`, on sharded trees.

    collectives: of the ranks that hold the shards. rates, output_rate: as `layerwise` takes them. Returns what
    `prune_sharded` takes as `choose`.

    >>> from lthfunc.distributed.collectives import SINGLE_RANK
    >>> scores, masks = {"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([True, True])}
    >>> lf.layerwise_on(SINGLE_RANK, output_rate=1.0)(scores, masks, 0.5)
    {'w': tensor([ True, False])}
    """
    allocate = layerwise(rates, output_rate)

    def choose(scores: Scores, masks: Masks, fraction: float) -> Masks:
        living = _living(masks, collectives)
        # What a layer keeps depends only on how many weights remain in it.
        keep = allocate({}, {name: count.reshape(1) for name, count in zip(masks, living, strict=True)}, fraction)
        budgets = torch.stack(list(keep.values()))
        return best_of_groups(scores, masks, budgets, {name: at for at, name in enumerate(masks)}, collectives)

    return choose


def best_of_groups(
    scores: Scores, masks: Masks, budgets: Tensor, group_of: Mapping[str, int], collectives: Collectives
) -> Masks:
    """In each group of leaves the best of the remaining weights over all ranks, as many as its budget.

    budgets: int64 (groups,); group_of: leaf -> group. Higher scores first; among equals the earlier leaf, then the
    lower flat index of the whole leaf.
    """
    device = next(iter(masks.values())).device
    keys, bits = _keys(scores, masks)
    groups = len(budgets)
    ordered = [
        torch.cat([keys[name][masks[name]] for name in masks if group_of[name] == group]).sort().values
        for group in range(groups)
    ]

    def at_least(thresholds: Tensor) -> Tensor:
        """How many of each group's keys reach a threshold, over all ranks."""
        counts = [
            len(mine) - int(torch.searchsorted(mine, threshold))
            for mine, threshold in zip(ordered, thresholds, strict=True)
        ]
        return collectives.all_reduce(count_tensor(counts, device))

    # The largest threshold that is reached by as many keys as may remain, found bit by bit, sign first.
    thresholds = torch.full((groups,), -(2 ** (bits - 1)), dtype=torch.int64, device=device)
    for bit in reversed(range(bits)):
        higher = thresholds + (1 << bit) if bit < 63 else torch.zeros_like(thresholds)
        thresholds = torch.where(at_least(higher) >= budgets, higher, thresholds)
    return _with_ties(keys, masks, thresholds, budgets, group_of, collectives)


@public
def prune_sharded(
    collectives: Collectives,
    *,
    fraction: float | None = None,
    density: float | None = None,
    score: Score = magnitude,
    choose: ShardedSelect | None = None,
) -> Transformation:
    """`prune` for a sharded state, of which every rank holds a part; leaves may be DTensors, cut along dimension 0.

    collectives: `lf.collectives()`, of the ranks. fraction or density: as in `prune`. score: one that scores each
    weight by itself (`magnitude`, `movement`), since it sees one shard. choose: `globally_on(collectives)` by default.
    All ranks make the same call. Raises UserError where not exactly one of fraction and density is given.

    >>> from lthfunc.distributed.collectives import SINGLE_RANK
    >>> state = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> lf.density(lf.prune_sharded(SINGLE_RANK, fraction=0.5)(state).masks)
    0.5
    """
    if (fraction is None) == (density is None):
        raise UserError("prune: give either fraction or density")
    chosen = choose or globally_on(collectives)

    def transformation(state: TrainState) -> TrainState:
        params, masks = local_shards(state.params), local_shards(state.masks)
        share = fraction_from(_count(masks, collectives), density) if density is not None else fraction
        assert share is not None
        found = chosen(checked_score(score)(params, masks), masks, share)
        kept = apply_masks(params, found)
        return state._replace(params=like_dtensors(kept, state.params), masks=like_dtensors(found, state.masks), opt=())

    return transformation


def _living(masks: Masks, collectives: Collectives) -> Tensor:
    """The number of remaining weights of each leaf, over all ranks: int64 (leaves,)."""
    return collectives.all_reduce(torch.stack([mask.sum() for mask in masks.values()]))


def _count(masks: Masks, collectives: Collectives) -> Count:
    """`trees.ops.count` over all ranks."""
    here = count(masks)
    device = next(iter(masks.values())).device
    return Count(*collectives.all_reduce(count_tensor(list(here), device)).tolist())


def _keys(scores: Scores, masks: Masks) -> tuple[dict[str, Tensor], int]:
    """(integers in the order of the scores, int64, of each leaf's shape; the bits that they need)."""
    wide = any(leaf.dtype == torch.float64 for leaf in scores.values())
    number = torch.float64 if wide else torch.float32
    return {name: rising_integers(scores[name].detach().to(number)).long() for name in masks}, 8 * number.itemsize


def _with_ties(
    keys: Mapping[str, Tensor],
    masks: Masks,
    thresholds: Tensor,
    budgets: Tensor,
    group_of: Mapping[str, int],
    collectives: Collectives,
) -> Masks:
    """All weights above the thresholds, and of those at them the first by position."""
    names, device = list(masks), budgets.device
    above = {name: masks[name] & (keys[name] > thresholds[group_of[name]]) for name in names}
    level = {name: masks[name] & (keys[name] == thresholds[group_of[name]]) for name in names}
    # A row of counts per leaf: how many lie above, then how many lie at the threshold, by rank.
    table = torch.zeros(len(names), 1 + collectives.world_size, dtype=torch.int64, device=device)
    for row, name in enumerate(names):
        table[row, 0] = above[name].sum()
        table[row, 1 + collectives.rank] = level[name].sum()
    table = collectives.all_reduce(table.flatten()).view(table.shape)
    left = budgets.clone()
    for row, name in enumerate(names):
        left[group_of[name]] -= table[row, 0]
    found = {}
    for row, name in enumerate(names):
        group = group_of[name]
        for rank in range(collectives.world_size):
            mine = torch.minimum(left[group].clamp(min=0), table[row, 1 + rank])
            if rank == collectives.rank:
                first = level[name].flatten().cumsum(0).view(level[name].shape) <= mine
                found[name] = above[name] | (level[name] & first)
            left[group] -= mine
    return found
