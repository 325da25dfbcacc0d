"""All names of a module's tensors: a weight that layers share has several, and trees use the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def first_names(module: nn.Module) -> dict[str, str]:
    """Each name of a parameter or buffer -> its first name, which trees use."""
    first: dict[int, str] = {}
    found = {}
    for name, leaf in (
        *module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)
    ):  # fmt: skip
        found[name] = first.setdefault(id(leaf), name)
    return found


def put_values(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Replace a module's tensors by these, given by first names, in their own dtypes; shared tensors stay shared.

    The module is changed, the tensors are copied. Returns the module.
    """
    made: dict[str, Any] = {}
    for name, first in first_names(module).items():
        if first not in values:
            continue
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        if first not in made:
            value = values[first].detach().clone()
            made[first] = nn.Parameter(value, requires_grad=False) if leaf in part._parameters else value
        setattr(part, leaf, made[first])
    return module
