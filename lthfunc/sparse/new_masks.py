"""Other masks for a network that is kept on its survivors: what of it goes on, and where."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lthfunc.sparse.exchange import Exchange
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.mask_updates import layer_changes
from lthfunc.training.results import LayerChange
from lthfunc.trees.types import Masks, NewMasks, SurvivorPruning


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
    """Exchange the survivors of a network for those of them that a pruning leaves. sizes: of the masked layers, pruned
    weights counted."""
    program, parts = workspace.program, workspace.parts(workspace.values)
    remaining = pruning.remaining({name: parts[name] for name in sizes}, sizes)
    positions, sources, layers = dict(program.positions), [], {}
    for name, leaf in program.leaves.items():
        numbers = torch.arange(leaf.first, leaf.first + leaf.size)
        if name in remaining:
            positions[name] = positions[name].masked_select(remaining[name])
            numbers = numbers.masked_select(remaining[name])
        sources.append(numbers)
    for name in sizes:
        kept = len(positions[name])
        layers[name] = LayerChange(kept, program.leaves[name].size - kept, 0)
    return Exchange(positions, torch.cat(sources), layers)


def _numbers_of(places: Tensor, here: Tensor, numbers: Tensor) -> Tensor:
    """The numbers of places, of those that are here; -1 for others. Both rise."""
    if not len(here):
        return torch.full_like(places, -1)
    at = torch.searchsorted(here, places).clamp_(max=len(here) - 1)
    return torch.where(here.index_select(0, at) == places, numbers.index_select(0, at), -1)
