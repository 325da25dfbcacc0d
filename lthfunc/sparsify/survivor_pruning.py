"""Pruning by magnitude that looks at survivors alone: which of them remain, without a number for each pruned weight."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from lthfunc.arguments import public
from lthfunc.errors import invalid
from lthfunc.sparsify.allocation import Allocate, fraction_from, globally, looks_at_survivors_alone
from lthfunc.sparsify.scores import magnitude
from lthfunc.sparsify.structures import unstructured
from lthfunc.trees.ops import Count
from lthfunc.trees.types import Masks, Params, SurvivorPruning


@public
def prune_survivors(density: float, *, allocate: Allocate = globally) -> SurvivorPruning:
    """Prune to a density by magnitude, as gradual pruning does (Zhu & Gupta 2017), looking at survivors alone.

    What `MaskUpdates.exchange` gives where ``change`` is ``prune(density=..., allocate=..., keep_moments=True)``: where
    an engine keeps survivors alone, as in `train_packed`, it makes no dense network, and the bits are the same.
    density: of all prunable weights, in (0, 1]. allocate: `globally`, `globally_with_minimum` or `layerwise`, which
    ask for survivors alone. Returns the pruning. Raises UserError for another allocation and, when it is applied, for a
    density above the one of then.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> def exchange(network, now):
    ...     return lf.prune_survivors(0.1 / now.step)
    >>> updates = lf.MaskUpdates((2, 4), lambda state, now: state, exchange=exchange)
    >>> net = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 2))
    >>> train = lf.train_packed(net, data, optimizer=lf.adam(1e-3), steps=5, batch_size=2, updates=updates)
    >>> train(lf.init_packed(net, density=0.1))
    PackedState(7 of 300 weights remain, step 5)
    """
    if not looks_at_survivors_alone(allocate):
        raise invalid("allocate", allocate, "globally, globally_with_minimum(…) or layerwise(…)")
    return SurvivorPruning(partial(_remaining, density, allocate))


def _remaining(density: float, allocate: Allocate, survivors: Params, sizes: Mapping[str, int]) -> Masks:
    """Which of the survivors `prune` would leave among all weights, scores and ties included."""
    masks = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in survivors.items()}
    now = Count(sum(leaf.numel() for leaf in survivors.values()), sum(sizes[name] for name in survivors))
    scores = magnitude(survivors, masks)
    return unstructured(scores, masks, allocate(scores, masks, fraction_from(now, density)))
