"""Budgets: a network's remaining weights apportioned to its layers by a formula, exactly.

Each function makes an `Allocate`. The whole network keeps what the fraction leaves of it, as with `globally`; only the
shares of the layers differ. No layer gets more weights than it has left, nor fewer than `min_layer_weights` (or all
that it has left); what a full layer cannot take goes to the others in the same proportions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.allocation import (
    Allocate,
    KeepCounts,
    check_fraction,
    counts_of_best,
    number_pruned,
    of_survivors,
)
from lthfunc.sparsify.ranking import ranks
from lthfunc.sparsify.scores import Scores
from lthfunc.trees.ops import as_numbers, count, layer_counts
from lthfunc.trees.types import Masks

Name = TypeVar("Name")


@public
def uniform(min_layer_weights: int = 0) -> Allocate:
    """Allocate the same density to every layer, but no fewer than `min_layer_weights` weights.

    >>> masks = {"a": torch.ones(10, dtype=torch.bool), "b": torch.ones(30, dtype=torch.bool)}
    >>> lf.uniform()({}, masks, 0.5)
    {'a': tensor(5), 'b': tensor(15)}
    """
    return _by(lambda shape: 1.0, min_layer_weights)


@public
def erdos_renyi(min_layer_weights: int = 0) -> Allocate:
    """Allocate densities in proportion to (n_in + n_out) / (n_in · n_out) (Mocanu et al. 2018, eq. 3).

    min_layer_weights: the fewest weights that a layer keeps. Small layers stay dense.

    >>> masks = {"a": torch.ones(10, 10, dtype=torch.bool), "b": torch.ones(2, 10, dtype=torch.bool)}
    >>> lf.erdos_renyi()({}, masks, 0.5)
    {'a': tensor(40), 'b': tensor(20)}
    """
    return _by(lambda shape: _sum_over_product(shape[:2]), min_layer_weights)


@public
def erk(min_layer_weights: int = 0) -> Allocate:
    """Allocate densities in proportion to (n_in + n_out + h + w) / (n_in · n_out · h · w): Erdős–Rényi-Kernel.

    Evci et al. 2020, sec. 3.1. min_layer_weights: the fewest weights that a layer keeps.

    >>> masks = {"conv": torch.ones(4, 4, 3, 3, dtype=torch.bool), "fc": torch.ones(10, 16, dtype=torch.bool)}
    >>> lf.erk()({}, masks, 0.5)
    {'conv': tensor(53), 'fc': tensor(99)}
    """
    return _by(_sum_over_product, min_layer_weights)


@public
def balanced(min_layer_weights: int = 0) -> Allocate:
    """Allocate the same number of weights to every layer; smaller layers stay dense (Gadhikar et al. 2023, sec. 3).

    min_layer_weights: the fewest weights that a layer keeps.

    >>> masks = {"a": torch.ones(6, dtype=torch.bool), "b": torch.ones(34, dtype=torch.bool)}
    >>> lf.balanced()({}, masks, 0.5)
    {'a': tensor(6), 'b': tensor(14)}
    """
    return _by(lambda shape: 1 / torch.Size(shape).numel(), min_layer_weights)


@public
def globally_with_minimum(min_layer_weights: int) -> Allocate:
    """Allocate by one threshold for all layers, but each layer keeps its `min_layer_weights` best weights.

    A layer that has fewer left keeps all of them. Returns an allocation. Raises UserError for a negative minimum or,
    when it is applied, a density that cannot meet it.

    >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    >>> masks = {"a": torch.tensor([True, True]), "b": torch.tensor([True, True])}
    >>> lf.globally_with_minimum(1)(scores, masks, 0.5)
    {'a': tensor(1), 'b': tensor(1)}
    """

    @of_survivors
    def allocate(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
        budget = budget_of(masks, fraction)
        living = _living(masks)
        sure = {name: min(min_layer_weights, number) for name, number in living.items()}
        _check_room(budget, sure)
        rest = {name: mask & (ranks(scores[name], mask) >= sure[name]) for name, mask in masks.items()}
        above = counts_of_best(scores, rest, budget - sum(sure.values()))
        return {name: above[name] + sure[name] for name in masks}

    return allocate


@public
def lamp(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
    """Allocate by one threshold on s² / Σ of the layer's s² that are no smaller, s the scores (Lee et al. 2021, eq. 2).

    With `magnitude` this is LAMP. Each layer's best weight has the score 1, so no layer is emptied before all layers
    are down to one weight. masks: what remains now; fraction: of the remaining weights to prune. Raises UserError for a
    negative score, which its square would hide.

    >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    >>> masks = {"a": torch.tensor([True, True]), "b": torch.tensor([True, True])}
    >>> lf.lamp(scores, masks, 0.5)
    {'a': tensor(1), 'b': tensor(1)}
    """
    if not masks:
        return {}
    below = [(mask & (scores[name] < 0)).any() for name, mask in masks.items()]
    # Under vmap values cannot be inspected.
    seen = [] if any(map(torch._C._functorch.is_functorch_wrapped_tensor, below)) else as_numbers(below)
    for name, negative in zip(masks, seen, strict=False):
        if negative:
            raise UserError(f"allocate: lamp squares scores, and some of {name} are negative; another one would do")

    def score(name: str) -> Tensor:
        mask = masks[name].flatten()
        squares = torch.where(mask, scores[name].flatten().double().square(), 0)
        order = ranks(scores[name].abs(), masks[name]).flatten().argsort()
        shares = squares[order] / squares[order].cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
        return torch.empty_like(squares).scatter(0, order, shares).view(masks[name].shape)

    return counts_of_best({name: score(name) for name in masks}, masks, budget_of(masks, fraction))


def apportion(
    budget: int, weights: Mapping[Name, float], most: Mapping[Name, int], least: Mapping[Name, int]
) -> dict[Name, int]:
    """Divide `budget` in proportion to `weights`, each share within [least, most]: whole numbers with exactly that sum.

    Remainders go to the layers with the largest ones, in order where they are equal. Raises UserError where no shares
    have that sum.
    """
    _check_room(budget, least)
    if budget > sum(most.values()):
        raise invalid("density", budget, f"a budget of at most {sum(most.values())} weights, all there are")
    # The factor grows until the clipped shares fill the budget; between the points where a layer fills up it is linear.
    low, high = 0.0, max((most[name] / weight for name, weight in weights.items() if weight), default=0.0)
    for _ in range(200):
        middle = (low + high) / 2
        filled = sum(_clipped(weights[name] * middle, least[name], most[name]) for name in weights)
        low, high = (middle, high) if filled < budget else (low, middle)
    exact = {name: _clipped(weights[name] * high, least[name], most[name]) for name in weights}
    shares = {name: int(share + 1e-9) for name, share in exact.items()}
    order = sorted(weights, key=lambda name: shares[name] - exact[name])
    while missing := budget - sum(shares.values()):  # rounded down, they are never too many
        for name in [name for name in order if shares[name] < most[name]][:missing]:
            shares[name] += 1
    return shares


def erk_counts(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, int]:
    """The weights that each layer of these shapes keeps by `erk`, all of them being there; nothing dense is made.

    density: of all layers together. Raises UserError where it is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise invalid("density", density, "a number in (0, 1]")
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    weights = {name: _sum_over_product(shape) * sizes[name] for name, shape in shapes.items()}
    return apportion(round(density * sum(sizes.values())), weights, sizes, dict.fromkeys(shapes, 0))


def budget_of(masks: Masks, fraction: float) -> int:
    """The number of weights that the whole network keeps."""
    check_fraction(fraction)
    living = count(masks).kept
    return living - int(number_pruned(torch.tensor(living), fraction))


def _by(density: Callable[[tuple[int, ...]], float], min_layer_weights: int) -> Allocate:

    def allocate(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
        weights = {name: density(tuple(mask.shape)) * mask.numel() for name, mask in masks.items()}
        living = _living(masks)
        least = {name: min(min_layer_weights, number) for name, number in living.items()}
        shares = apportion(budget_of(masks, fraction), weights, living, least)
        return {name: torch.tensor(share, device=masks[name].device) for name, share in shares.items()}

    return allocate


def _sum_over_product(sides: tuple[int, ...]) -> float:
    return sum(sides) / torch.Size(sides).numel()


def _living(masks: Masks) -> dict[str, int]:
    return {name: layer.kept for name, layer in layer_counts(masks).items()}


def _clipped(share: float, least: int, most: int) -> float:
    return min(float(most), max(float(least), share))


def _check_room(budget: int, least: Mapping[Any, int]) -> None:
    if budget < sum(least.values()):
        raise UserError(
            f"min_layer_weights: {len(least)} layers need at least {sum(least.values())} weights together, but the "
            f"density leaves {budget}; choose a higher density or a smaller minimum"
        )
