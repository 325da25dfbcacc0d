"""The state of a `torch.optim` optimiser as a tree, and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Optimisers of PyTorch whose update of a weight depends on other weights; a package's own may do so too.
_MIXING = (torch.optim.LBFGS, torch.optim.Muon)


def mixes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a weight may move although its gradient has always been zero (`Optimizer.mixes`), as far as known."""
    return isinstance(optimizer, _MIXING) or not type(optimizer).__module__.startswith("torch.optim.")


def state_tree(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Any:
    """What the optimiser holds of the params: key -> name -> value, not copied; ``()`` if that is nothing."""
    tree: dict[str, dict[str, Any]] = {}
    for name, param in params.items():
        for key, value in optimizer.state.get(param, {}).items():
            tree.setdefault(key, {})[name] = value
    return tree or ()


def put_state(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], tree: Any, fresh: Any) -> None:
    """Give the optimiser such a tree, in the memory that it has. fresh: the tree that ``()`` stands for."""
    tree = tree or fresh
    for name, param in params.items():
        held = optimizer.state.pop(param, {})
        values = {key: _put(held.get(key), leaves[name]) for key, leaves in tree.items() if name in leaves}
        if values:
            optimizer.state[param] = values


def fresh_state(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> dict[str, Any]:
    """A copy of what the optimiser made when it was constructed, as Adagrad does; {} if its first step makes that."""
    tree = state_tree(optimizer, params)
    steps = tree.get("step", {}).values() if tree else ()
    return copy.deepcopy(tree) if steps and not any(map(float, steps)) else {}


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """A copy of each group's learning rate, momentum and so on."""
    return [
        copy.deepcopy({key: value for key, value in group.items() if key != "params"})
        for group in optimizer.param_groups
    ]


def owned(optimizer: torch.optim.Optimizer) -> set[int]:
    """The ids of the parameters that the optimiser updates."""
    return {id(param) for group in optimizer.param_groups for param in group["params"]}


def _put(held: Any, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(held, Tensor) and held.shape == value.shape and held.dtype == value.dtype:
        return held if held is value else held.copy_(value)
    return value.clone()
