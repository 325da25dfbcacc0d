"""An operation of a graph as an operation of a builder, by its lowering."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.errors import UserError
from lthfunc.printable import counted
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.capture import Captured, line_of, operation_of
from lthfunc.sparse.constants import constant_of
from lthfunc.sparse.lowerings.interface import ARRANGED, OF_LEAVES, Buffer, Param, Unsupported
from lthfunc.sparse.lowerings.placing import plain_view
from lthfunc.sparse.lowerings.table import LOWERINGS
from lthfunc.training.engines.aliases import changed_by, is_seen_elsewhere, memory_of

_IN_PLACE = "in place, of memory that another tensor sees,"
_BATCH_NORM = torch.ops.aten.batch_norm.default


def leaves_of(captured: Captured) -> dict[Node, Param | Buffer]:
    """The placeholders that are parameters and buffers. A fixed buffer of numbers is a frozen parameter."""
    fixed, placeholders = fixed_buffers(captured), captured.placeholders
    found: dict[Node, Param | Buffer] = dict(zip(placeholders, map(Param, captured.params), strict=False))
    for node, name in zip(placeholders[len(found) :], captured.buffers, strict=False):
        found[node] = Param(name) if name in fixed and node.meta["val"].dtype == torch.float32 else Buffer(name)
    return found


def fixed_buffers(captured: Captured) -> set[str]:
    """The names of buffers that nothing writes into, and that no normalisation takes for running statistics."""
    nodes = list(captured.graph.nodes)
    changed = {memory_of(each) for node in nodes for each in changed_by(node)}
    statistics = {each for node in nodes if node.target is _BATCH_NORM for each in node.args[3:5]}
    buffers = captured.placeholders[len(captured.params) :]
    return {
        name for node, name in zip(buffers, captured.buffers, strict=False)
        if node not in statistics and memory_of(node) not in changed
    }  # fmt: skip


def inputs_of(captured: Captured) -> list[Node]:
    """The placeholders that are inputs."""
    return captured.placeholders[len(captured.params) + len(captured.buffers) :]


def results_of(captured: Captured) -> list[Node]:
    """The values that the graph gives."""
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    given: Any = output.args[0]
    return list(given) if isinstance(given, (list, tuple)) else [given]


def add_leaves(
    b: Builder, leaves: Mapping[Node, Param | Buffer], positions: Mapping[str, Tensor], frozen: Container[str]
) -> None:
    """Have room for parameters and buffers. positions: of survivors, in the flattened leaf. frozen: names of parameters
    without a gradient, which follow all others. Raises UserError for a mask of what has no rows of survivors."""
    for node, leaf in leaves.items():
        b.shapes[leaf.name] = tuple(node.meta["val"].shape)
        if isinstance(leaf, Buffer) and node.meta["val"].is_floating_point():
            b.statistics[leaf.name] = b.numbers([0.0] * node.meta["val"].numel())
    params = [(leaf.name, leaf.name in frozen) for node, leaf in leaves.items()
              if isinstance(leaf, Param) and (node.users or leaf.name not in frozen)]  # fmt: skip
    for name, is_frozen in sorted(params, key=operator.itemgetter(1)):
        if b.training and name in positions and len(b.shapes[name]) < 2:
            raise UserError(
                f"engine: sparse prunes matrices and kernels alone, and {name} has a mask and "
                f"{counted(len(b.shapes[name]), 'dimension')}; use eager or compile, or have it not be prunable"
            )
        b.add_leaf(name, b.shapes[name], positions.get(name), frozen=is_frozen)


def canonical(captured: Captured) -> None:
    """Have whoever reads a tensor after an operation that changed it read what that operation gives."""
    at = {node: place for place, node in enumerate(captured.graph.nodes)}
    for node in captured.graph.nodes:
        for changed in changed_by(node):
            value = node.meta.get("val")
            if not isinstance(value, Tensor) or memory_of(node) != memory_of(changed):
                continue
            for user in [user for user in changed.users if at[user] > at[node]]:
                user.replace_input_with(changed, node)


def lowered(b: Builder, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any], at: Mapping[Node, int]) -> Any:
    """What an operation gives, a tensor where it is a constant. args, kwargs: its arguments as Views, Params, Buffers,
    tensors and plain values. at: each node's place in the graph. Raises Unsupported, with its form in words, where it
    has no lowering."""
    constant = constant_of(b, node, args, kwargs)
    if constant is not None:
        return constant
    args = [each.item() if isinstance(each, Tensor) and not each.ndim else each for each in args]
    if any(is_seen_elsewhere(node, each, at) for each in changed_by(node)):
        raise Unsupported(_IN_PLACE)
    if node.target is operator.getitem:
        if args[0][args[1]] is None:
            raise Unsupported(f"number {args[1]}, which the machine does not hand on,")
        return args[0][args[1]]
    lowering = LOWERINGS.get(node.target)
    if lowering is None:
        raise Unsupported
    if node.target in ARRANGED:
        given = list(args)
    else:
        first = args[0] if isinstance(args[0], list) else args[:1]
        if node.target not in OF_LEAVES and not all(isinstance(each, View) for each in first):
            raise Unsupported("of a parameter or buffer")
        given = [_plain(b, each) for each in args]
    found = lowering(b, given, dict(kwargs))
    views = list(found) if isinstance(found, (list, tuple)) and not isinstance(found, View) else [found]
    traced = node.meta["val"] if isinstance(node.meta["val"], (list, tuple)) else [node.meta["val"]]
    # A lowering gives what the operation gave as it was traced, or it misread its arguments.
    if len(views) != len(traced) or not all(map(_is_as_traced, views, traced)):
        raise Unsupported("of this form")
    return found


def _plain(b: Builder, given: Any) -> Any:
    if isinstance(given, list):
        return [_plain(b, each) for each in given]
    return plain_view(b, given) if isinstance(given, View) else given


def _is_as_traced(view: View | None, traced: torch.Tensor) -> bool:
    if view is None:  # what the machine computes no value for; reading it is refused
        return True
    return view.arrangement.sizes == tuple(traced.shape) and traced.dtype == view.value.dtype


def counts_steps(node: Node, changed: Any) -> bool:
    """Whether an operation adds one to a buffer, as batch normalisation counts batches. changed: its first argument."""
    return node.target is torch.ops.aten.add_.Tensor and isinstance(changed, Buffer) and node.args[1:] == (1,)


def described(node: Node, form: str, name: str) -> str:
    """An operation in words: "cumsum in Net (line 12 of net.py: x = x.cumsum(1))"."""
    return f"{operation_of(node)}{form and ' '}{form} in {name}{line_of(node)}"


def no_rule(node: Node, form: str, name: str) -> UserError:
    """The error for an operation without a lowering."""
    return UserError(f"engine: sparse has no rule for {described(node, form, name)}; the engine compile runs it")


def moved_statistics(nodes: Iterable[Node], known: Mapping[Node, Any]) -> tuple[str, ...]:
    """The running statistics that batch normalisation changes. known: the buffers that nodes stand for."""
    found = (
        known[each].name
        for node in nodes if node.target is _BATCH_NORM and node.args[5]
        for each in node.args[3:5] if isinstance(each, Node)
    )  # fmt: skip
    return tuple(dict.fromkeys(found))
