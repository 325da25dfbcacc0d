"""An operation of a graph as an operation of a builder, by its lowering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from lthfunc.errors import UserError
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.capture import TRACED_BATCH, line_of, operation_of
from lthfunc.sparse.lowerings.interface import OF_LEAVES, Buffer, Unsupported
from lthfunc.sparse.lowerings.table import LOWERINGS
from lthfunc.training.engines.aliases import changed_by, is_seen_elsewhere

_IN_PLACE = "in place, of memory that another tensor sees,"


def lowered(b: Builder, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any], at: Mapping[Node, int]) -> View:
    """What an operation gives. args, kwargs: its arguments as Views, Params, Buffers and plain values. at: each node's
    place in the graph. Raises Unsupported, with its form in words, where it has no lowering."""
    if any(is_seen_elsewhere(node, each, at) for each in changed_by(node)):
        raise Unsupported(_IN_PLACE)
    lowering = LOWERINGS.get(node.target)
    if lowering is None:
        raise Unsupported
    first = args[0] if isinstance(args[0], list) else args[:1]
    if node.target not in OF_LEAVES and not all(isinstance(each, View) for each in first):
        raise Unsupported("of a parameter or buffer")
    view = lowering(b, list(args), dict(kwargs))
    # A lowering gives what the operation gave as it was traced, or it misread its arguments.
    traced = node.meta["val"]
    if (TRACED_BATCH, *view.shape) != tuple(traced.shape) or traced.dtype != torch.float32:
        raise Unsupported("of this form")
    return view


def counts_steps(node: Node, changed: Any) -> bool:
    """Whether an operation adds one to a buffer, as batch normalisation counts batches. changed: its first argument."""
    return node.target is torch.ops.aten.add_.Tensor and isinstance(changed, Buffer) and node.args[1:] == (1,)


def described(node: Node, form: str, name: str) -> str:
    """An operation in words: "cumsum in Net (line 12 of net.py: x = x.cumsum(1))"."""
    return f"{operation_of(node)}{form and ' '}{form} in {name}{line_of(node)}"


def no_rule(node: Node, form: str, name: str) -> UserError:
    """The error for an operation without a lowering."""
    return UserError(f"--engine: sparse has no rule for {described(node, form, name)}; --engine compile runs it")
