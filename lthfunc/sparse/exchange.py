"""Drop and grow on survivors alone: `lthfunc.sparsify.drop_and_grow`, to the same bits, at the cost of what changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.workspace import Workspace
from lthfunc.sparsify.growth import RandomGrowth
from lthfunc.sparsify.scores import Scores
from lthfunc.training.results import LayerChange
from lthfunc.trees.types import Growth

#: (the places that are taken in each layer, rising; how many weights grow there) -> the places that grow, rising.
Growing = Callable[[Mapping[str, Tensor], Mapping[str, int]], Mapping[str, Tensor]]


class Exchange(NamedTuple):
    """What survives an exchange, as many weights in each layer as before.

    positions: as `Program` has them. sources: as `Workspace.moved` takes them.
    """

    positions: dict[str, Tensor]
    sources: Tensor
    layers: dict[str, LayerChange]


def by_scores(scores: Scores) -> Growing:
    """Weights of the largest scores grow. They are float32, without NaN."""

    def grow(taken: Mapping[str, Tensor], counts: Mapping[str, int]) -> Mapping[str, Tensor]:
        found = {name: torch.empty(count, dtype=torch.int64) for name, count in counts.items()}
        for name, places in found.items():  # of equal ones the first
            torch.ops.lthfunc.largest(scores[name].flatten(), taken[name], places)
        return found

    return grow


def by_growth(growth: Scores | Growth, sizes: Mapping[str, int]) -> Growing:
    """What `drop_and_grow` takes: scores, or a function that picks, such as `random_growth`'s. sizes: of the masked
    layers, pruned weights counted."""
    if isinstance(growth, dict):
        return by_scores(growth)
    if isinstance(growth, RandomGrowth):
        return partial(_at_random, growth, sizes)
    return lambda taken, counts: {name: growth(name, taken[name], sizes[name], counts[name]) for name in taken}


def _at_random(
    growth: RandomGrowth, sizes: Mapping[str, int], taken: Mapping[str, Tensor], counts: Mapping[str, int]
) -> dict[str, Tensor]:
    """The places that it gives."""
    found = dict[str, Tensor]()
    for name, places in taken.items():
        numbers = growth.numbers(name, sizes[name] - len(places), counts[name])
        found[name] = torch.empty_like(numbers)
        torch.ops.lthfunc.free_places.default(numbers, places, found[name])
    return found


def exchanged(workspace: Workspace, names: Iterable[str], grow: Growing, drop_fraction: float) -> Exchange:
    """Drop a share of each layer's weights, those of the least magnitude, and grow as many others.

    names: of the masked layers.
    """
    program, operations = workspace.program, torch.ops.lthfunc
    leaves = {name: program.leaves[name] for name in names}
    counts = {name: round(leaf.size * drop_fraction) for name, leaf in leaves.items()}
    kept, sizes = [leaf.size - counts[name] for name, leaf in leaves.items()], [leaf.size for leaf in leaves.values()]
    # Of all layers, one after the other: a call for each would take longer than what it does in small ones.
    layers = torch.tensor([(*leaf, stay) for leaf, stay in zip(leaves.values(), kept, strict=True)])
    before = torch.cat([program.positions[name] for name in leaves]) if leaves else layers
    remaining, numbers, places = (torch.empty(sum(each), dtype=torch.int64) for each in (kept, kept, sizes))
    dropped, again = (torch.empty(count, dtype=torch.int64) for count in (sum(counts.values()), len(leaves)))
    operations.drop_smallest.default(workspace.values, before, layers, remaining, numbers, dropped)
    grown = grow(dict(zip(leaves, remaining.split(kept), strict=True)), counts)
    coming = torch.cat([grown[name] for name in leaves]) if leaves else layers
    sources = torch.arange(len(workspace.values))
    operations.merge_places.default(remaining, numbers, dropped, coming, layers, places, sources, again)
    return Exchange(
        {**program.positions, **dict(zip(leaves, places.split(sizes), strict=True))}, sources,
        {name: LayerChange(leaf.size, counts[name] - back, counts[name] - back)
         for (name, leaf), back in zip(leaves.items(), again.tolist(), strict=True)},
    )  # fmt: skip
