"""Checks of a user's allocations and selections: they get copies, and what they return is verified."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid
from lthfunc.printable import dtype_and_shape
from lthfunc.sparsify.allocation import Allocate, KeepCounts
from lthfunc.sparsify.scores import Scores, by_layer
from lthfunc.sparsify.structures import Select
from lthfunc.tracebacks import function_name, is_library_function
from lthfunc.trees.types import Masks


def checked_allocation(allocate: Allocate) -> Allocate:
    """The allocation, which must return a whole number of at least 0 for each layer; plain numbers become tensors."""
    if is_library_function(allocate):
        return allocate
    name = f"allocate: {function_name(allocate)!r}"

    def verified(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
        keep = by_layer("allocate", allocate, (scores, masks, fraction), masks, "a count")
        return {layer: _count(name, layer, keep[layer]) for layer in masks}

    return verified


def checked_selection(select: Select) -> Select:
    """The selection, which must return bool masks of the layers' shapes, within the masks before."""
    if is_library_function(select):
        return select
    name = f"select: {function_name(select)!r}"

    def verified(scores: Scores, masks: Masks, keep: KeepCounts) -> Masks:
        chosen = by_layer("select", select, (scores, masks, keep), masks, "a mask")
        for layer, mask in masks.items():
            leaf = chosen[layer]
            if not isinstance(leaf, Tensor) or leaf.dtype != torch.bool or leaf.shape != mask.shape:
                raise invalid(name, f"{layer}: {dtype_and_shape(leaf)}", f"a mask, {dtype_and_shape(mask)}")
            if bool((leaf & ~mask).any()):
                raise UserError(f"{name}: restores pruned weights of {layer}; new masks must nest in the old ones")
        return chosen

    return verified


def _count(name: str, layer: str, value: Any) -> Tensor:
    if isinstance(value, int) and not isinstance(value, bool):
        value = torch.tensor(value)
    whole = isinstance(value, Tensor) and value.ndim == 0 and value.dtype in (torch.int64, torch.int32)
    if not whole or int(value) < 0:
        shown = value.tolist() if isinstance(value, Tensor) else value
        raise invalid(name, f"{layer}: {shown}", "a whole number of at least 0")
    found: Tensor = value
    return found
