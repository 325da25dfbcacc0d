"""A module as a function of its tensors, which is afterwards what it was."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.trees.names import first_names

#: Of modules in use: what `_places` found.
_known: weakref.WeakKeyDictionary[nn.Module, dict[str, str] | None] = weakref.WeakKeyDictionary()


def functional_call(
    module: nn.Module, leaves: Mapping[str, Tensor] | tuple[Mapping[str, Tensor], ...], args: tuple[Any, ...]
) -> Any:
    """`torch.func.functional_call`, by first names, that also puts a module back which lies in it under two names.

    PyTorch's swaps the tensors of such a module twice and leaves those of the call in it. leaves: as PyTorch takes
    them; a dictionary then holds what the module put in the place of a buffer.
    """
    if module not in _known:
        _known[module] = _places(module)
    places = _known[module]
    if places is None:
        return torch.func.functional_call(module, leaves, args)  # type: ignore[arg-type]
    given: Any = leaves if isinstance(leaves, dict) else {}
    if not isinstance(leaves, dict):
        for part in leaves if isinstance(leaves, tuple) else (leaves,):
            given.update(part)
    swapped = {place: given[first] for place, first in places.items() if first in given}
    found = torch.func.functional_call(module, swapped, args, tie_weights=False)
    for place, tensor in swapped.items():
        if tensor is not given[places[place]]:
            given[places[place]] = tensor
    return found


def _places(module: nn.Module) -> dict[str, str] | None:
    """Each place of a tensor once, with the tensor's first name; None where every module has one name."""
    parts = dict(module.named_modules())
    if len(parts) == sum(1 for _ in module.named_modules(remove_duplicate=False)):
        return None
    first = first_names(module)
    return {
        place: first[place]
        for name, part in parts.items()
        for leaf in (*part._parameters, *part._buffers)
        if (place := f"{name}.{leaf}" if name else leaf) in first
    }
