"""When the sparse engine is faster than the dense one: a rule of shapes and densities, never of a timing.

It weighs what both would compute, in multiply-adds of the dense engine, with factors measured on one core
(benchmarks/sparse.py): a surviving weight costs 1.35 times what a dense one does where the dense kernels are at their
best, and what is not a product (normalisation, activations, pooling) costs a convolutional network another fifth.
Linear layers are no slower at any density. Dense kernels waste convolutions of few channels, up to threefold.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from lthfunc.errors import UserError
from lthfunc.sparse.capture import Captured, captured
from lthfunc.sparse.program import Ending, program_of
from lthfunc.training.engines.interface import Work
from lthfunc.trees.types import Masks, Params

_SURVIVOR, _REST, _FULL_LINEAR, _FULL_CHANNELS, _MOST_WASTE = 1.35, 0.2, 0.95, 16, 3.0
#: The sparse engine must be faster by this much, since the rule is not exact.
_MARGIN = 0.97


def is_faster(places: dict[str, int], params: Params, masks: Masks) -> bool:
    """Whether a network under these masks should run on the sparse engine.

    places: for each weight, how many output places of a channel it adds to (1 in a linear layer).
    """
    dense = sparse = 0.0
    for name, count in places.items():
        leaf = params[name]
        work = float(leaf.numel() * count)
        kept = float(masks[name].float().mean()) if name in masks else 1.0
        waste = 1.0
        if leaf.ndim == 4:
            waste = min(_MOST_WASTE, max(1.0, _FULL_CHANNELS / leaf.shape[1]))
            sparse += (_SURVIVOR * kept + _REST) * work
        else:
            sparse += min(_SURVIVOR * kept, _FULL_LINEAR) * work
        dense += waste * work
    return sparse < _MARGIN * dense


def is_always_faster(work: Work, shape: tuple[int, ...]) -> bool:
    """Whether even the dense network should run on the sparse engine."""
    params, buffers = work.model.init(0)
    places = places_of(captured(work.model.training, params, buffers, shape, work.model.name))
    return is_faster(places, params, {})


def places_of(graph: Captured) -> dict[str, int]:
    """For each weight of a convolution or linear layer, how many output places of a channel it adds to."""
    names: dict[Node, str] = {}
    places: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            names[node] = graph.params[len(names)] if len(names) < len(graph.params) else ""
        elif node.op == "call_function" and str(node.target).startswith(("aten.conv2d", "aten.linear")):
            shape = node.meta["val"].shape if "val" in node.meta else node.meta["tensor_meta"].shape
            places[names[node.args[1]]] = int(torch.Size(shape[2:]).numel())
    return places


def why_not_sparse(work: Work, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """Why this network cannot run on the sparse engine, in one line; None where it can. Nothing is computed."""
    params, buffers = work.model.init(0)
    nothing = {name: torch.zeros_like(leaf, dtype=torch.bool) for name, leaf in params.items() if leaf.ndim > 1}
    try:
        for training in (True, False):
            module = work.model.training if training else work.model.evaluating
            graph = captured(module, params, buffers, shape, work.model.name)
            program_of(
                graph, params, buffers, nothing, batch=1, stored=(shape, dtype), scale=work.scale,
                ending=Ending(gradients=training), name=work.model.name,
            )  # fmt: skip
    except UserError as error:
        return str(error)
    return None
