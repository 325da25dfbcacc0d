"""A module as a function of its tensors; the call leaves the module as it was."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.module_attributes import ModuleAttributes, mutable_attributes, restored_attributes, user_modules
from lthfunc.trees.module_errors import explained_error


class _Facts(NamedTuple):
    """places: what `_places` found. kept: where it and those within may keep something."""

    places: dict[str, str] | None
    kept: list[ModuleAttributes]


#: What is known of modules in use.
_known: weakref.WeakKeyDictionary[nn.Module, _Facts] = weakref.WeakKeyDictionary()


def functional_call(
    module: nn.Module, leaves: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Any:
    """`torch.func.functional_call` by first names, after which the module is as it was before.

    PyTorch's version swaps the tensors of a submodule with two names twice and leaves those of the call in it, and
    whatever forward stores in plain attributes. leaves: of the module, by name; afterwards they also hold what the
    module put in place of a buffer. Raises UserError, in plain words, for many of PyTorch's own errors.
    """
    if torch.compiler.is_compiling():  # a compiled function would depend on which other modules are in use
        return call_without_restoring(module, leaves, args, kwargs)
    if module not in _known:
        _known[module] = _Facts(_places(module), mutable_attributes(user_modules(module)))
    kept = _known[module].kept
    if not kept:
        return call_without_restoring(module, leaves, args, kwargs)
    with restored_attributes(kept):
        return call_without_restoring(module, leaves, args, kwargs)


def call_without_restoring(
    module: nn.Module, leaves: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Any:
    """`functional_call`, but what forward stores in plain attributes stays."""
    try:
        return _called(module, leaves, args, kwargs)
    except Exception as error:
        told = explained_error(error, module, leaves.values(), args)
        if told is None:
            raise
        raise told from error


def _called(module: nn.Module, leaves: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    known = not torch.compiler.is_compiling() and module in _known
    places = _known[module].places if known else _places(module)
    if places is None:
        return torch.func.functional_call(module, leaves, args, kwargs)
    swapped = {place: leaves[first] for place, first in places.items() if first in leaves}
    found = torch.func.functional_call(module, swapped, args, kwargs, tie_weights=False)
    for place, tensor in swapped.items():
        if tensor is not leaves[places[place]]:
            leaves[places[place]] = tensor
    return found


def _places(module: nn.Module) -> dict[str, str] | None:
    """Each place of a tensor once, with the tensor's first name; None where every module has one name only."""
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
