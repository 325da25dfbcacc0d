"""Plain attributes in which a module stores something when it is called; they are restored after each call."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Attributes of PyTorch's own `Module`.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
#: Containers of more entries (a vocabulary) are not searched for further ones.
_MANY = 100


def user_modules(module: nn.Module) -> list[nn.Module]:
    """The submodules, the module included, that may store something: those that are not PyTorch's, or have hooks."""
    return [part for part in module.modules() if not _is_torchs(part)]


def _is_torchs(part: nn.Module) -> bool:
    hooks = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    return not hooks and type(part).__module__.startswith("torch.")


class ModuleAttributes(NamedTuple):
    """attributes: a module's own dictionary of them. containers: those among their values, at any depth."""

    attributes: dict[str, Any]
    containers: list[Any]


def mutable_attributes(parts: Iterable[nn.Module]) -> list[ModuleAttributes]:
    """What a call may change in these modules; valid as long as only calls change their attributes."""
    found = []
    for part in parts:
        containers: list[Any] = []
        _look_into((value for name, value in vars(part).items() if name not in MODULE_ATTRIBUTES), containers)
        found.append(ModuleAttributes(vars(part), containers))
    return found


@contextmanager
def restored_attributes(modules: Iterable[ModuleAttributes]) -> Iterator[None]:
    """Restore the modules' plain attributes at the end of the block.

    So nothing lasts from call to call: under differentiation or tracing, what a call stores is often a wrapper that no
    later call could use.
    """
    saved = [(held, held.copy()) for each in modules for held in (each.attributes, *each.containers)]
    try:
        yield
    finally:
        for now, before in saved:
            _put_back(now, before)


def _put_back(now: Any, before: Any) -> None:
    """Give a container its former content, unless it still holds the very same."""
    same = len(now) == len(before) and all(map(operator.is_, now, before))
    if same and (not isinstance(now, dict) or all(map(operator.is_, now.values(), before.values()))):
        return
    now.clear()
    (now.update if isinstance(now, (dict, set)) else now.extend)(before)


def _look_into(values: Iterable[Any], found: list[Any]) -> None:
    for value in values:
        if type(value) in _CONTAINERS and not any(value is known for known in found):
            found.append(value)
            if len(value) <= _MANY:
                _look_into(value.values() if isinstance(value, dict) else value, found)


def copy_module(module: nn.Module) -> nn.Module:
    """A copy of a user's module, whatever it stored; tensors with a gradient history are copied without it."""
    known: dict[int, Any] = {}
    for part in mutable_attributes(user_modules(module)):
        for held in (part.attributes, *part.containers):
            for value in held.values() if isinstance(held, dict) else held:
                if isinstance(value, Tensor) and not value.is_leaf:
                    known[id(value)] = torch._C._functorch.unwrap_if_dead(value).detach().clone()
    return copy.deepcopy(module, known)
