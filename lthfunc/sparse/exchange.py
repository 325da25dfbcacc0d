"""Drop and grow on survivors alone: `lthfunc.sparsify.drop_and_grow`, to the same bits, at the cost of what changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lthfunc.sparse.workspace import Workspace
from lthfunc.sparsify.scores import Scores
from lthfunc.training.results import LayerChange
from lthfunc.trees.types import Growth, Masks


class Exchange(NamedTuple):
    """What survives an exchange, as many weights in each layer as before.

    positions: as `Program` has them. sources: as `Workspace.moved` takes them.
    """

    positions: dict[str, Tensor]
    sources: Tensor
    layers: dict[str, LayerChange]


def exchanged(
    workspace: Workspace, sizes: Mapping[str, int], growth: Scores | Growth, drop_fraction: float
) -> Exchange:
    """Drop a share of each layer's weights, those of the least magnitude, and grow as many others.

    sizes: of the masked layers, pruned weights counted. growth: as `drop_and_grow` takes it; scores are float32,
    without NaN.
    """
    program = workspace.program
    positions, layers = dict(program.positions), dict[str, LayerChange]()
    sources = torch.arange(len(workspace.values))
    for name, size in sizes.items():
        leaf, before = program.leaves[name], program.positions[name]
        values = workspace.values[leaf.first : leaf.first + leaf.size]
        moved = round(leaf.size * drop_fraction)
        kept = _largest(values.abs(), before[:0], leaf.size - moved)
        remaining = before.index_select(0, kept)
        if isinstance(growth, dict):
            grown = _largest(growth[name].flatten(), remaining, moved)
        else:
            grown = growth(name, remaining, size, moved)
        positions[name], numbers = torch.empty_like(before), torch.empty_like(before)
        torch.ops.lthfunc.merge_places(remaining, kept, grown, positions[name], numbers)
        sources[leaf.first : leaf.first + leaf.size] = numbers.add_(leaf.first).masked_fill_(numbers < leaf.first, -1)
        again = _shared(grown, before)  # dropped and grown
        layers[name] = LayerChange(leaf.size, moved - again, moved - again)
    return Exchange(positions, sources, layers)


def masks_of(positions: Mapping[str, Tensor], like: Masks) -> Masks:
    """Dense masks of survivors at these positions. like: masks of their names and shapes."""
    return {
        name: torch.zeros_like(mask).view(-1).index_fill_(0, positions[name], True).view(mask.shape)
        for name, mask in like.items()
    }


def _shared(some: Tensor, others: Tensor) -> int:
    """How many places are in both. Both rise."""
    if not len(others):
        return 0
    at = np.searchsorted(others.numpy(), some.numpy()).clip(max=len(others) - 1)
    return int((others.numpy()[at] == some.numpy()).sum())


def _largest(scores: Tensor, taken: Tensor, count: int) -> Tensor:
    """The places of the largest scores, but those taken: int64 (count,), rising; of equal scores the first."""
    found = torch.empty(count, dtype=torch.int64)
    torch.ops.lthfunc.largest(scores, taken, found)
    return found
