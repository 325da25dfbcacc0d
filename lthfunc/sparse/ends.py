"""What a network gives at its end: compared with targets by the machine's loss, or handed out to another."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lthfunc.errors import UserError
from lthfunc.sparse.axes import size_of
from lthfunc.sparse.boundaries import apart, can_be_handed_out, load_gradient, store
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.capture import Captured
from lthfunc.sparse.fusion import fuse
from lthfunc.sparse.interpretation import results_of
from lthfunc.sparse.kernels.instructions import WHOLE
from lthfunc.sparse.lowerings.placing import covers, filled, first_of, sum_of_steps
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.trees.outputs import own_loss, prediction

#: What a network gives, of its only tensor.
ONE = operator.itemgetter(0)


class Ends(NamedTuple):
    """compared: the view that the machine's loss compares with the targets; None where it computes no loss.

    views: of all that the network gives, each once; handed out in this order where there is no loss. rebuilt: what the
    network gives, from as many tensors.
    """

    compared: View | None
    views: list[View]
    rebuilt: Callable[[Sequence[Any]], Any]


def ends_of(b: Builder, graph: Captured, found: list[Any], *, loss: bool) -> Ends:
    """The ends of a network, whose operations are fused now.

    found: the values that its graph gives. loss: whether the machine computes cross entropy. Raises UserError for
    anything but numbers of each example, and where a loss takes other outputs.
    """
    views = [view for view in found if isinstance(view, View) and can_be_handed_out(view)]
    compared = _compared(graph) if loss else 0
    if not found or len(views) < len(found) or compared is None:
        raise UserError(
            f"engine: sparse takes networks that give numbers of each example (batch, ...); {graph.name} gives others"
        )
    shapes = [view.shape for view in views]
    if loss and len(shapes[compared]) not in (1, 2):
        raise UserError(
            f"engine: sparse computes cross entropy of outputs (batch, classes); those of {graph.name} are others, "
            "which only a loss of them takes"
        )
    if len(views) > 1 and not loss:
        views = apart(b, views)
    values = fuse(b.operations, [view.value for view in views])
    b.outputs.update(values)
    views = [view.of(value) for view, value in zip(views, values, strict=True)]
    each = list(dict.fromkeys(views))

    def rebuilt(tensors: Sequence[Any]) -> Any:
        given = zip([tensors[each.index(view)] for view in views], shapes, strict=True)
        return graph.outputs.rebuilt([tensor.reshape(len(tensor), *shape) for tensor, shape in given])

    return Ends(views[compared] if loss else None, each, ONE if graph.outputs.single else rebuilt)


def _compared(graph: Captured) -> int | None:
    """Which of the values that a network gives a loss compares with the targets; None where it is a loss itself."""
    tensors = [node.meta["val"] for node in results_of(graph)]
    given = graph.outputs.rebuilt(tensors)
    if own_loss(given) is not None:
        return None
    chosen = prediction(given)
    return next(number for number, each in enumerate(tensors) if each is chosen)


def add_ends(b: Builder, ends: Ends, *, gradients: bool) -> int:
    """Add the loss, or what hands values out, and the first part of each one's gradient. Returns how many instructions
    there are up to the outputs."""
    values = list(dict.fromkeys(view.value for view in ends.views))
    for value in values:
        b.read(value)
    if ends.compared is not None:
        forward = len(b.instructions)
        _add_loss(b, ends.compared, gradients=gradients)
        for value in values:
            if gradients and value.needs and value is not ends.compared.value:
                filled(b, b.target(value))
        return forward
    firsts = list(itertools.accumulate((math.prod(view.shape) for view in ends.views), initial=0))
    handed = list(zip(ends.views, firsts, strict=False))
    for view, first in handed:
        store(b, view, view.value, first)
    forward = len(b.instructions)
    for view, first in handed:
        if gradients and view.value.needs:
            load_gradient(b, view, view.value, first)
    return forward


def _add_loss(b: Builder, output: View, *, gradients: bool) -> None:
    value, (*places, classes) = output.value, output.arrangement.dimensions[1:]
    target = b.target(value) if gradients else None
    if target is not None and not covers(output):
        target = filled(b, target)
    grad = None if target is None else target.buffer

    def addresses(buffer: TileBuffer) -> int:
        first = first_of(output.arrangement, buffer) - buffer.first
        each = [axis for dimension in places for axis in dimension]
        return b.table(torch.cat([first + sum_of_steps(classes, buffer), sum_of_steps(each, buffer)]))

    def late() -> Any:
        listed = addresses(value.buffer)
        return "cross_entropy", WHOLE, 1, {
            "in": value.buffer.first, "in_tile": value.buffer.tile, "addresses": listed, "classes": size_of(classes),
            "places": math.prod(map(size_of, places)), "grad": -1 if grad is None else grad.first,
            "grad_tile": 0 if grad is None else grad.tile,
            "gradients": listed if grad is None else addresses(grad),
        }  # fmt: skip

    b.emit(late)
    if target is not None and target.gate is not None:
        b.rectify(target, target.gate)
