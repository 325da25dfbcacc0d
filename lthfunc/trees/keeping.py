"""What a module keeps in plain attributes as it is called: what it has just computed, say. Forgotten afterwards."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: Attributes that PyTorch's own `Module` has.
TORCHS = frozenset(vars(nn.Module()))
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
#: Containers of more entries (a vocabulary, say) are not looked into for further ones.
_MANY = 100


def own_parts(module: nn.Module) -> list[nn.Module]:
    """The modules in it, itself too, that may keep something: those that are not PyTorch's, or have hooks."""
    return [part for part in module.modules() if not _is_torchs(part)]


def _is_torchs(part: nn.Module) -> bool:
    hooks = part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    return not hooks and type(part).__module__.startswith("torch.")


@contextmanager
def as_before(parts: Iterable[nn.Module]) -> Iterator[None]:
    """After the block, their plain attributes are what they were.

    So nothing lasts from call to call, no matter what a call is part of: what it computes is often no tensor that
    others could use, but a stand-in for one under differentiation, or in a trace.
    """
    saved = [_Saved.of(part) for part in parts]
    try:
        yield
    finally:
        for each in saved:
            each.put_back()


class _Saved(NamedTuple):
    """The attributes of a module, and what the containers among them held."""

    now: dict[str, Any]
    before: dict[str, Any]
    containers: list[tuple[Any, Any]]

    @classmethod
    def of(cls, part: nn.Module) -> _Saved:
        now = vars(part)
        containers: list[tuple[Any, Any]] = []
        _look_into((value for name, value in now.items() if name not in TORCHS), containers)
        return cls(now, dict(now), containers)

    def put_back(self) -> None:
        if not _same(self.now.values(), self.before.values(), len(self.now), len(self.before)):
            self.now.clear()
            self.now.update(self.before)
        for container, held in self.containers:
            if isinstance(container, dict):
                if not _same(container.values(), held.values(), len(container), len(held)) or [*container] != [*held]:
                    container.clear()
                    container.update(held)
            elif not _same(container, held, len(container), len(held)):
                container.clear()
                (container.update if isinstance(container, set) else container.extend)(held)


def _same(ours: Iterable[Any], theirs: Iterable[Any], count: int, other: int) -> bool:
    """Whether the very same objects are in both."""
    return count == other and all(map(operator.is_, ours, theirs))


def _look_into(values: Iterable[Any], found: list[tuple[Any, Any]]) -> None:
    for value in values:
        if type(value) in _CONTAINERS and not any(value is known for known, _ in found):
            found.append((value, copy.copy(value)))
            if len(value) <= _MANY:
                _look_into(value.values() if isinstance(value, dict) else value, found)


def copied(module: nn.Module) -> nn.Module:
    """A copy of a user's module, whatever it keeps of a call: tensors with a history are copied without it."""
    known: dict[int, Any] = {}
    for part in own_parts(module):
        kept: list[tuple[Any, Any]] = []
        mine = [value for name, value in vars(part).items() if name not in TORCHS]
        _look_into(mine, kept)
        inside = (each for held, _ in kept for each in (held.values() if isinstance(held, dict) else held))
        for value in (*mine, *inside):
            if isinstance(value, Tensor) and not value.is_leaf:
                known[id(value)] = torch._C._functorch.unwrap_if_dead(value).detach().clone()
    return copy.deepcopy(module, known)
