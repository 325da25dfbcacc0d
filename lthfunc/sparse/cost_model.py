"""When the sparse engine is faster than the dense one: a rule of shapes and densities, never of a timing.

It weighs what both would compute, in multiply-adds of the dense engine, with factors measured on one core
(benchmarks/sparse.py): a surviving weight costs 1.35 times what a dense one does where the dense kernels are at their
best, and what is not a product (normalisation, activations, pooling) costs a convolutional network another fifth.
Linear layers are no slower at any density, but for wide ones on AMD's Zen 5 (docs/explanation/sparse-engine.md).
Dense kernels waste convolutions of few channels, up to threefold. Where the sparse engine computes convolutions of
most of their weights densely (on Zen 5), it is faster for them as well, but for those of so many channels that dense
kernels are at their best.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.fx import Node

from lthfunc.errors import UserError
from lthfunc.hardware import has_wide_amd_cores
from lthfunc.sparse.capture import TRACED_BATCH, captured
from lthfunc.sparse.interpretation import leaves_of
from lthfunc.sparse.kernels.build import have_avx512
from lthfunc.sparse.lowerings.dense import feeds_multipliers
from lthfunc.sparse.lowerings.interface import Param
from lthfunc.sparse.lowerings.recurrent import RECURRENT_LAYERS
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.python_losses import computes_loss
from lthfunc.training.engines.interface import Work
from lthfunc.training.loss_context import ContextLoss
from lthfunc.training.losses import Loss
from lthfunc.trees.flops import flops_of
from lthfunc.trees.model import Model
from lthfunc.trees.types import Masks, Params

_SURVIVOR, _REST, _FULL_LINEAR, _FULL_CHANNELS, _MOST_WASTE = 1.35, 0.2, 0.95, 16, 3.0
#: A surviving weight of a layer over tokens on AMD's Zen 5, whose dense kernels are faster there.
_WIDE_TOKENS = 1.62
#: A convolution computed densely, of fewer channels than these, and of as many or more.
_MANY_CHANNELS, _FULL_CONVOLUTION, _BEST_CONVOLUTION = 256, 0.95, 1.15
#: The sparse engine must be faster by this much, since the rule is not exact.
_MARGIN = 0.97


class _LayerCost(NamedTuple):
    """name: of the weight. work: multiply-adds of an example. waste: how often dense kernels take that. most: what the
    sparse engine takes at most for it, times that work. taken: whether it takes the layer at all: one whose weights
    are computed it does not. survivor: what a surviving weight costs."""

    name: str
    work: float
    waste: float
    linear: bool
    most: float
    taken: bool = True
    survivor: float = _SURVIVOR


def is_faster(model: Model, shape: tuple[int, ...], masks: Masks, beside: float = 0.0) -> bool:
    """Whether a network on inputs of `shape` should run on the sparse engine, under these masks (none: dense).

    beside: what either engine computes besides (`cost_of_teachers`).
    """
    sparse, dense = _times(model, shape, {name: float(mask.float().mean()) for name, mask in masks.items()})
    return sparse + beside < _MARGIN * (dense + beside)


def relative_time(
    engine: str, model: Model, shape: tuple[int, ...], kept: Mapping[str, float], beside: float = 0.0
) -> float:
    """The time of a step of an engine, where layers keep these shares of their weights, over that without pruning.

    beside: as of `is_faster`.
    """
    if engine.partition("/")[0] != "sparse":
        return 1.0

    def time(kept: Mapping[str, float]) -> float:
        sparse, dense = (each + beside for each in _times(model, shape, kept))
        return sparse if engine == "sparse" or sparse < _MARGIN * dense else dense

    whole = time({})
    return time(kept) / whole if 0 < whole < math.inf else 1.0


def cost_of_teachers(loss: Loss, shape: tuple[int, ...]) -> float:
    """What a loss's teachers compute in a step, in the rule's multiply-adds of an example: a forward pass of three."""
    if not isinstance(loss, ContextLoss):
        return 0.0
    return sum(flops_of(each.model.evaluating, shape) for each in loss.teachers if each.params) / 2 / 3


def _times(model: Model, shape: tuple[int, ...], kept: Mapping[str, float]) -> tuple[float, float]:
    """(of the sparse engine, of a dense one). kept: the share of a layer's weights that remain, by name."""
    dense = sparse = 0.0
    for layer in _layers(model, shape, has_wide_amd_cores() and have_avx512()):
        if not layer.taken:
            return math.inf, dense
        survivors = layer.survivor * kept.get(layer.name, 1.0)
        sparse += min(survivors + (0 if layer.linear else _REST), layer.most) * layer.work
        dense += layer.waste * layer.work
    return sparse, dense


@functools.lru_cache(maxsize=8)
def _layers(model: Model, shape: tuple[int, ...], wide: bool) -> tuple[_LayerCost, ...]:
    graph = captured(model, shape, training=True)
    names = {node: leaf.name for node, leaf in leaves_of(graph).items() if isinstance(leaf, Param)}
    learning = {node for node, name in names.items() if name in graph.params}
    for node in graph.graph.nodes:  # from first to last
        if any(each in learning for each in node.all_input_nodes):
            learning.add(node)

    def share_of(node: Node, weight: Node) -> float:
        """Of a product, its input's gradient and its weight's: those that a frozen weight leaves to be computed."""
        return 1.0 if weight in learning else (1 + (node.args[0] in learning)) / 3

    found = []
    for node in graph.graph.nodes:
        if any(weight not in names for weight in _weights_of(node)):
            found.append(_LayerCost("", 0.0, 1.0, linear=False, most=math.inf, taken=False))
        elif node.op == "call_function" and str(node.target).startswith("aten.conv_transpose"):
            weight = node.args[1].meta["val"].shape
            work = weight.numel() * node.args[0].meta["val"].shape[2:].numel() * share_of(node, node.args[1])
            waste = min(_MOST_WASTE, max(1.0, _FULL_CHANNELS / weight[0]))
            found.append(_LayerCost(names[node.args[1]], work, waste, False, math.inf))
        elif node.op == "call_function" and str(node.target).startswith(("aten.conv1d", "aten.conv2d", "aten.linear")):
            weight = node.args[1].meta["val"].shape
            made = node.meta["val"]
            places = made.numel() / (TRACED_BATCH * weight[0])
            linear = len(weight) == 2 and places == 1  # of tokens they are 1 × 1 convolutions
            waste = 1.0 if len(weight) == 2 else min(_MOST_WASTE, max(1.0, _FULL_CHANNELS / weight[1]))
            whole = node.args[0].meta["val"].shape[1] == weight[1]
            most = _FULL_LINEAR if linear else math.inf
            if wide and len(weight) > 2 and whole and feeds_multipliers(weight[0], weight[1:].numel()):
                most = _FULL_CONVOLUTION if weight[1] < _MANY_CHANNELS else _BEST_CONVOLUTION
            work = weight.numel() * places * share_of(node, node.args[1])
            survivor = _WIDE_TOKENS if wide and len(weight) == 2 and not linear else _SURVIVOR
            found.append(_LayerCost(names[node.args[1]], work, waste, linear, most, survivor=survivor))
        elif node.op == "call_function" and node.target in RECURRENT_LAYERS:
            sequence, _, params, *_, batch_first = node.args
            steps = sequence.meta["val"].shape[1 if batch_first else 0]
            for each in params:
                weight = each.meta["val"].shape
                if len(weight) > 1:
                    work = weight.numel() * steps * share_of(node, each)
                    found.append(_LayerCost(names[each], work, 1.0, False, math.inf))
    return tuple(found)


def _weights_of(node: Node) -> list[Node]:
    """The weights and biases of a layer; none of other operations."""
    if node.op != "call_function":
        return []
    if node.target in RECURRENT_LAYERS:
        return list(node.args[2])  # type: ignore[arg-type]
    if not str(node.target).startswith(("aten.conv", "aten.linear")):
        return []
    return [each for each in node.args[1:3] if isinstance(each, Node)]


def why_not_sparse(work: Work, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """Why this network cannot run on the sparse engine, in one line; None where it can. Nothing is computed."""
    try:
        check_optimizer(work)
        for training in (True, False):
            check_mode(work, Stored(shape, dtype, work.scale), training=training)
    except UserError as error:
        return str(error)
    return None


def check_optimizer(work: Work) -> None:
    """Raise UserError for an optimiser that must see weights that are not there."""
    if work.optimizer.mixes:
        raise UserError(
            "engine: sparse updates surviving weights alone, and this optimiser mixes all of a layer's; use compile"
        )


def check_mode(work: Work, stored: Stored, *, training: bool) -> None:
    """Raise UserError where the network cannot run on the sparse engine in one of its modes. Nothing is computed."""
    params: Params = dict(work.model.training.named_parameters())
    buffers = dict(work.model.training.named_buffers())
    masked = {*work.model.prunable, *(name for name, leaf in params.items() if leaf.ndim > 1)}
    nothing = {name: torch.zeros_like(params[name], dtype=torch.bool) for name in params if name in masked}
    graph = captured(work.model, stored.shape, training=training)
    epilogue = Epilogue("cross_entropy" if computes_loss(work) else None, gradients=training)
    program_of(graph, params, buffers, nothing, batch=1, stored=stored, epilogue=epilogue)
