"""Dependency groups of a network, found by following the data through its graph."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.deployment.compaction.classes import FIXED, differ
from lthfunc.deployment.compaction.following import Following, follow
from lthfunc.deployment.compaction.following_rules import rule_of
from lthfunc.deployment.compaction.tracing import CannotCompactError, traced
from lthfunc.errors import UserError, failing_as
from lthfunc.sparsify.groups import HEADS, RESIDUAL, UNITS, DependencyGroup, GroupPart
from lthfunc.tracebacks import first_line
from lthfunc.trees.model import Model


@public
def dependency_groups(model: Model, shape: tuple[int, ...]) -> tuple[DependencyGroup, ...]:
    """Find what of a network's parameters can only be removed together (Fang et al. 2023).

    The network is traced, and each output of a layer followed to whatever reads it: through additions, concatenations,
    slices and views, normalisation, gates, and attention, with one group for each head, or for each key of grouped
    queries. What meets in an operation goes together. Embeddings lose dimensions, never words; classes and inputs stay,
    and so does whatever reaches an operation that is not known here.

    shape: of one input of the model. Returns the groups, in the order of the parameters. Raises UserError where the
    network cannot be traced.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> first = lf.dependency_groups(model, (4,))[0]
    >>> first.kind, [(name, axis, indices.tolist()) for name, axis, indices in first.parts]
    ('units', [('0.weight', 0, [0]), ('0.bias', 0, [0]), ('2.weight', 1, [0])])
    """
    refused = f"dependency_groups: {model.name} cannot be followed"
    try:
        with failing_as(lambda error: f"{refused}: {first_line(error)}"):
            params, buffers = model.init(0)
            masks = {name: torch.ones_like(params[name], dtype=torch.bool) for name in model.prunable}
            graph = traced(model, params, shape, training=False)
            return groups_of(follow(graph, params, buffers, masks, shape, rule_of))
    except CannotCompactError as error:
        raise UserError(f"{refused}{error.why}") from error


def groups_of(known: Following) -> tuple[DependencyGroup, ...]:
    """The groups of a network that was followed."""
    parts: dict[int, list[GroupPart]] = {}
    for name in known.leaves:
        for axis, labels in _axes(known, name):
            for root, indices in _places(known.classes.roots(labels)):
                parts.setdefault(root, []).append(GroupPart(name, axis, indices))
    heads, added = _roots(known, known.heads), _roots(known, known.added)
    widths: dict[tuple[str, int], int] = {}
    found = []
    for root, own in parts.items():
        if not any(part.name in known.masks for part in own):
            continue
        kind = HEADS if root in heads else RESIDUAL if root in added else UNITS
        width = widths.setdefault((own[0].name, own[0].axis), len(widths))
        found.append(DependencyGroup(kind, width, tuple(own)))
    return tuple(found)


def _axes(known: Following, name: str) -> list[tuple[int, Tensor]]:
    """(axis, labels along it) of a leaf, as far as anything of it can be removed."""
    if name in known.axes:
        return list(enumerate(known.axes[name]))
    if name not in known.elements:
        return []
    labels = known.classes.roots(known.elements[name])
    axes = [axis for axis in range(labels.ndim) if differ(labels, axis)]
    return (
        [(axis, labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0]) for axis in axes]
        if len(axes) == 1
        else []
    )


def _places(roots: Tensor) -> Iterable[tuple[int, Tensor]]:
    order = roots.argsort(stable=True)
    found, counts = torch.unique_consecutive(roots[order], return_counts=True)
    for root, indices in zip(found.tolist(), order.split(counts.tolist()), strict=True):
        if root > FIXED:
            yield root, indices


def _roots(known: Following, labels: list[Tensor]) -> set[int]:
    return set(known.classes.roots(torch.cat([each.flatten() for each in labels])).tolist()) if labels else set()
