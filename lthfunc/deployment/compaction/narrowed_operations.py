"""How operations that name sizes, or count features, are written where some of their dimensions are removed."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lthfunc.deployment.compaction.following import Following
from lthfunc.deployment.compaction.following_rules import name_of
from lthfunc.deployment.compaction.liveness import args_of
from lthfunc.sparse.lowerings.interface import argument
from lthfunc.trees.types import Buffers

_aten = torch.ops.aten
_SIZED = ("view", "reshape", "_unsafe_view", "expand")
_PIECES = ("split", "split_with_sizes", "chunk")
#: Operations that look at places along an axis, which nobody here moves.
_PLACED = ("unbind", "narrow", "flip", "squeeze", "view_as", "expand_as")


@dataclass(eq=False)
class Narrowing:
    """A new graph under construction.

    keeps: of each value that loses something, the indices that remain along each axis. x: the input. made: the new
    nodes, by old. constants: new buffers.
    """

    known: Following
    keeps: dict[Node, list[Tensor]]
    graph: Graph
    x: Node | None = None
    made: dict[Node, Any] = field(default_factory=dict)
    constants: Buffers = field(default_factory=dict)

    def attribute(self, name: str) -> Node:
        """A parameter, buffer or constant of the new graph."""
        return self.graph.create_node("get_attr", name)

    def constant(self, value: Tensor) -> Node:
        """A tensor as a buffer of the new graph."""
        name = f"narrowed_{len(self.constants)}"
        self.constants[name] = value
        return self.attribute(name)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """An operation of the new graph."""
        return self.graph.call_function(target, args, kwargs)

    def copied(self, node: Node) -> Node:
        """The same operation."""
        return self.graph.node_copy(node, lambda each: self.made[each])

    def touches(self, node: Node) -> bool:
        """Whether an operation's input or output loses anything."""
        return node in self.keeps or any(each in self.keeps for each in node.all_input_nodes)

    def given(self, node: Node, *places: int) -> list[Any]:
        """Arguments, in the new graph."""
        found = [argument(args_of(node), place, None) for place in places]
        return [self.made.get(each, each) if isinstance(each, Node) else each for each in found]


def refuses(known: Following, node: Node, keeps: dict[Node, list[Tensor]]) -> bool:
    """Whether an operation cannot be written without what its input or output loses."""
    name, args = name_of(node), args_of(node)
    x = args[0] if args and isinstance(args[0], Node) else None
    if x not in keeps:
        return False
    size, kept = known.labels[x].shape, keeps[x]
    if name in _PLACED:
        shrunk = [axis for axis in range(len(size)) if len(kept[axis]) < size[axis]]
        axes = [argument(args, 1, 0) % len(size)] if name in ("unbind", "narrow") else range(len(size))
        return any(axis in shrunk for axis in axes) and (
            name != "squeeze" or any(len(kept[axis]) == 1 for axis in shrunk)
        )
    if name == "select":
        axis = args[1] % len(size)
        return int(args[2]) % size[axis] not in kept[axis].tolist()
    if name in ("layer_norm", "rms_norm", "mean", "sum"):
        return any(each is None for each in _lost(known, node, kept))
    return False


def _lost(known: Following, node: Node, kept: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """(sum, sum of squares) of what an input loses along the axes that are reduced, keeping these.

    None where they differ along an axis that holds examples as well.
    """
    x = args_of(node)[0]
    value = known.values[x].value
    gone = torch.ones(value.shape, dtype=torch.bool)
    gone[torch.meshgrid(*kept, indexing="ij")] = False
    value = torch.where(gone, value, 0)
    axes = _reduced_axes(node, value.ndim)
    found = []
    for each in (value, value.square()):
        total: Tensor | None = each.sum(axes, keepdim=True)
        for axis, size in enumerate(x.meta["val"].shape):
            assert total is not None
            if axis not in axes and size != value.shape[axis] and total.shape[axis] > 1:
                same = bool((total == total.narrow(axis, 0, 1)).all())
                total = total.narrow(axis, 0, 1) if same else None
                if total is None:
                    break
        found.append(total)
    return found[0], found[1]


def _reduced_axes(node: Node, ndim: int) -> list[int]:
    if name_of(node).endswith("norm"):
        return [ndim - 1]
    return [axis % ndim for axis in (argument(args_of(node), 1, None) or range(ndim))]


def _sized(w: Narrowing, node: Node) -> Node:
    """Views and expansions, to the new sizes."""
    sizes = list(args_of(node)[1])
    if node in w.keeps:
        for axis, (size, kept) in enumerate(zip(w.known.labels[node].shape, w.keeps[node], strict=True)):
            if len(kept) < size and sizes[axis] != -1:
                sizes[axis] = len(kept)
                if isinstance(args_of(node)[1][axis], Node):  # times the number of examples
                    sizes[axis] = w.call(operator.mul, w.call(_aten.sym_size.int, w.x, 0), len(kept))
    sizes = [w.made[each] if each in w.made and isinstance(each, Node) else each for each in sizes]
    return w.call(node.target, w.made[args_of(node)[0]], sizes, **node.kwargs)


def _unflattened(w: Narrowing, node: Node) -> Node:
    x, axis, sizes = args_of(node)[:3]
    new = list(w.known.labels[node].shape)
    if node in w.keeps:
        new = [len(each) for each in w.keeps[node]]
    axis %= w.known.labels[x].ndim
    return w.call(node.target, w.made[x], axis, new[axis : axis + len(sizes)])


def _select(w: Narrowing, node: Node) -> Node | None:
    x, axis, place = args_of(node)
    if x not in w.keeps:
        return None
    size = w.known.labels[x].shape
    axis %= len(size)
    return w.call(node.target, w.made[x], axis, w.keeps[x][axis].tolist().index(place % size[axis]))


def _slice(w: Narrowing, node: Node) -> Node | None:
    args = args_of(node)
    x, axis = args[0], argument(args, 1, 0)
    if x not in w.keeps:
        return None
    size = w.known.labels[x].shape
    axis %= len(size)
    kept = w.keeps[x][axis]
    if len(kept) == size[axis]:
        return None
    taken = torch.arange(size[axis])[slice(*(argument(args, place, None) for place in (2, 3, 4)))]
    places = torch.searchsorted(kept, taken[torch.isin(taken, kept)])
    first, last = int(places[0]), int(places[-1])
    if torch.equal(places, torch.arange(first, last + 1)):
        return w.call(node.target, w.made[x], axis, first, last + 1)
    return w.call(_aten.index_select.default, w.made[x], axis, w.constant(places))


def _pieces(w: Narrowing, node: Node) -> Node | None:
    """Splits and chunks, to what remains of each piece."""
    args = args_of(node)
    x, axis = args[0], argument(args, 2, 0)
    if x not in w.keeps:
        return None
    size = w.known.labels[x].shape
    axis %= len(size)
    if len(w.keeps[x][axis]) == size[axis]:
        return None
    there = torch.zeros(size[axis], dtype=torch.int64)
    there[w.keeps[x][axis]] = 1
    parts = [each.shape[axis] for each in node.meta["val"]]
    counts = [int(each.sum()) for each in there.split(parts)]
    return w.call(_aten.split_with_sizes.default, w.made[x], counts, axis)


def _pad(w: Narrowing, node: Node) -> Node | None:
    x, amounts, *rest = args_of(node)
    if node not in w.keeps:
        return None
    sizes, amounts = w.known.labels[node].shape, list(amounts)
    for place in range(len(amounts) // 2):
        axis = len(sizes) - 1 - place
        before, after = amounts[2 * place : 2 * place + 2]
        kept = w.keeps[node][axis]
        amounts[2 * place] = int((kept < before).sum())
        amounts[2 * place + 1] = int((kept >= sizes[axis] - after).sum())
    return w.call(node.target, w.made[x], amounts, *rest, **node.kwargs)


def _convolution(w: Narrowing, node: Node) -> Node | None:
    args = list(args_of(node))
    groups = int(argument(tuple(args), 6, 1))
    if groups == 1 or args[0] not in w.keeps:
        return None
    ours = w.known.labels[args[0]].shape[1]
    args[6] = groups * len(w.keeps[args[0]][1]) // ours
    return w.call(node.target, *(w.made[each] if isinstance(each, Node) else each for each in args), **node.kwargs)


def _group_norm(w: Narrowing, node: Node) -> Node:
    args = list(args_of(node))
    channels = w.known.labels[args[0]].shape[1]
    args[1] = args[1] * len(w.keeps[args[0]][1]) // channels
    return w.call(node.target, *(w.made[each] if isinstance(each, Node) else each for each in args), **node.kwargs)


def _feature_norm(w: Narrowing, node: Node) -> Node | None:
    """Layer and root mean square normalisation, which go on to count what is gone (`_lost`)."""
    x = args_of(node)[0]
    if x not in w.keeps:
        return None
    value = node.meta["val"]
    total, squares = _lost(w.known, node, w.keeps[x])
    assert total is not None
    assert squares is not None
    count, there = value.shape[-1], len(w.keeps[x][-1])
    root_mean_square = name_of(node) == "rms_norm"
    centred = w.made[x]
    if root_mean_square:
        weight, eps = w.given(node, 2, 3)
        rest, shift = _plus(w, None, squares, value), None
    else:
        weight, shift, eps = w.given(node, 2, 3, 4)
        whole = _plus(w, w.call(_aten.sum.dim_IntList, centred, [-1], True), total, value)
        mean = w.call(_aten.div.Tensor, whole, count)
        centred = w.call(_aten.sub.Tensor, centred, mean)
        # Σ (c - mean)² of the constants c that are gone.
        rest = w.call(_aten.mul.Tensor, w.call(_aten.square.default, mean), count - there)
        if bool(squares.any()):
            twice = w.call(_aten.mul.Tensor, mean, w.constant((2 * total).to(value.dtype)))
            rest = w.call(_aten.sub.Tensor, _plus(w, rest, squares, value), twice)
    eps = (torch.finfo(value.dtype).eps if root_mean_square else 1e-5) if eps is None else eps
    spread = w.call(_aten.sum.dim_IntList, w.call(_aten.square.default, centred), [-1], True)
    spread = spread if rest is None else w.call(_aten.add.Tensor, spread, rest)
    spread = w.call(_aten.add.Scalar, w.call(_aten.div.Tensor, spread, count), eps)
    out = w.call(_aten.mul.Tensor, centred, w.call(_aten.rsqrt.default, spread))
    out = out if weight is None else w.call(_aten.mul.Tensor, out, weight)
    return out if shift is None else w.call(_aten.add.Tensor, out, shift)


def _plus(w: Narrowing, node: Node | None, constant: Tensor, value: Tensor) -> Node | None:
    """A value plus a constant, which is left out where it is zero."""
    if not bool(constant.any()):
        return node
    added = w.constant(constant.to(value.dtype))
    return added if node is None else w.call(_aten.add.Tensor, node, added)


def _reduced(w: Narrowing, node: Node) -> Node | None:
    """Means and sums over dimensions of which some are gone."""
    args = args_of(node)
    x, keep = args[0], bool(argument(args, 2, False))
    if x not in w.keeps:
        return None
    sizes, axes = w.known.labels[x].shape, _reduced_axes(node, w.known.labels[x].ndim)
    if all(len(w.keeps[x][axis]) == sizes[axis] for axis in axes):
        return None
    total, _ = _lost(w.known, node, w.keeps[x])
    assert total is not None
    value = node.meta["val"]
    summed = w.call(_aten.sum.dim_IntList, w.made[x], axes, True, dtype=value.dtype)  # which a call may choose
    out = _plus(w, summed, total, value)
    if name_of(node) == "mean":
        out = w.call(_aten.div.Tensor, out, torch.Size([sizes[axis] for axis in axes]).numel())
    for axis in () if keep else sorted(axes, reverse=True):
        out = w.call(_aten.squeeze.dim, out, axis)
    return out


#: (what is written, an operation that loses something) -> its new node, or None where it stays as it is.
WRITERS = {
    **dict.fromkeys(_SIZED, _sized), **dict.fromkeys(_PIECES, _pieces), "unflatten": _unflattened, "select": _select,
    "slice": _slice,
    "pad": _pad, "constant_pad_nd": _pad, "conv1d": _convolution, "conv2d": _convolution, "group_norm": _group_norm,
    "layer_norm": _feature_norm, "rms_norm": _feature_norm, "mean": _reduced, "sum": _reduced,
}  # fmt: skip
