"""What depends on no input and on nothing that changes: computed as a program is made, like masks of attention."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils import _pytree

from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.lowerings.interface import Buffer, Param
from lthfunc.training.engines.aliases import changed_by, memory_of


def constant_of(b: Builder, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation of constants and fixed buffers gives, as tensors; None where it is any other operation."""
    if node.target in _MADE_LIKE and isinstance(args[0], View) and b.size_free(node):
        # Of the value it reads the dtype alone.
        return node.target(torch.empty(0, dtype=args[0].value.dtype), *args[1:], **kwargs)
    leaves, structure = _pytree.tree_flatten((args, dict(kwargs)), is_leaf=lambda each: isinstance(each, _KNOWN))
    buffers = [each for each in leaves if isinstance(each, Param | Buffer)]
    if any(isinstance(each, View) for each in leaves) or any(each.name not in b.fixed for each in buffers):
        return None
    if not (_is_deterministic(node.target) and b.size_free(node)):
        return None
    given = [b.fold(each.name) if isinstance(each, Param | Buffer) else each for each in leaves]
    known_args, known_kwargs = _pytree.tree_unflatten(given, structure)
    with torch.no_grad():
        return node.target(*known_args, **known_kwargs)  # type: ignore[operator]


_aten = torch.ops.aten
#: Operations that make a tensor of a shape of its own.
_MADE_LIKE = (_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default)
#: Named tuples that are no containers here.
_KNOWN = (View, Param, Buffer)


def _is_deterministic(target: Any) -> bool:
    """Whether a result depends on the arguments alone; that of ``empty`` depends on what lay there before."""
    if target is operator.getitem:
        return True
    return isinstance(target, OpOverload) and not (
        torch.Tag.nondeterministic_seeded in target.tags or "empty" in target._schema.name
    )


def is_constant(value: Any) -> bool:
    """Whether an operation gave a constant, or several."""
    several = isinstance(value, (list, tuple)) and not isinstance(value, _KNOWN)
    return isinstance(value, Tensor) or (several and all(isinstance(each, Tensor) for each in value))


def has_values(buffers: Mapping[str, Tensor], folded: Mapping[str, Tensor]) -> bool:
    """Whether buffers still have the values that a program was made of."""
    return all(torch.equal(buffers[name], value) for name, value in folded.items())


def constants_read(nodes: Iterable[Node], constants: Iterable[Node]) -> list[Node]:
    """Those constants that operations depend on, with the operations that change what they read, in their order."""
    found: set[Node] = set()
    while True:
        memories = {memory_of(each) for each in found} - {0}
        reached = {each for node in (*nodes, *found) for each in node.all_input_nodes}
        more = {
            each for each in constants
            if each in reached or any(memory_of(changed) in memories for changed in changed_by(each))
        } - found  # fmt: skip
        if not more:
            return [each for each in constants if each in found]
        found |= more
