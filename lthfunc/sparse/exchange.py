"""Drop and grow on survivors alone: `lthfunc.sparsify.drop_and_grow`, to the same bits, at the cost of what changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.workspace import Workspace
from lthfunc.sparsify.scores import Scores
from lthfunc.training.results import LayerChange
from lthfunc.trees.types import Growth, Masks

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
    return lambda taken, counts: {name: growth(name, taken[name], sizes[name], counts[name]) for name in taken}


def exchanged(workspace: Workspace, names: Iterable[str], grow: Growing, drop_fraction: float) -> Exchange:
    """Drop a share of each layer's weights, those of the least magnitude, and grow as many others.

    names: of the masked layers.
    """
    program, operations = workspace.program, torch.ops.lthfunc
    positions, layers = dict(program.positions), dict[str, LayerChange]()
    taken, numbers, counts = dict[str, Tensor](), dict[str, Tensor](), dict[str, int]()
    for name in names:
        first, size = program.leaves[name]
        counts[name] = round(size * drop_fraction)
        taken[name], numbers[name] = torch.empty(2, size - counts[name], dtype=torch.int64)
        values = workspace.values[first : first + size]
        operations.drop_smallest.default(values, positions[name], first, taken[name], numbers[name])
    grown = grow(taken, counts)
    sources = torch.arange(len(workspace.values))
    for name, count in counts.items():
        (first, size), before = program.leaves[name], positions[name]
        positions[name] = torch.empty_like(before)
        again = operations.merge_places.default(  # dropped and grown
            taken[name], numbers[name], grown[name], before, positions[name], sources[first : first + size]
        )
        layers[name] = LayerChange(size, count - again, count - again)
    return Exchange(positions, sources, layers)


def masks_of(positions: Mapping[str, Tensor], like: Masks) -> Masks:
    """Dense masks of survivors at these positions. like: masks of their names and shapes."""
    return {
        name: torch.zeros_like(mask).view(-1).index_fill_(0, positions[name], True).view(mask.shape)
        for name, mask in like.items()
    }
