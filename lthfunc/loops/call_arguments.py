"""What a module is called with: its tensors, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree


class CallArguments(NamedTuple):
    """A call's tensors, and what else it was given: kind, by which calls are told apart, and the way back."""

    tensors: Sequence[Tensor]
    kind: Any
    rebuilt: Callable[[Sequence[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]


def taken_apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallArguments:
    """The arguments of a call, in which tensors may lie in containers."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return CallArguments(args, None, lambda tensors: ((tensors[0],), {}))
    leaves, structure = _pytree.tree_flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def rebuilt(tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        filled: list[Any] = list(rest)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        found: tuple[tuple[Any, ...], dict[str, Any]] = _pytree.tree_unflatten(filled, structure)
        return found

    return CallArguments([leaves[place] for place in places], (str(structure), tuple(map(repr, rest))), rebuilt)
