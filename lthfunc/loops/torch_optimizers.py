"""Optimisers of PyTorch: their state as a tree, and back. Several may share the parameters of a module."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lthfunc.argument_hints import described
from lthfunc.errors import ArgumentError

#: Optimisers of PyTorch whose update of a weight depends on other weights; a package's own may do so too.
_MIXING = (torch.optim.LBFGS, torch.optim.Muon)


def within(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser that steps, within Accelerate's. Raises ArgumentError for anything else."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(f"attach: optimizer must be a torch.optim.Optimizer, not {described(optimizer)}")
    own = hasattr(optimizer, "_optimizer_step_pre_hooks")
    return optimizer if own else within(getattr(optimizer, "optimizer", None))


def mixes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a weight may move although its gradient has always been zero (`Optimizer.mixes`), as far as known."""
    return isinstance(optimizer, _MIXING) or not type(optimizer).__module__.startswith("torch.optim.")


def state_tree(optimizers: Sequence[torch.optim.Optimizer], params: Mapping[str, Tensor]) -> Any:
    """What the optimisers hold of the params: key -> name -> value, not copied; ``()`` if that is nothing."""
    tree: dict[str, dict[str, Any]] = {}
    for name, param in params.items():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(param, {}).items():
                tree.setdefault(key, {})[name] = value
    return tree or ()


def put_state(optimizers: Sequence[torch.optim.Optimizer], params: Mapping[str, Tensor], tree: Any, fresh: Any) -> None:
    """Give the optimisers such a tree, in the memory that they have. fresh: the tree that ``()`` stands for."""
    tree = tree or fresh
    for optimizer in optimizers:
        mine = owned([optimizer])
        for name, param in params.items():
            held = optimizer.state.pop(param, {})
            values = {key: _put(held.get(key), leaves[name]) for key, leaves in tree.items() if name in leaves}
            if values and id(param) in mine:
                optimizer.state[param] = values


def fresh_state(optimizers: Sequence[torch.optim.Optimizer], params: Mapping[str, Tensor]) -> dict[str, Any]:
    """A copy of what the optimisers made when constructed, as Adagrad does; {} if their first step makes that."""
    tree = state_tree(optimizers, params)
    values = [value for key, leaves in dict(tree).items() if "step" in key for value in leaves.values()]
    steps = [float(value) for value in values if not isinstance(value, Tensor) or value.ndim == 0]
    return copy.deepcopy(tree) if steps and not any(steps) else {}


def groups(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """The parameter groups of all."""
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def hyperparameters(optimizers: Sequence[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """A copy of each group's learning rate, momentum and so on."""
    return [
        copy.deepcopy({key: value for key, value in group.items() if key != "params"}) for group in groups(optimizers)
    ]


def owned(optimizers: Sequence[torch.optim.Optimizer]) -> set[int]:
    """The ids of the parameters that the optimisers update."""
    return {id(param) for group in groups(optimizers) for param in group["params"]}


def within_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step whose hook calls this was called by another step of this optimiser: a subclass's.

    Asked of the stack, since nothing that a hook counts survives an interrupted step.
    """
    if not _calls_another(type(optimizer)):  # type: ignore[arg-type]  # mypy asks its objects, not the class, for a hash
        return False
    wrapper = sys._getframe(2)
    frame = wrapper.f_back
    while frame is not None:
        if frame.f_code is wrapper.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


@functools.cache
def _calls_another(kind: Any) -> bool:
    """Whether the step of an optimiser class may be one that calls a base class's."""
    return sum("step" in vars(each) for each in kind.__mro__) > 2  # its own, and that of all


def _put(held: Any, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(held, Tensor) and held.shape == value.shape and held.dtype == value.dtype:
        return held if held is value else held.copy_(value)
    return value.clone()
