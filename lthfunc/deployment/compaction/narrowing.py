"""Dimensions removed from a graph, as a whole: heads, dimensions of residual streams, hidden units of transformers.

A class of labels (`following.py`) is dead where no surviving weight reads what it varies, and no normalisation depends
on it. Its rows, columns and elements are cut from every parameter, and operations that name sizes get the new ones.
Normalisations over features go on to count those that were removed, with the constant values that they had.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lthfunc.deployment.compaction.classes import FIXED
from lthfunc.deployment.compaction.following import Following, follow, kept_along
from lthfunc.deployment.compaction.following_rules import name_of, rule_of
from lthfunc.deployment.compaction.liveness import args_of
from lthfunc.deployment.compaction.modules import set_outputs
from lthfunc.deployment.compaction.narrowed_operations import WRITERS, Narrowing, refuses
from lthfunc.deployment.compaction.rewriting import Cut
from lthfunc.deployment.compaction.tracing import Traced
from lthfunc.trees.types import Buffers, Masks, Params

_FOLLOWED = ("embedding", "layer_norm", "rms_norm", "group_norm")


class Narrowed(NamedTuple):
    """A smaller graph. cuts: of parameters and buffers. changed: none. constants: its own buffers."""

    graph: Graph
    cuts: dict[str, Cut]
    changed: Params
    constants: Buffers


def narrowed(traced: Traced, params: Params, buffers: Buffers, masks: Masks, shape: tuple[int, ...]) -> Narrowed | None:
    """The graph without what is dead as a whole; None where nothing is, or where channels alone have to be removed."""
    if not any(_has_features(node) for node in traced.captured.graph.nodes) or not any(
        map(loses_units, masks.values())
    ):
        return None
    known = follow(traced, params, buffers, masks, shape, rule_of)
    dead, keeps = _dead(known)
    return _written(known, dead, keeps) if len(dead) else None


def _has_features(node: Node) -> bool:
    """Whether an operation has units along its last dimension, behind positions."""
    name = name_of(node)
    return name in _FOLLOWED or (name == "linear" and node.meta["val"].ndim > 2)


def loses_units(mask: Tensor) -> bool:
    """Whether a whole row or column is gone."""
    there = mask.reshape(*mask.shape[:2], -1).any(2) if mask.ndim > 1 else mask[:, None]
    return not bool(there.any(0).all() and there.any(1).all())


def _dead(known: Following) -> tuple[Tensor, dict[Node, list[Tensor]]]:
    """(the dead classes that can be removed, for each value that loses any what it keeps along its axes)."""
    labels = [*(rows_or_columns for each in known.axes.values() for rows_or_columns in each), *known.elements.values()]
    found = known.classes.roots(torch.cat([each.flatten() for each in labels])).unique()
    read = known.classes.roots(torch.cat([each.flatten() for each in known.read])) if known.read else found[:0]
    dead = found[(found > FIXED) & ~torch.isin(found, read)]
    while True:
        keeps, kept = _keeps(known, dead)
        if torch.equal(kept, dead):
            return dead, keeps
        dead = kept


def _keeps(known: Following, dead: Tensor) -> tuple[dict[Node, list[Tensor]], Tensor]:
    """(what each value keeps, the dead classes without those of the first value that cannot be made smaller)."""
    keeps = dict[Node, list[Tensor]]()
    for node, labels in known.labels.items():
        alive = ~torch.isin(labels, dead)
        if bool(alive.all()):
            continue
        found = kept_along(alive)
        if found is None or not all(map(len, found)):
            return keeps, dead[~torch.isin(dead, labels)]
        keeps[node] = found
    for node in known.labels:
        if refuses(known, node, keeps):
            read = [each for each in (node, *node.all_input_nodes) if each in keeps]
            return keeps, dead[~torch.isin(dead, torch.cat([known.labels[each].flatten() for each in read]))]
    return keeps, dead


def _written(known: Following, dead: Tensor, keeps: dict[Node, list[Tensor]]) -> Narrowed:
    captured = known.traced.captured
    w = Narrowing(known, keeps, Graph())
    placeholders = captured.placeholders
    leaves = dict(zip(placeholders, (*captured.params, *captured.buffers), strict=False))
    cuts = {name: _cut(known, name, dead) for name in leaves.values()}
    for node in captured.graph.nodes:
        if node in leaves:
            w.made[node] = w.attribute(leaves[node])
        elif node.op == "placeholder":
            w.made[node] = w.x = w.graph.placeholder("x")
        elif node.op == "get_attr":
            value = captured.constants[str(node.target)]
            for axis, index in enumerate(_cut(known, str(node.target), dead)):
                value = value if index is None else value.index_select(axis, index)
            w.made[node] = w.constant(value)
        elif node.op == "output":
            set_outputs(w.graph, captured.outputs, [w.made[each] for each in args_of(node)[0]])
        else:
            write: Any = WRITERS.get(name_of(node))
            w.made[node] = (write(w, node) if write and w.touches(node) else None) or w.copied(node)
    return Narrowed(w.graph, cuts, {}, w.constants)


def _cut(known: Following, name: str, dead: Tensor) -> Cut:
    """The indices that remain of a leaf along each dimension; None: all."""
    ndim = known.leaves[name].ndim
    if name in known.axes:
        found: list[Tensor | None] = [
            (~torch.isin(known.classes.roots(labels), dead)).nonzero().flatten() for labels in known.axes[name]
        ]
        found += [None] * (ndim - 2)
    elif name in known.elements:
        found = list(kept_along(~torch.isin(known.classes.roots(known.elements[name]), dead)) or [])
    else:
        return (None,) * ndim
    sizes = known.leaves[name].shape
    return tuple(None if each is None or len(each) == size else each for each, size in zip(found, sizes, strict=True))
