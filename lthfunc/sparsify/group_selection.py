"""Pruning by whole dependency groups: which of them go."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.allocation import KeepCounts, check_fraction, fraction_to
from lthfunc.sparsify.groups import (
    REDUCTIONS,
    DependencyGroup,
    check_groups,
    group_scores,
    living_groups,
    without_dead_groups,
    without_groups,
)
from lthfunc.sparsify.scores import Score, Scores, checked_score, magnitude
from lthfunc.sparsify.structures import Select
from lthfunc.trees.transformations import Transformation
from lthfunc.trees.types import Masks, TrainState


@dataclass(frozen=True)
class WholeGroups:
    """A selection of whole groups; the fields are what `whole_groups` takes."""

    groups: tuple[DependencyGroup, ...]
    reduce: str
    normalize: bool
    costs: Mapping[str, float] | None
    multiple: int

    def __call__(self, scores: Scores, masks: Masks, keep: KeepCounts) -> Masks:
        wanted = sum(float(keep[name]) * (1.0 if self.costs is None else self.costs[name]) for name in masks)
        how = wanted, self.reduce, self.normalize, self.costs, self.multiple
        return _best_groups(scores, masks, self.groups, *how, "structure")

    def among(self, names: Collection[str]) -> WholeGroups:
        """The selection of those groups alone that have a part of one of these leaves."""
        return replace(
            self, groups=tuple(each for each in self.groups if any(part.name in names for part in each.parts))
        )


@public
def whole_groups(
    groups: Sequence[DependencyGroup], *, reduce: str = "mean", normalize: bool = True,
    costs: Mapping[str, float] | None = None, multiple: int = 1,
) -> Select:  # fmt: skip
    """Select whole dependency groups, the best by `group_scores`; weights of no group remain.

    As many groups as bring the network closest to the total number of weights to keep, wherever they are; one of each
    width always remains, and one that each layer reads. costs: of one weight of each layer, such as its FLOPs, if these
    are to be kept in place of weights. multiple: of each width, a multiple of so many channels, features or neurons
    remains, 16 for example, since vector registers and matrix units take as long for fewer; a head has as many as its
    dimension. Groups then go several at a time, by the mean of their scores, and a width without as many stays whole.
    groups, reduce, normalize: as of `group_scores`.

    Returns a selection. Raises UserError for a multiple below 1 and, when the selection is applied, for fewer weights
    than are left without all other groups.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    >>> select = lf.whole_groups(lf.dependency_groups(model, (4,)))
    >>> lf.dead_units(lf.prune(density=0.5, select=select)(lf.init(model)).masks)
    {'0.weight': 3, '2.weight': 0}
    """

    return WholeGroups(tuple(groups), reduce, normalize, costs, multiple)


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
    multiple: int = 1,
) -> Transformation:
    """Prune whole dependency groups: weights, and with them biases and normalisation parameters.

    fraction: of the remaining weights to prune, in [0, 1); or density: of all prunable weights to keep, in (0, 1]. With
    `costs`, of one weight of each layer, both are shares of the sum of costs: of FLOPs, for example, where they are
    those of `lf.cost`, layer by layer, none below 0. score: of weights. groups, reduce, normalize, multiple: as of
    `whole_groups`.

    Returns a transformation; the density comes as close as whole groups can. Raises UserError where not exactly one of
    fraction and density is given, for a multiple below 1, for groups of another network, and for fewer weights than are
    left without all groups that may go.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    >>> pruned = lf.prune_groups(lf.dependency_groups(model, (4,)), density=0.5)(lf.init(model))
    >>> lf.count(pruned.masks)
    Count(kept=18, total=36)
    """
    if (fraction is None) == (density is None):
        raise UserError("prune_groups: give either fraction or density")
    if reduce not in REDUCTIONS:
        raise invalid("reduce", reduce, " or ".join(REDUCTIONS))
    negative = next((name for name, cost in (costs or {}).items() if cost < 0), None)
    if costs is not None and negative is not None:
        raise invalid(f"prune_groups: costs: {negative}", costs[negative], "a number of at least 0")

    def transformation(state: TrainState) -> TrainState:
        masks = state.masks
        if not groups:
            raise invalid("prune_groups: groups", [*groups], "one group or more")
        check_groups(groups, masks)
        if costs is not None and (missing := [name for name in masks if name not in costs]):
            raise UserError(f"prune_groups: costs: {missing[0]!r}, which has a mask, is missing")
        if costs is not None and density is not None:
            wanted = density * _cost({name: torch.ones_like(mask) for name, mask in masks.items()}, costs)
        else:
            share = fraction if density is None else fraction_to(density, masks)
            assert share is not None
            check_fraction(share)
            wanted = (1 - share) * _cost(masks, costs)
        scores = checked_score(score)(state.params, masks)
        fewer = _best_groups(scores, masks, groups, wanted, reduce, normalize, costs, multiple, "prune_groups")
        return without_dead_groups(state._replace(masks=fewer), groups)

    return transformation


def _best_groups(
    scores: Scores, masks: Masks, groups: Sequence[DependencyGroup], wanted: float, reduce: str, normalize: bool,
    costs: Mapping[str, float] | None, multiple: int, caller: str,
) -> Masks:  # fmt: skip
    """Masks without the worst groups, whose cost comes closest to what is wanted."""
    found = group_scores(scores, masks, groups, reduce=reduce, normalize=normalize)
    order = _going(found, masks, groups, multiple)

    def without(count: int) -> Masks:
        return without_groups(masks, [groups[place] for places in order[:count] for place in places])

    least, all_costs = _cost(without(len(order)), costs), _cost(masks, costs)
    if wanted < least - 0.5 * (all_costs - least) / max(1, len(order)):
        what, of = "weights" if costs is None else "costs", "" if multiple == 1 else f" in multiples of {multiple}"
        raise UserError(
            f"{caller}: whole groups{of} leave at least {100 * least / all_costs:.3g} % of the remaining {what}, but "
            f"{100 * wanted / all_costs:.3g} % are to be kept"
        )
    low, high = 0, len(order)  # the fewest that go below what is wanted, by halving: costs fall with the number
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _cost(without(middle), costs) <= wanted else (middle + 1, high)
    return min((without(max(0, low - 1)), without(low)), key=lambda each: abs(_cost(each, costs) - wanted))


def _going(scores: Tensor, masks: Masks, groups: Sequence[DependencyGroup], multiple: int) -> list[list[int]]:
    """The groups that may go, those that go together, the worst first; of one width never before what is worse."""
    living = living_groups(masks, groups)
    staying = _staying(scores, masks, groups, living)
    members = dict[int, list[int]]()
    for place in scores.argsort(stable=True).tolist():
        if living[place]:
            members.setdefault(groups[place].width, []).append(place)
    blocks = {width: _blocks(places, staying, _least(groups, places, multiple)) for width, places in members.items()}
    worth = [(float(scores[each].mean()), each[0], width) for width, found in blocks.items() for each in found]
    # Rounding could give a block the mean of a worse one.
    queues: dict[int, Iterator[list[int]]] = {width: iter(found) for width, found in blocks.items()}
    return [next(queues[width]) for *_, width in sorted(worth)]


def _blocks(places: Sequence[int], staying: set[int], size: int) -> list[list[int]]:
    """Groups of one width, the worst first, in blocks after each of which a multiple of the size is left."""
    order = [*(each for each in places if each not in staying), *(each for each in places if each in staying)]
    first = len(order) % size or size
    found = [order[:first], *(order[at : at + size] for at in range(first, len(order), size))]
    return [each for each in found if not staying.intersection(each)]


def _least(groups: Sequence[DependencyGroup], places: Sequence[int], multiple: int) -> int:
    """How many groups of a width have a multiple of so many channels: one head, where it has as many itself."""
    channels = min(len(part.indices) for place in places for part in groups[place].parts)
    return multiple // gcd(multiple, max(1, channels))


def _staying(scores: Tensor, masks: Masks, groups: Sequence[DependencyGroup], living: Sequence[bool]) -> set[int]:
    """The best living group of each width, and of each row or column of weights in which nothing else would be left."""
    best = dict[Any, int]()
    covered = dict[Any, int]()
    for place, group in enumerate(groups):
        keys = [((part.name, part.axis), len(part.indices)) for part in group.parts]
        for key, count in ((group.width, 0), *keys):
            covered[key] = covered.get(key, 0) + count
            if living[place] and (key not in best or scores[place] > scores[best[key]]):
                best[key] = place
    return {
        place for key, place in best.items()
        if isinstance(key, int) or (key[0] in masks and covered[key] == masks[key[0]].shape[key[1]])
    }  # fmt: skip


def _cost(masks: Masks, costs: Mapping[str, float] | None) -> float:
    return sum(float(mask.sum()) * (1.0 if costs is None else costs[name]) for name, mask in masks.items())
