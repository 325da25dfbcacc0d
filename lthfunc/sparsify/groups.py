"""Dependency groups: what of a network's parameters goes together, and their scores.

A group is an attention head with its rows and columns, a dimension of a residual stream with everything that writes or
reads it, or a neuron or channel with its readers (Fang et al. 2023). `lf.dependency_groups` finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.scores import Scores
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Masks, Params, TrainState

#: The kinds of group: attention's heads (with grouped queries, all heads that share a key); dimensions of a residual
#: stream; neurons and channels.
HEADS, RESIDUAL, UNITS = "heads", "residual", "units"
KINDS = (HEADS, RESIDUAL, UNITS)
#: How the scores of a group's weights become one.
REDUCTIONS = ("mean", "sum", "norm")


class GroupPart(NamedTuple):
    """Slices of one parameter or buffer. name: of the leaf. indices: int64, along one axis of it."""

    name: str
    axis: int
    indices: Tensor


class DependencyGroup(NamedTuple):
    """What can only be removed together.

    kind: one of `KINDS`. width: the number of the set of groups that begin in the same layer, such as the heads of one
    attention. parts: slices of parameters and buffers, each leaf's axis once.
    """

    kind: str
    width: int
    parts: tuple[GroupPart, ...]


@public
def group_scores(
    scores: Scores, masks: Masks, groups: Sequence[DependencyGroup], *, reduce: str = "mean", normalize: bool = True
) -> Tensor:
    """Score each group by the scores of the weights that remain in it.

    scores, masks: trees of prunable weights. groups: those of `lf.dependency_groups`. reduce: "mean" of the scores;
    "sum", as of |gradient · weight| (Molchanov et al. 2019); or "norm", the root of the sum of squares, which of
    magnitudes is the norm that group lasso penalises (Yuan & Lin 2006). normalize: whether scores are divided by the
    mean over the groups of the same width, so that layers of different scale can be compared.

    Returns float64 (groups,); a group without remaining weights scores 0. Raises UserError for an unknown reduction,
    and for groups of another network.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> state = lf.init(model)
    >>> groups = lf.dependency_groups(model, (4,))
    >>> lf.group_scores(lf.magnitude(state.params, state.masks), state.masks, groups).shape
    torch.Size([3])
    """
    if reduce not in REDUCTIONS:
        raise invalid("reduce", reduce, " or ".join(REDUCTIONS))
    check_groups(groups, masks)
    sums, counts = dict[tuple[str, int], Tensor](), dict[tuple[str, int], Tensor]()
    found = []
    for group in groups:
        total, count = 0.0, 0
        for name, axis, indices in group.parts:
            if name not in masks:
                continue
            if (name, axis) not in sums:
                each = scores[name].double() * masks[name]
                each = each.square() if reduce == "norm" else each
                sums[name, axis] = each.movedim(axis, 0).flatten(1).sum(1).cpu()
                counts[name, axis] = masks[name].movedim(axis, 0).flatten(1).sum(1).cpu()
            total += float(sums[name, axis][indices].sum())
            count += int(counts[name, axis][indices].sum())
        found.append(total / max(1, count) if reduce == "mean" else total**0.5 if reduce == "norm" else total)
    result = torch.tensor(found, dtype=torch.float64)
    return _normalized(result, groups) if normalize else result


def _normalized(scores: Tensor, groups: Sequence[DependencyGroup]) -> Tensor:
    widths = torch.tensor([group.width for group in groups], dtype=torch.int64)
    result = scores.clone()
    for width in widths.unique():
        own = widths == width
        result[own] /= scores[own].abs().mean().clamp(min=torch.finfo(torch.float64).tiny)
    return result


def without_groups(masks: Masks, groups: Sequence[DependencyGroup]) -> Masks:
    """Masks without the weights of these groups."""
    return {**masks, **_without(masks, groups, set(masks))}


def _without(tree: Mapping[str, Tensor], groups: Sequence[DependencyGroup], names: set[str]) -> dict[str, Tensor]:
    """The leaves of these names that groups are part of, with zeros for the groups."""
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for group in groups:
        for name, axis, indices in group.parts:
            if name in names:
                gone.setdefault((name, axis), []).append(indices)
    new = dict[str, Tensor]()
    for (name, axis), found in gone.items():
        leaf = new.get(name, tree[name])
        new[name] = leaf.index_fill(axis, torch.cat(found).to(leaf.device), 0)
    return new


def living_groups(masks: Masks, groups: Sequence[DependencyGroup]) -> list[bool]:
    """Of each group whether a weight of it remains."""
    living = {
        (name, axis): mask.movedim(axis, 0).flatten(1).any(1).cpu()
        for name, mask in masks.items() for axis in range(min(2, mask.ndim))
    }  # fmt: skip
    return [
        any(bool(living[name, axis][each].any()) for name, axis, each in group.parts if name in masks)
        for group in groups
    ]


@public
def without_dead_groups(state: TrainState, groups: Sequence[DependencyGroup]) -> TrainState:
    """Zero the biases, normalisation parameters and other unprunable parameters of groups that have no weight left.

    groups: those of `lf.dependency_groups`. Returns the state; its optimiser's state, which belonged to the network
    before, is dropped. Raises UserError for groups of another network.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> groups = lf.dependency_groups(model, (4,))
    >>> state = lf.init(model)
    >>> masks = {name: mask & False for name, mask in state.masks.items()}
    >>> lf.without_dead_groups(state._replace(masks=masks), groups).params["0.bias"]
    tensor([0., 0., 0.])
    """
    check_groups(groups, state.masks)
    dead = [group for group, lives in zip(groups, living_groups(state.masks, groups), strict=True) if not lives]
    free = set(state.params) - set(state.masks)
    params = apply_masks({**state.params, **_without(state.params, dead, free)}, state.masks)
    return state._replace(params=params, opt=())


def check_groups(groups: Sequence[DependencyGroup], tree: Params | Masks) -> None:
    """Raise UserError for groups that are not this network's."""
    if not any(part.name in tree for group in groups for part in group.parts) and groups:
        raise UserError("groups: belong to another network, which has none of these weights")
    for group in groups:
        for name, axis, indices in group.parts:
            if name in tree and len(indices) and int(indices.max()) >= tree[name].shape[axis]:
                raise UserError(f"groups: belong to another network, in which {name!r} is larger")
