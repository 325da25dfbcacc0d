"""A mask of attention as a sum of parts, each of which depends on a query, on a key, or on no token.

Of padding, a mask says for each key whether it is read; beside it there may be the causal one. In the graph of one
token these parts are numbers of that token, where the whole mask is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import Node

from lthfunc.sparse.capture import operation_of
from lthfunc.sparse.lowerings.interface import argument
from lthfunc.sparse.lowerings.masked_attention import is_causal

_BOTH, _EITHER = frozenset({"bitwise_and", "logical_and", "__and__"}), frozenset({"bitwise_or", "logical_or", "__or__"})
_NOT = frozenset({"bitwise_not", "logical_not"})
#: Operations that repeat what they are given, and those that leave the order of its numbers.
_REPEATING = frozenset({"expand", "expand_as", "repeat"})
_SHAPING = frozenset({
    "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "alias", "clone", "contiguous",
    "to", "_to_copy",
})  # fmt: skip


class Term(NamedTuple):
    """node: numbers that are added to scores, or truths of what is read. inverted: whether those say what is not.
    leading: the shape that its dimensions but the last two have in the mask; None for their own."""

    node: Node
    inverted: bool
    leading: tuple[int, ...] | None


class Terms(NamedTuple):
    """of_keys, of_queries: parts that depend on these. causal: whether the causal mask is one."""

    of_keys: list[Term]
    of_queries: list[Term]
    causal: bool


def is_of_pairs(one: object, whole: object, length: int) -> bool:
    """Whether a node's values in the graphs of one token and of `length` have a number for each query and key."""
    if not (isinstance(one, Tensor) and isinstance(whole, Tensor)) or one.ndim != whole.ndim or one.ndim < 2:
        return False
    alike = one.shape[:-2] == whole.shape[:-2]
    return alike and one.shape[-2:] == (1, 1) and whole.shape[-2:] == (length, length)


def terms_of(
    mask: Node, twins: Mapping[Node, Node], length: int, value: Callable[[Node], Tensor | None]
) -> Terms | None:  # fmt: skip
    """A mask's parts; None where it is no sum of such.

    twins: of each node of the graph of one token, that in the graph of `length`. value: of what depends on no token, at
    all places; None for anything else.
    """
    found = _Walk(twins, length, value, mask.meta["val"].ndim)
    return found.terms() if found.add(mask, inverted=False, leading=None) else None


class _Walk:
    """Arguments as of `terms_of`. ndim: dimensions of the mask."""

    def __init__(
        self, twins: Mapping[Node, Node], length: int, value: Callable[[Node], Tensor | None], ndim: int
    ) -> None:
        self._twins, self._length, self._value, self._ndim = twins, length, value, ndim
        self._found = Terms([], [], causal=False)

    def terms(self) -> Terms:
        """All that were added."""
        return self._found

    def add(self, node: Node, *, inverted: bool, leading: tuple[int, ...] | None) -> bool:
        """Add a mask's parts; False where it is no sum of such. leading: as a term has it."""
        known = self._value(node)
        if known is not None:
            return self._add_known(~known if inverted else known)
        one, whole = (each.meta["val"] for each in (node, self._twins[node]))
        if is_of_pairs(one, whole, self._length):
            return self._add_pairs(node, inverted=inverted, leading=leading)
        if one.ndim < 2 or one.shape[-2:] != (1, 1) or one.shape[:-2] != whole.shape[:-2]:
            return False
        sides = {(1, self._length): self._found.of_keys, (self._length, 1): self._found.of_queries}
        side = sides.get(tuple(whole.shape[-2:]))
        # Nothing is broadcast to other leading dimensions than those in the mask.
        fits = one.ndim == self._ndim if leading is None else one.shape[:-2].numel() == math.prod(leading)
        if side is None or not fits:
            return False
        side.append(Term(node, inverted, leading))
        return True

    def _add_known(self, known: Tensor) -> bool:
        if is_causal(known, self._length, self._length):
            self._found = self._found._replace(causal=True)
            return True
        return bool(known.all()) if not known.is_floating_point() else not bool(known.any())

    def _add_pairs(self, node: Any, *, inverted: bool, leading: tuple[int, ...] | None) -> bool:
        name, args = operation_of(node), node.args
        if name in _NOT:
            return self.add(args[0], inverted=not inverted, leading=leading)
        adds = name == "add" and node.meta["val"].is_floating_point() and node.kwargs.get("alpha", 1) == 1
        if adds or name in (_EITHER if inverted else _BOTH):
            return self._add_all(args[:2], inverted=inverted, leading=leading)
        if name == "zeros_like":
            return not inverted
        if name == "masked_fill" and self._number(args[2]) == -math.inf:
            return self._add_all(args[1:2], inverted=True, leading=leading) and self._add_all(
                args[:1], inverted=False, leading=leading
            )
        if name == "where":
            return self._add_choice(args, leading)
        if name in _REPEATING:
            return self.add(args[0], inverted=inverted, leading=leading)
        if name in _SHAPING and args[0].meta["val"].dtype == node.meta["val"].dtype:
            shape = tuple(node.meta["val"].shape[:-2])
            moved = leading if args[0].meta["val"].shape[:-2] == shape else leading or shape
            same = self._shape(args[0])[-2:] == self._shape(node)[-2:]
            return same and self.add(args[0], inverted=inverted, leading=moved)
        return False

    def _add_choice(self, args: Sequence[Any], leading: tuple[int, ...] | None) -> bool:
        """where(mask, x, -inf) and where(mask, -inf, x)."""
        mask, x, y = args
        for inverted, (kept, left_out) in ((False, (x, y)), (True, (y, x))):
            if self._number(left_out) == -math.inf:
                rest = [] if self._number(kept) == 0 else [kept]
                return self._add_all([mask], inverted=inverted, leading=leading) and self._add_all(
                    rest, inverted=False, leading=leading
                )
        return False

    def _add_all(self, parts: Sequence[Any], *, inverted: bool, leading: tuple[int, ...] | None) -> bool:
        return all(isinstance(each, Node) and self.add(each, inverted=inverted, leading=leading) for each in parts)

    def _number(self, given: Any) -> float | None:
        """The one number that an argument is, or that all of its numbers are; None where it is none."""
        if isinstance(given, Node):
            if operation_of(given) == "full_like":
                return float(argument(given.args, 1, math.nan))
            given = self._value(given)
        if isinstance(given, Tensor):
            return float(given.flatten()[0]) if given.numel() and bool((given == given.flatten()[0]).all()) else None
        return float(given) if isinstance(given, (int, float)) else None

    def _shape(self, node: Node) -> tuple[int, ...]:
        return tuple(self._twins[node].meta["val"].shape)
