"""What operations make of labels: layers, normalisations, attention, and operations that move or combine values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.deployment.compaction import operations
from lthfunc.deployment.compaction.classes import FIXED, NEUTRAL
from lthfunc.deployment.compaction.following import (
    Followed,
    Following,
    Rule,
    Whole,
    followed_in,
    on_values,
    solid,
    unknown,
)
from lthfunc.deployment.compaction.following_attention import attention, heads_of
from lthfunc.sparse.lowerings.interface import argument

_aten = torch.ops.aten

#: Operations whose outputs are their inputs at other places.
MOVES = (
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "expand_as",
    "select", "slice", "unbind", "split", "split_with_sizes", "chunk", "cat", "concat", "stack", "flatten", "unflatten",
    "repeat_interleave", "flip", "narrow", "movedim", "swapaxes", "view_as",
)  # fmt: skip
#: Operations that combine the numbers at one place.
_POINTWISE = (
    *operations._UNITWISE, *operations._BINARY, "pow", "square", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "log",
    "erf", "clamp", "clamp_min", "clamp_max", "where", "masked_fill", "rsub", "to", "_to_copy", "type_as", "addcmul",
    "lerp", "log1p", "expm1", "sign", "softplus", "logsigmoid", "threshold", "native_dropout", "lift_fresh_copy",
)  # fmt: skip
_CHANNELWISE = (*operations._POOLING, "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "avg_pool1d",
                "max_pool1d", "adaptive_avg_pool1d")  # fmt: skip


def name_of(node: Node) -> str:
    """An operation's name without namespace and overload; "" of what is none of PyTorch's."""
    parts = str(node.target).split(".")
    return parts[1] if len(parts) == 3 and parts[0] == "aten" else parts[0] if len(parts) == 2 else ""


def rule_of(node: Node) -> Rule | None:
    """An operation's rule; None of an unknown one, whose values have to stay whole."""
    if getattr(node.target, "__name__", "") == "getitem":
        return _item
    name = name_of(node)
    if name in MOVES:
        return _moved
    if name in _POINTWISE:
        return _pointwise
    if name in _CHANNELWISE:
        return _channelwise
    return _RULES.get(name)


def _item(known: Following, node: Node, given: Any, value: Any) -> Any:
    (sequence, place), _ = given
    return sequence[place]


def _moved(known: Following, node: Node, given: Any, value: Any) -> Any:
    target: Any = node.target
    labels, varies = (
        target(*on_values(given[0], pick), **on_values(given[1], pick)) for pick in (known.of, lambda each: each.varies)
    )
    if isinstance(value, Tensor):
        return Followed(labels, varies, value)
    return [Followed(*each) for each in zip(labels, varies, value, strict=True)]


def _pointwise(known: Following, node: Node, given: Any, value: Any) -> Any:
    read = [each for each in followed_in(given) if each.value.numel() != 1]
    labels = None
    for each in sorted(read, key=lambda each: -each.value.numel()):
        own = known.of(each).expand(value.shape)
        labels = own if labels is None else _meeting(known, labels, own, each.value.shape)
    if labels is None:
        labels = torch.full(value.shape, NEUTRAL)
    if name_of(node).startswith(("add", "sub")):
        here = [known.of(each) for each in read if not each.leaf]
        if len(here) == 2 and all(bool((each > FIXED).any()) for each in here):
            known.added.append(labels)
    varies = torch.stack([each.varies.expand(value.shape) for each in followed_in(given)]).any(0)
    if name_of(node).startswith("mul"):
        for each in followed_in(given):  # nothing comes of a zero
            varies = varies & (each.varies | (each.value != 0)).expand(value.shape)
    return Followed(labels, varies, value)


def _meeting(known: Following, before: Tensor, labels: Tensor, size: torch.Size) -> Tensor:
    """Unite the labels of two operands, the other one of which had this size before it was broadcast."""
    classes = known.classes
    first = before.ndim - len(size)
    stretched = [axis for axis in range(before.ndim) if axis < first or size[axis - first] < before.shape[axis]]
    if any(classes.differ(before, axis) for axis in stretched):  # the same number for several units
        classes.fix(labels)
        labels = torch.full(labels.shape, NEUTRAL)
    for one, other in ((before, labels), (labels, before)):
        if bool((one == NEUTRAL).all()):
            axes = (axis for axis in range(one.ndim) if axis not in stretched and one.shape[axis] > 1)
            known.whole += [Whole(other, axis) for axis in axes]
    classes.unite(before, labels)
    return torch.where(before == NEUTRAL, labels, before)


def _per_channel(known: Following, seen: Followed) -> Tensor:
    """Labels of channels, after those of all positions of a channel were united."""
    flat = _by_channel(solid(known.of(seen)))
    known.classes.unite(flat, flat[:, :1])
    return flat[:, 0]


def _by_channel(value: Tensor) -> Tensor:
    """Its first example, (channels, positions); features of no positions have one."""
    return value[0].reshape(value.shape[1], -1)


def _along(labels: Tensor, value: Tensor, axis: int) -> Tensor:
    """Labels of units along an axis as those of a value's elements."""
    return labels.view(-1, *(1,) * (value.ndim - 1 - axis)).expand(value.shape).clone()


def _layer(known: Following, node: Node, given: Any, value: Any) -> Any:
    """A linear layer or convolution; products with an (inputs, outputs) weight, as Conv1D of transformers computes."""
    args, name = given[0], name_of(node)
    turned = name in ("addmm", "mm", "matmul")
    x, weight, bias = (args[1], args[2], args[0]) if name == "addmm" else (args[0], args[1], argument(args, 2, None))
    linear = turned or name == "linear"
    if not isinstance(weight, Followed) or not weight.leaf or weight.value.ndim != (2 if linear else x.value.ndim):
        return unknown(known, given, value)
    if bias is not None and bias.value.ndim > 1:
        return unknown(known, given, value)
    rows, columns = known.weight_axes(weight)
    connected, groups = known.connected(weight), 1 if linear else int(argument(args, 6, 1))
    if turned:
        rows, columns, connected = columns, rows, connected.T
    axis = value.ndim - 1 if linear else 1
    if bias is not None:
        known.classes.unite(known.of(bias), rows)
    living = (x.varies | (x.value != 0)).movedim(axis, 0).flatten(1).any(1)
    varying = x.varies.movedim(axis, 0).flatten(1).any(1)
    if groups > 1:
        # Groups go as a whole; what a weight reads is then of no account.
        inside = _per_channel(known, x).view(groups, -1)
        each = torch.cat([inside, rows.view(groups, -1)], 1)
        known.classes.unite(each, each[:, :1])
        known.classes.fix(columns)
        varies = varying.view(groups, 1, -1) & connected.view(groups, -1, connected.shape[1])
        return Followed(_along(rows, value, axis), _along(varies.any(2).flatten(), value, axis), value)
    known.classes.unite(solid(known.of(x)) if linear else _per_channel(known, x), columns)
    known.read.append(columns[living & connected.any(0)])
    return Followed(_along(rows, value, axis), _along((connected & varying).any(1), value, axis), value)


def _padded(known: Following, node: Node, given: Any, value: Any) -> Any:
    """Padding by a constant: along units with units of its own, along positions within the units."""
    target: Any = node.target
    x, amounts, *rest = given[0]
    constant = name_of(node) == "constant_pad_nd" or argument(rest, 0, "constant") == "constant"
    if not constant or min(amounts) < 0:
        return unknown(known, given, value)
    labels = known.of(x)
    for place in range(len(amounts) // 2):
        axis = labels.ndim - 1 - place
        before, after = amounts[2 * place : 2 * place + 2]
        own = known.classes.differ(labels, axis)
        ends = []
        for count in (before, after):
            size = [count if each == axis else part for each, part in enumerate(labels.shape)]
            fresh = known.classes.fresh(count).view(-1, *(1,) * (labels.ndim - 1 - axis))
            ends.append((fresh if own else labels.narrow(axis, 0, 1)).expand(size))
        labels = torch.cat([ends[0], labels, ends[1]], axis)
    varies = target(x.varies.double(), amounts) > 0
    return Followed(labels, varies, value)


def _embedding(known: Following, node: Node, given: Any, value: Any) -> Any:
    weight, places = given[0][:2]
    if not weight.leaf:
        return unknown(known, given, value)
    rows, columns = known.weight_axes(weight)
    known.classes.fix(rows)
    varies = known.connected(weight).any(0) & bool(places.varies.any())
    return Followed(_along(columns, value, value.ndim - 1), _along(varies, value, value.ndim - 1), value)


def _scale(known: Following, leaves: list[Followed | None], channels: Tensor, varies: Tensor) -> Tensor:
    """Unite a normalisation's parameters with its channels. Returns which channels vary after it."""
    for leaf in leaves:
        if leaf is not None:
            known.classes.unite(known.of(leaf), channels)
    return varies if leaves[0] is None else varies & (leaves[0].value != 0)


def _batch_norm(known: Following, node: Node, given: Any, value: Any) -> Any:
    x, channels = given[0][0], _per_channel(known, given[0][0])
    varies = _scale(known, list(given[0][1:5]), channels, _by_channel(x.varies).any(1))
    return Followed(_along(channels, value, 1), _along(varies, value, 1), value)


def _group_norm(known: Following, node: Node, given: Any, value: Any) -> Any:
    x, groups = given[0][:2]
    channels = _per_channel(known, x)
    each = channels.view(groups, -1)
    known.classes.unite(each, each[:, :1])
    within = _by_channel(x.varies).any(1).view(groups, -1).any(1, keepdim=True).expand(each.shape).flatten()
    varies = _scale(known, [argument(given[0], 2, None), argument(given[0], 3, None)], channels, within)
    return Followed(_along(channels, value, 1), _along(varies, value, 1), value)


def _layer_norm(known: Following, node: Node, given: Any, value: Any) -> Any:
    x, size = given[0][:2]
    if len(size) != 1:
        return unknown(known, given, value)
    labels = solid(known.of(x))
    flat = labels.flatten(0, -2)
    known.classes.unite(flat, flat[:1])
    known.read.append(flat[x.varies.flatten(0, -2)])  # its mean and variance depend on them
    leaves = [argument(given[0], 2, None), argument(given[0], 3, None) if name_of(node) == "layer_norm" else None]
    varies = _scale(known, leaves, flat[0], torch.tensor(True).expand(flat.shape[1:]))
    last = value.ndim - 1
    return Followed(_along(flat[0], value, last), _along(varies & bool(x.varies.any()), value, last), value)


def _softmax(known: Following, node: Node, given: Any, value: Any) -> Any:
    x, axis = given[0][0], given[0][1]
    if known.classes.differ(known.of(x), axis):
        return unknown(known, given, value)
    return Followed(known.of(x), x.varies.any(axis, keepdim=True).expand(value.shape), value)


def _reduced(known: Following, node: Node, given: Any, value: Any) -> Any:
    """A mean or sum: over positions of a unit it belongs to the unit, over units to none."""
    args = given[0]
    x, axes, keep = args[0], argument(args, 1, None), bool(argument(args, 2, False))
    labels = known.of(x)
    axes = [axis % labels.ndim for axis in (axes or range(labels.ndim))]
    varies = x.varies.sum(axes, keepdim=keep) > 0
    if not any(known.classes.differ(labels, axis) for axis in axes):
        return Followed(labels.amax(axes, keepdim=keep), varies, value)
    known.read.append(labels[x.varies])
    return Followed(torch.full(value.shape, NEUTRAL), varies, value)


def _channelwise(known: Following, node: Node, given: Any, value: Any) -> Any:
    x = given[0][0]
    if value.ndim != (3 if name_of(node).endswith("1d") else 4):
        return unknown(known, given, value)
    varies = _by_channel(x.varies).any(1)
    return Followed(_along(_per_channel(known, x), value, 1), _along(varies, value, 1), value)


def _matmul(known: Following, node: Node, given: Any, value: Any) -> Any:
    left, right = given[0][:2]
    if right.leaf and right.value.ndim == 2 and left.value.ndim > 1:
        return _layer(known, node, given, value)
    labels = None if left.leaf or right.leaf else heads_of(known, [left, right], value)
    if labels is None:
        return unknown(known, given, value)
    nothing = ~(right.varies | (right.value != 0)).any(-2, keepdim=True)
    return Followed(labels, (~nothing).expand(value.shape), value)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("linear", "addmm", "mm", "conv1d", "conv2d"), _layer), "embedding": _embedding,
    "batch_norm": _batch_norm, "group_norm": _group_norm, "layer_norm": _layer_norm, "rms_norm": _layer_norm,
    "softmax": _softmax, "_softmax": _softmax, "mean": _reduced, "sum": _reduced,
    "scaled_dot_product_attention": attention,
    "matmul": _matmul, "bmm": _matmul, "pad": _padded, "constant_pad_nd": _padded,
}  # fmt: skip
