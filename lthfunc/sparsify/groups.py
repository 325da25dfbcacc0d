"""Dependency groups: what of a network's parameters goes together; their scores, and pruning by whole groups.

A group is an attention head with its rows and columns, a dimension of a residual stream with everything that writes or
reads it, or a neuron or channel with its readers (Fang et al. 2023). `lf.dependency_groups` finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.allocation import KeepCounts, check_fraction, fraction_to
from lthfunc.sparsify.scores import Score, Scores, checked_score, magnitude
from lthfunc.sparsify.structures import Select
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.transformations import Transformation
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
    _check(groups, masks)
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
    _check(groups, state.masks)
    living = {
        (name, axis): mask.movedim(axis, 0).flatten(1).any(1).cpu()
        for name, mask in state.masks.items() for axis in range(min(2, mask.ndim))
    }  # fmt: skip
    dead = [
        group for group in groups
        if not any(bool(living[name, axis][each].any()) for name, axis, each in group.parts if name in state.masks)
    ]  # fmt: skip
    free = set(state.params) - set(state.masks)
    params = apply_masks({**state.params, **_without(state.params, dead, free)}, state.masks)
    return state._replace(params=params, opt=())


@public
def whole_groups(
    groups: Sequence[DependencyGroup], *, reduce: str = "mean", normalize: bool = True,
    costs: Mapping[str, float] | None = None,
) -> Select:  # fmt: skip
    """Select whole dependency groups, the best by `group_scores`; weights of no group remain.

    As many groups as bring the network closest to the total number of weights to keep, wherever they are; one of each
    width always remains, and one that each layer reads. costs: of one weight of each layer, such as its FLOPs, if these
    are to be kept in place of weights. groups, reduce, normalize: as of `group_scores`.

    Returns a selection. Raises UserError, when it is applied, for fewer weights than are left without all other groups.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    >>> select = lf.whole_groups(lf.dependency_groups(model, (4,)))
    >>> lf.dead_units(lf.prune(density=0.5, select=select)(lf.init(model)).masks)
    {'0.weight': 3, '2.weight': 0}
    """

    def select(scores: Scores, masks: Masks, keep: KeepCounts) -> Masks:
        wanted = sum(float(keep[name]) * (1.0 if costs is None else costs[name]) for name in masks)
        return _best_groups(scores, masks, groups, wanted, reduce, normalize, costs, "structure")

    return select


@public
def prune_groups(
    groups: Sequence[DependencyGroup],
    *,
    fraction: float | None = None,
    density: float | None = None,
    score: Score = magnitude,
    reduce: str = "mean",
    normalize: bool = True,
    costs: Mapping[str, float] | None = None,
) -> Transformation:
    """Prune whole dependency groups: weights, and with them biases and normalisation parameters.

    fraction: of the remaining weights to prune, in [0, 1); or density: of all prunable weights to keep, in (0, 1]. With
    `costs`, of one weight of each layer, both are shares of the sum of costs: of FLOPs, for example, where they are
    those of `lf.cost`, layer by layer. score: of weights. groups, reduce, normalize: as of `group_scores`.

    Returns a transformation; the density comes as close as whole groups can. Raises UserError where not exactly one of
    fraction and density is given, for groups of another network, and for fewer weights than are left without all groups
    but one of each width.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    >>> pruned = lf.prune_groups(lf.dependency_groups(model, (4,)), density=0.5)(lf.init(model))
    >>> lf.count(pruned.masks)
    Count(kept=18, total=36)
    """
    if (fraction is None) == (density is None):
        raise UserError("prune_groups: give either fraction or density")
    if reduce not in REDUCTIONS:
        raise invalid("reduce", reduce, " or ".join(REDUCTIONS))

    def transformation(state: TrainState) -> TrainState:
        masks = state.masks
        _check(groups, masks)
        if costs is not None and density is not None:
            wanted = density * _cost({name: torch.ones_like(mask) for name, mask in masks.items()}, costs)
        else:
            share = fraction if density is None else fraction_to(density, masks)
            assert share is not None
            check_fraction(share)
            wanted = (1 - share) * _cost(masks, costs)
        scores = checked_score(score)(state.params, masks)
        fewer = _best_groups(scores, masks, groups, wanted, reduce, normalize, costs, "prune_groups")
        return without_dead_groups(state._replace(masks=fewer), groups)

    return transformation


def _best_groups(
    scores: Scores, masks: Masks, groups: Sequence[DependencyGroup], wanted: float, reduce: str, normalize: bool,
    costs: Mapping[str, float] | None, caller: str,
) -> Masks:  # fmt: skip
    """Masks without the worst groups, whose cost comes closest to what is wanted."""
    found = group_scores(scores, masks, groups, reduce=reduce, normalize=normalize)
    staying = _staying(found, masks, groups)
    order = [each for each in found.argsort(stable=True).tolist() if each not in staying]

    def without(count: int) -> Masks:
        return without_groups(masks, [groups[place] for place in order[:count]])

    least, all_costs = _cost(without(len(order)), costs), _cost(masks, costs)
    if wanted < least - 0.5 * (all_costs - least) / max(1, len(order)):
        what = "weights" if costs is None else "costs"
        raise UserError(
            f"{caller}: whole groups leave at least {100 * least / all_costs:.3g} % of the remaining {what}, but "
            f"{100 * wanted / all_costs:.3g} % are to be kept"
        )
    low, high = 0, len(order)  # the fewest that go below what is wanted, by halving: costs fall with the number
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _cost(without(middle), costs) <= wanted else (middle + 1, high)
    return min((without(max(0, low - 1)), without(low)), key=lambda each: abs(_cost(each, costs) - wanted))


def _staying(scores: Tensor, masks: Masks, groups: Sequence[DependencyGroup]) -> set[int]:
    """The best group of each width, and of each row or column of weights in which nothing else would be left."""
    best = dict[Any, int]()
    covered = dict[Any, int]()
    for place, group in enumerate(groups):
        keys = [((part.name, part.axis), len(part.indices)) for part in group.parts]
        for key, count in ((group.width, 0), *keys):
            covered[key] = covered.get(key, 0) + count
            if key not in best or scores[place] > scores[best[key]]:
                best[key] = place
    return {
        place for key, place in best.items()
        if isinstance(key, int) or (key[0] in masks and covered[key] == masks[key[0]].shape[key[1]])
    }  # fmt: skip


def _cost(masks: Masks, costs: Mapping[str, float] | None) -> float:
    return sum(float(mask.sum()) * (1.0 if costs is None else costs[name]) for name, mask in masks.items())


def _check(groups: Sequence[DependencyGroup], tree: Params | Masks) -> None:
    """Raise UserError for groups that are not this network's."""
    if not any(part.name in tree for group in groups for part in group.parts) and groups:
        raise UserError("groups: belong to another network, which has none of these weights")
    for group in groups:
        for name, axis, indices in group.parts:
            if name in tree and len(indices) and int(indices.max()) >= tree[name].shape[axis]:
                raise UserError(f"groups: belong to another network, in which {name!r} is larger")
