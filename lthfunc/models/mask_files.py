"""Tickets of modules that other programs have pruned: by torch.nn.utils.prune, to zeros, or by masks in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.models.checkpoint_reader import MOST, ImportedCheckpoint, import_checkpoint
from lthfunc.models.naming import matching
from lthfunc.trees.convert import from_pruned
from lthfunc.trees.initialisers import as_built
from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.model import from_module, init
from lthfunc.trees.ops import apply_masks, count
from lthfunc.trees.types import Masks, Ticket


@public
def ticket_from(module: nn.Module, masks: Path | Mapping[str, Tensor] | str | None = None) -> Ticket:
    """The ticket in a module that another program has pruned; the module stays as it is.

    masks: of parameters or layers, by name, 1 where a weight remains; or a file of them (.safetensors, .npz, or of
    torch.save, of which only tensors are read). Without them, those of `torch.nn.utils.prune` in the module or, where
    it has none, zeros count as pruned. Weights without a mask remain.

    Returns the ticket, whose weights are the module's. Raises UserError where nothing is pruned, and for masks that
    don't fit.

    >>> net = nn.Linear(4, 2)
    >>> _ = torch.nn.utils.prune.l1_unstructured(net, "weight", amount=0.5)
    >>> lf.count(lf.ticket_from(net).masks)
    Count(kept=4, total=8)
    """
    if masks is None:
        _, found = from_pruned(module, zeros=not any(name.endswith("_mask") for name, _ in module.named_buffers()))
        if count(found.masks).density == 1:
            raise UserError("ticket_from: no weight of the module is pruned: neither by torch.nn.utils.prune nor zero")
        return found
    given = _as_masks(masks, "masks") if isinstance(masks, Mapping) else read_masks(Path(masks)).tensors
    offered = {**{f"{name}.weight": mask for name, mask in given.items()}, **given}
    first = first_names(module)
    theirs = matching(offered, first)
    for name in given:
        if not {name, f"{name}.weight"} & {*theirs.values()}:
            raise UserError(f"masks: {name!r} is not a parameter of this network ({', '.join([*first][:4])}, …)")
    named = {first[ours]: offered[name] for ours, name in theirs.items()}
    model = from_module(module, init=as_built, prunable=list(named))
    state = init(model)
    for name, mask in named.items():
        if mask.shape != state.params[name].shape:
            shapes = f"of shape {tuple(mask.shape)}, the parameter {tuple(state.params[name].shape)}"
            raise UserError(f"masks: {name!r} is {shapes}")
    found_masks = {name: named.get(name, full) for name, full in state.masks.items()}
    return Ticket(apply_masks(state.params, found_masks), state.buffers, found_masks)


def read_masks(path: Path, most: int = MOST) -> ImportedCheckpoint:
    """The masks in a file, as bool: all that it holds, its `masks`, or the ``NAME_mask`` of torch.nn.utils.prune.

    most: bytes that it may have. Raises UserError as `import_checkpoint`, and for numbers other than 0 and 1.
    """
    tensors, notes = import_checkpoint(path, most)
    below = {name.removeprefix("masks."): leaf for name, leaf in tensors.items() if name.startswith("masks.")}
    beside = {name.removesuffix("_mask"): leaf for name, leaf in tensors.items() if name.endswith("_mask")}
    return ImportedCheckpoint(_as_masks(below or beside or tensors, str(path)), notes)


def _as_masks(leaves: Mapping[str, Tensor], where: str) -> Masks:
    for name, leaf in leaves.items():
        if leaf.is_complex() or not bool(((leaf == 0) | (leaf == 1)).all()):
            raise UserError(f"{where}: {name} is no mask (expected only 0 and 1, and 1 where a weight remains)")
    return {name: leaf.to(torch.bool) for name, leaf in leaves.items()}
