"""The smaller graph: each operation on the wanted units only, constants folded into what reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lthfunc.deployment.compaction import dataflow, operations
from lthfunc.deployment.compaction.liveness import CONSTANT, Liveness, args_of, naming_errors
from lthfunc.deployment.compaction.modules import set_outputs
from lthfunc.sparse.lowerings.interface import argument
from lthfunc.trees.types import Buffers, Params

_aten = torch.ops.aten
#: The indices of a tensor that remain along each dimension; None: all.
Cut = tuple[Tensor | None, ...]
#: Unread inputs are taken out of a flattened value where they are more than this share of it.
_FEW = 1 / 8


@dataclass(eq=False)
class Rewriter:
    """A new graph under construction.

    x: the input. made: the new nodes, by old. have: the old value's units that a new one has. cuts: of parameters and
    buffers. changed: parameters whose values change. constants: new buffers, whose names begin with `kind`.
    selecting: whether inputs may be taken out of features.
    """

    facts: Liveness
    selecting: bool
    kind: str = ""
    graph: Graph = field(default_factory=Graph)
    x: Node | None = None
    made: dict[Node, Any] = field(default_factory=dict)
    have: dict[Node, Tensor] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
    changed: Params = field(default_factory=dict)
    constants: Buffers = field(default_factory=dict)

    def leaf(self, node: Node, *cut: Tensor | None) -> Node:
        """A parameter or buffer, cut."""
        name = self.facts.leaves[node]
        self.cuts[name] = cut
        return self.attribute(name)

    def attribute(self, name: str) -> Node:
        """A parameter, buffer or constant of the new graph."""
        return self.graph.create_node("get_attr", name)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """An operation of the new graph."""
        return self.graph.call_function(target, args, kwargs)

    def constant(self, value: Tensor, like: Node) -> Node:
        """A constant of the new graph, with an old value's dtype."""
        return self.kept("constant", value.to(like.meta["val"].dtype))

    def kept(self, kind: str, value: Tensor) -> Node:
        """A tensor as a buffer of the new graph."""
        name = f"{self.kind}{kind}_{len(self.constants)}"
        self.constants[name] = value
        return self.attribute(name)

    def of(self, argument: Any, wanted: Tensor) -> Any:
        """An argument with exactly these units, in this order; those that are not computed are constants."""
        if not self.facts.has_units(argument):
            return self.made.get(argument, argument) if isinstance(argument, Node) else argument
        node, have = self.made[argument], self.have[argument]
        if torch.equal(have, wanted):
            return node
        place = torch.full((self.facts.units(argument),), -1, dtype=torch.int64)
        place[have] = torch.arange(len(have))
        places = place[wanted]
        there = places >= 0
        if not there.any():
            value = self.facts.values[0][argument][wanted]
            size = [self.call(_aten.sym_size.int, self.x, 0), *value.shape]
            return self.call(_aten.expand.default, self.constant(value[None], argument), size)
        found = self.call(_aten.index_select.default, node, 1, self.kept("index", places.clamp(min=0)))
        if there.all():
            return found
        # Compilers fuse this with what follows.
        value = self.facts.values[0][argument][wanted]
        mask = there.view(-1, *(1,) * (value.ndim - 1))
        constants = self.constant(torch.where(mask, 0, value)[None], argument)
        return self.call(_aten.where.self, self.kept("mask", mask[None]), found, constants)

    def all_of(self, argument: Any) -> Any:
        """An argument with all its units, for an operation that may read everything."""
        if not self.facts.has_units(argument):
            return self.of(argument, torch.zeros(0))
        return self.of(argument, torch.arange(self.facts.units(argument)))


def rewritten(facts: Liveness, *, selecting: bool, kind: str = "") -> Rewriter:
    """Write the smaller graph. Raises UserError for an operation that cannot be rewritten."""
    r = Rewriter(facts, selecting, kind)
    graph = facts.captured.graph
    x = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in graph.nodes:
        with naming_errors(facts, node):
            if node in facts.leaves:
                if all(not _cut_by(user, node, facts) for user in node.users):
                    r.made[node] = r.leaf(node)
            elif node is x:
                r.made[node] = r.x = r.graph.placeholder("x")
                if facts.has_units(node):
                    r.have[node] = torch.arange(facts.units(node))
            elif node.op == "get_attr":
                r.made[node] = r.kept("given", facts.captured.constants[str(node.target)])
            elif node.op == "output":
                set_outputs(r.graph, facts.captured.outputs, [r.all_of(each) for each in args_of(node)[0]])
            else:
                r.made[node] = _written(r, node)
    return r


def _cut_by(user: Node, leaf: Node, facts: Liveness) -> bool:
    return operations.is_layer(user, facts) or (operations.is_norm(user, facts) and leaf in args_of(user)[1:5])


def _written(r: Rewriter, node: Node) -> Any:
    facts = r.facts
    if not facts.has_units(node):
        return _copied(r, node)
    for fits, write in _WRITERS.items():
        if fits(node, facts):
            return write(r, node)
    r.have[node] = torch.arange(facts.units(node))
    return _copied(r, node)


def _copied(r: Rewriter, node: Node) -> Node:
    args, kwargs = torch.fx.node.map_arg((args_of(node), node.kwargs), r.all_of)
    return r.call(node.target, *args, **kwargs)


def _layer(r: Rewriter, node: Node) -> Node:
    facts = r.facts
    x, weight, bias = args_of(node)[0], args_of(node)[1], argument(args_of(node), 2, None)
    groups, rows = operations.groups_of(node), facts.wanted(node)
    rest = list(args_of(node)[3:])
    if groups > 1:
        outs, ins = facts.units(node) // groups, facts.units(x) // groups
        kept = torch.unique(rows // outs)
        rows = (kept[:, None] * outs + torch.arange(outs)).flatten()
        given = r.of(x, (kept[:, None] * ins + torch.arange(ins)).flatten())
        columns, rest[3] = None, len(kept)
    else:
        given, columns = _inputs(r, node)
    r.have[node] = rows
    new = r.leaf(weight, rows, columns)
    shift = None if groups > 1 or facts.training else _folded(r, node, rows, columns)
    if shift is None:
        return r.call(node.target, given, new, bias and r.leaf(bias, rows), *rest)
    places = shift.reshape(len(shift), -1)
    name = facts.leaves[bias] if bias else f"{facts.leaves[weight].rpartition('.')[0]}.bias".removeprefix(".")
    free = name not in facts.frozen if bias is not None else name not in facts.params
    if free and torch.allclose(places, places[:, :1].expand_as(places), rtol=1e-13, atol=0):  # as good as a bias
        before = facts.params[name][rows].double() if bias else 0
        r.changed[name] = (before + places[:, 0]).to(facts.params[name if bias else facts.leaves[weight]].dtype)
        return r.call(node.target, given, new, r.attribute(name), *rest)
    out = r.call(node.target, given, new, bias and r.leaf(bias, rows), *rest)
    return r.call(_aten.add.Tensor, out, r.constant(shift[None], node))


def _inputs(r: Rewriter, node: Node) -> tuple[Node, Tensor]:
    """(a layer's input, the units of the old value that it has)."""
    facts, x = r.facts, args_of(node)[0]
    needed = dict(dataflow.transfer_of(node, facts).needs(node, facts.wanted_units(node), facts))[x]
    have = r.have[x]
    used = have[needed[have] & facts.live(x)[have]]
    picks = r.selecting and node.meta["val"].ndim == 2 and 0 < len(used) < (1 - _FEW) * len(have)
    return (r.of(x, used), used) if picks else (r.made[x], have)


def _folded(r: Rewriter, node: Node, rows: Tensor, columns: Tensor | None) -> Tensor | None:
    """What constant units that are not computed add to a layer's outputs; None for nothing."""
    facts, x, weight = r.facts, args_of(node)[0], args_of(node)[1]
    gone = facts.constancy[x] <= CONSTANT
    if columns is not None:
        gone[columns] = False
    value = facts.values[0][x]
    value = torch.where(gone.view(-1, *(1,) * (value.ndim - 1)), value, 0)
    if not bool(value.any()):
        return None
    leaf = facts.params[facts.leaves[weight]].double()[rows]
    layer: Any = node.target
    added: Tensor = layer(value[None], leaf, None, *args_of(node)[3:])[0]
    return added


def _norm(r: Rewriter, node: Node) -> Node:
    rows = r.facts.wanted(node)
    r.have[node] = rows
    leaves = [each and r.leaf(each, rows) for each in args_of(node)[1:5]]
    return r.call(node.target, r.of(args_of(node)[0], rows), *leaves, *args_of(node)[5:], **node.kwargs)


def _unitwise(r: Rewriter, node: Node) -> Node:
    """Unit-wise and binary operations: the same on the wanted units."""
    rows = r.facts.wanted(node)
    r.have[node] = rows
    args = [r.of(each, rows) if isinstance(each, Node) else each for each in args_of(node)]
    return r.call(node.target, *args, **node.kwargs)


def _cat(r: Rewriter, node: Node) -> Node:
    parts, have, first = [], [], 0
    for each in args_of(node)[0]:
        parts.append(r.made[each])
        have.append(r.have[each] + first)
        first += r.facts.units(each)
    r.have[node] = torch.cat(have)
    return r.call(node.target, parts, 1)


def _flatten(r: Rewriter, node: Node) -> Node:
    x = args_of(node)[0]
    places = r.facts.units(node) // r.facts.units(x)
    r.have[node] = (r.have[x][:, None] * places + torch.arange(places)).flatten()
    return r.call(_aten.flatten.using_ints, r.made[x], 1)


def _slice(r: Rewriter, node: Node) -> Node:
    rows = r.facts.wanted(node)
    source = operations.sources(node, r.facts)[rows]
    if not bool((source >= 0).any()):  # nothing of it is wanted
        r.have[node] = torch.arange(r.facts.units(node))
        return _copied(r, node)
    r.have[node] = rows
    part: Node = r.of(args_of(node)[0], source[source >= 0])
    inside = (source >= 0).nonzero().flatten()
    before, after = int(inside[0]), len(source) - 1 - int(inside[-1])
    if before or after:  # zero padding around the argument's units
        plain = [0, 0] * (node.meta["val"].ndim - 2)
        part = r.call(_aten.constant_pad_nd.default, part, [*plain, before, after])
    return part


_WRITERS = {
    operations.is_layer: _layer,
    operations.is_norm: _norm,
    operations.is_unitwise: _unitwise,
    operations.is_binary: _unitwise,
    operations.is_cat: _cat,
    operations.is_flatten: _flatten,
    operations.is_slice_or_pad: _slice,
}
