"""Scaled dot-product attention, whose operands are read where the layers before it wrote them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged, only
from lthfunc.sparse.builder import Builder, GradientTarget, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.interface import Unsupported, argument, aten, drawn, lowers
from lthfunc.sparse.lowerings.masked_attention import is_causal, masked_attention
from lthfunc.sparse.lowerings.parameters import as_view, folded
from lthfunc.sparse.lowerings.placing import filled, first_of, placed, stride, sum_of_steps
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view


@lowers(aten.scaled_dot_product_attention.default, arranged=True)
def scaled_dot_product_attention(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """scaled_dot_product_attention(q, k, v), all, causal or masked, with shared keys and values or not."""
    dropped = float(argument(args, 4, kwargs.get("dropout_p", 0.0)))
    causal = bool(argument(args, 5, kwargs.get("is_causal", False)))
    scale = kwargs.get("scale", argument(args, 6, None))
    views = [as_view(b, each) for each in args[:3]]
    mask = folded(b, argument(args, 3, kwargs.get("attn_mask")))
    if mask is not None:
        causal = is_causal(mask, views[0].arrangement.sizes[-2], views[1].arrangement.sizes[-2])
        if not causal:
            return masked_attention(b, views, mask, dropped, scale)
    views = [operand(b, view) for view in views]
    (*_, queries, features), (*_, keys, _), (*_, value_features) = (view.arrangement.sizes for view in views)
    heads, shared = heads_of(views)
    draws = dropping(b, dropped)
    sizes = {
        "queries": queries, "keys": keys, "features": features, "value_features": value_features,
        "group": heads // shared, "causal": int(causal),
    }  # fmt: skip
    out = Value(TileBuffer(heads * value_features, 1, queries), needs=any(view.value.needs for view in views))
    result = Arrangement((
        views[0].arrangement.dimensions[0], merged([Axis(Side.CHANNEL, heads, value_features)]),
        merged([Axis(Side.COLUMN, queries)]), merged([Axis(Side.CHANNEL, value_features)]),
    ))  # fmt: skip
    values = list(dict.fromkeys(view.value for view in views))

    def emit(operation: Operation) -> None:
        read = dict(zip(values, operation.inputs, strict=True))
        inputs = [read[view.value] for view in views]
        b.hold(out.buffer)
        saved = b.allocate(2 * heads * queries)
        number = b.numbers([1 / math.sqrt(features) if scale is None else float(scale), 1 / (1 - dropped)])

        def shared_columns() -> dict[str, int]:
            return {
                **_columns("q", inputs[0].buffer, views[0].arrangement),
                **_columns("k", inputs[1].buffer, views[1].arrangement),
                **_columns("v", inputs[2].buffer, views[2].arrangement), **_columns("out", out.buffer, result),
                **sizes, **draws, "scale": number, "keep_scale": number + 1,
                "saved": saved.first, "saved_tile": saved.tile,
            }  # fmt: skip

        b.emit(lambda: ("attention", BY_TILES, heads, shared_columns()))

        def gradient() -> None:
            write_gradients(b, out, result, inputs, [view.arrangement for view in views], lambda gradients: (
                "attention_gradient", BY_TILES, heads, {**shared_columns(), **gradients},
            ))  # fmt: skip

        if out.needs:
            b.backward.append(gradient)

    b.operations.append(Operation(values, out, emit))
    found = arranged_view(out, result)
    return found if len(args[0].arrangement.sizes) == 4 else _without_heads(found)


def _without_heads(view: View) -> View:
    return arranged_view(view.value, view.arrangement.without(1))


def dropping(b: Builder, dropped: float) -> dict[str, int]:
    """Columns of attention that drops this share of its weights, or nothing."""
    return drawn(b, dropped) if dropped else {"threshold": 0, "number": 0}


def heads_of(views: list[View]) -> tuple[int, int]:
    """How many heads queries have, and how many keys and values, of these three operands."""
    heads, shared, others = (only(view.arrangement.dimensions[1]).size for view in views)
    if shared != others or heads % shared:
        raise Unsupported("of heads that don't share keys and values evenly")
    return heads, shared


def write_gradients(
    b: Builder, out: Value, result: Arrangement, inputs: list[Value], parts: list[Arrangement],
    instruction: Callable[[dict[str, int]], Any],
) -> None:  # fmt: skip
    """Emit the gradients of attention's operands. result, parts: how its result and q, k and v lie in their values.

    instruction: the columns of the result's gradient and the operands' -> what computes them, asked for late.
    """
    grad = b.gradient_of(out)
    targets = dict(zip("qkv", _gradient_targets(b, inputs, parts), strict=True))
    b.emit(lambda: instruction({
        "grad": first_of(result, grad),
        **{f"into_{name}": first_of(part, targets[name].buffer) for name, part in zip("qkv", parts, strict=True)},
        **{f"accumulate_{name}": int(target.accumulate) for name, target in targets.items()},
    }))  # fmt: skip
    for target in dict.fromkeys(targets.values()):
        if target.gate is not None:
            b.rectify(target, target.gate)
    b.release(out)


def _gradient_targets(b: Builder, inputs: list[Value], parts: list[Arrangement]) -> list[GradientTarget]:
    """Where the gradients of the operands go. Parts that are all of a value leave nothing to be filled with zeros."""
    found: dict[Value, GradientTarget] = {}
    for value in dict.fromkeys(inputs):
        # Where no gradient is wanted, the instruction still writes one, to memory that nobody reads.
        target = b.target(value) if value.needs else GradientTarget(b.allocate(*value.buffer.layout), False, None)
        mine = [part for each, part in zip(inputs, parts, strict=True) if each is value]
        apart = len(places := _places(value.buffer, mine)) == len(places.unique()) == value.buffer.features
        found[value] = target if apart else filled(b, target)
    return [found[value] for value in inputs]


def _places(buffer: TileBuffer, parts: list[Arrangement]) -> Tensor:
    return torch.cat([first_of(part, buffer) + sum_of_steps(part.axes, buffer) for part in parts])


def operand(b: Builder, view: View) -> View:
    """(batch, heads, places, features) of one axis each, copied where it is not."""
    arrangement = view.arrangement
    if len(arrangement.sizes) == 3:
        arrangement = arrangement.with_one(1)
    if len(arrangement.sizes) != 4:
        raise Unsupported("of other dimensions than (batch, heads, places, features)")
    found = arranged_view(view.value, arrangement)
    batch, *others = found.arrangement.dimensions
    if [axis.side for axis in batch] != [Side.EXAMPLE]:
        raise Unsupported("of other dimensions than (batch, heads, places, features)")
    if any(len(each) > 1 or any(axis.side is Side.REPEATED for axis in each) for each in others):
        return placed(b, found, [Side.EXAMPLE, Side.CHANNEL, Side.COLUMN, Side.CHANNEL])
    return found


def _columns(name: str, buffer: TileBuffer, arrangement: Arrangement) -> dict[str, int]:
    return {name: first_of(arrangement, buffer), f"{name}_tile": buffer.tile} | {
        f"{name}_{step}": stride(only(arrangement.dimensions[number]), buffer)
        for number, step in ((1, "head"), (2, "place"), (3, "feature"))
    }
