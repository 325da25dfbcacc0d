"""Other masks for a network that is kept on its survivors: what of it goes on, and where."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lthfunc.sparse.exchange import Exchange, by_growth
from lthfunc.sparse.workspace import Workspace
from lthfunc.sparsify.drop_and_grow import drop
from lthfunc.sparsify.scores import magnitude
from lthfunc.training.mask_updates import layer_changes
from lthfunc.training.results import LayerChange
from lthfunc.trees.types import Growth, Masks, NewMasks, Params, SurvivorPruning


def exchanged_for(workspace: Workspace, masks: Masks, new: NewMasks) -> Exchange:
    """Exchange the survivors of a network for those of new masks, of which there may be others in number."""
    program = workspace.program
    positions, sources = dict(program.positions), []
    for name, leaf in program.leaves.items():
        numbers = torch.arange(leaf.first, leaf.first + leaf.size)
        if name in new.masks:
            here, there = program.positions[name], new.masks[name].flatten().nonzero().flatten()
            stays = new.stays[name].flatten().index_select(0, there)
            positions[name], numbers = there, torch.where(stays, _numbers_of(there, here, numbers), -1)
        sources.append(numbers)
    return Exchange(positions, torch.cat(sources), layer_changes(masks, new.masks))


def pruned_survivors(workspace: Workspace, pruning: SurvivorPruning, sizes: Mapping[str, int]) -> Exchange:
    """Exchange the survivors of a network for those of them that a pruning leaves, and for what then grows.

    sizes: of the masked layers, pruned weights counted.
    """
    program, parts = workspace.program, workspace.parts(workspace.values)
    survivors = {name: parts[name] for name in sizes}
    remaining = pruning.remaining(survivors, sizes)
    left = {name: program.positions[name].masked_select(each) for name, each in remaining.items()}
    places = left if pruning.then is None else _regrown(survivors, remaining, left, pruning.then, sizes)
    sources, layers = [], {}
    for name, leaf in program.leaves.items():
        numbers = torch.arange(leaf.first, leaf.first + leaf.size)
        if name in sizes:
            again = int((_numbers_of(places[name], program.positions[name], numbers) >= 0).sum())
            layers[name] = LayerChange(len(places[name]), leaf.size - again, len(places[name]) - again)
            numbers = _numbers_of(places[name], left[name], numbers.masked_select(remaining[name]))
        sources.append(numbers)
    return Exchange({**program.positions, **places}, torch.cat(sources), layers)


def _regrown(
    survivors: Params, remaining: Masks, left: Mapping[str, Tensor], then: tuple[Params | Growth, float],
    sizes: Mapping[str, int],
) -> dict[str, Tensor]:  # fmt: skip
    """Where weights lie once a share of what is left of each layer, those of the least magnitude, was dropped and as
    many others have grown."""
    growth, share = then
    values = {name: leaf.masked_select(remaining[name]) for name, leaf in survivors.items()}
    everywhere = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in values.items()}
    fewer = drop(magnitude(values, everywhere), everywhere, share)
    taken = {name: left[name].masked_select(each) for name, each in fewer.items()}
    grown = by_growth(growth, sizes)(taken, {name: len(left[name]) - len(each) for name, each in taken.items()})
    return {name: torch.cat([each, grown[name]]).sort().values for name, each in taken.items()}


def _numbers_of(places: Tensor, here: Tensor, numbers: Tensor) -> Tensor:
    """The numbers of places, of those that are here; -1 for others. Both rise."""
    if not len(here):
        return torch.full_like(places, -1)
    at = torch.searchsorted(here, places).clamp_(max=len(here) - 1)
    return torch.where(here.index_select(0, at) == places, numbers.index_select(0, at), -1)
