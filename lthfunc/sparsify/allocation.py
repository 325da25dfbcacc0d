"""Allocation: how many weights each layer keeps. Scores, masks and a fraction in, counts out.

`fraction` is the share of the *remaining* weights to prune, so k rounds at rate r leave (1 - r)^k. Counts are exact: of
n remaining weights, round(fraction * n) are pruned, halves to even, as in torch.nn.utils.prune.
"""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.ranking import best
from lthfunc.sparsify.scores import Scores
from lthfunc.trees.ops import Count, count
from lthfunc.trees.patterns import check_patterns
from lthfunc.trees.types import Masks

#: Weights to keep per prunable leaf: int64 scalars.
KeepCounts = dict[str, Tensor]
Allocate = Callable[[Scores, Masks, float], KeepCounts]
F = TypeVar("F", bound=Allocate)
#: The attribute of an allocation that `of_survivors` sets.
_OF_SURVIVORS = "of_survivors"


def of_survivors(allocate: F) -> F:
    """Declare that an allocation gives the same counts for survivors without the pruned weights between them."""
    setattr(allocate, _OF_SURVIVORS, True)
    return allocate


def looks_at_survivors_alone(allocate: Allocate) -> bool:
    """Whether that was declared."""
    return bool(getattr(allocate, _OF_SURVIVORS, False))


@of_survivors
@public
def globally(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
    """Allocate by one threshold for all layers: the best scores of the whole network remain, wherever they are.

    Of n remaining weights, n - round(fraction · n) are kept. Ties at the threshold go to the earlier layer, then to the
    lower flat index. As torch.nn.utils.prune.global_unstructured, and Frankle & Carbin 2019, sec. 4, for deep networks.

    scores: one float per weight, higher is kept; masks: what remains now; fraction: of the remaining weights to prune,
    in [0, 1). Returns the number of weights to keep in each layer, int64 scalars.

    >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    >>> masks = {"a": torch.tensor([True, True]), "b": torch.tensor([True, True])}
    >>> lf.globally(scores, masks, 0.5)
    {'a': tensor(0), 'b': tensor(2)}
    """
    if not masks:
        return {}
    living = torch.stack([mask.sum() for mask in masks.values()]).sum()
    return counts_of_best(scores, masks, living - number_pruned(living, fraction))


def counts_of_best(scores: Scores, masks: Masks, budget: Tensor | int) -> KeepCounts:
    """How many of the `budget` best of all remaining weights each layer holds."""
    alive = torch.cat([mask.flatten() for mask in masks.values()])
    chosen = best(torch.cat([scores[name].flatten() for name in masks]), alive, budget)
    sizes = [mask.numel() for mask in masks.values()]
    return {name: part.sum() for name, part in zip(masks, torch.split(chosen, sizes), strict=True)}


@public
def layerwise(rates: Mapping[str, float] | None = None, output_rate: float = 0.5) -> Allocate:
    """Allocate the same fraction in every layer, in the output layer (the last one) `output_rate` times that.

    The rule of Frankle & Carbin 2019, sec. 2 and fig. 2, for LeNet-300-100. rates: a fraction of their own, in [0, 1),
    for layers whose names match a pattern (``{"conv*": 0.1}``); the first match counts. Returns an allocation. Raises
    UserError for a rate out of range or, when it is applied, a pattern that matches no layer.

    >>> masks = {"fc1": torch.ones(10, dtype=torch.bool), "fc2": torch.ones(10, dtype=torch.bool)}
    >>> lf.layerwise()({}, masks, 0.2)
    {'fc1': tensor(8), 'fc2': tensor(9)}
    """
    rates = dict(rates or {})
    for pattern, rate in rates.items():
        if not 0 <= rate < 1:
            raise invalid(f"layer rate of {pattern!r}", rate, "a number in [0, 1)")

    @of_survivors
    def allocate(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
        check_fraction(fraction)
        check_patterns("layer rate", rates, masks)
        output = next(reversed(masks), None)

        def rate_of(name: str) -> float:
            fits = (rate for pattern, rate in rates.items() if fnmatch.fnmatchcase(name, pattern))
            rate = next(fits, fraction * output_rate if name == output else fraction)
            if rate >= 1:
                raise invalid("output_rate", output_rate, f"a number below {1 / fraction:g}, 1 / the fraction to prune")
            return rate

        living = {name: mask.sum() for name, mask in masks.items()}
        return {name: count - number_pruned(count, rate_of(name)) for name, count in living.items()}

    return allocate


@public
def fixed_counts(keep: Mapping[str, int]) -> Allocate:
    """Allocate exactly these counts, whatever the scores: those of another ticket, for example.

    keep: the number of weights to keep in each layer. Returns an allocation. Raises UserError, when it is applied, for
    a layer without a count, or with another number than it can have.

    >>> lf.fixed_counts({"fc": 3})({}, {"fc": torch.ones(10, dtype=torch.bool)}, 0.0)
    {'fc': tensor(3)}
    """

    def allocate(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
        missing = [name for name in masks if name not in keep]
        if missing:
            raise UserError(f"fixed_counts: no count for {', '.join(missing)}")
        for name, mask in masks.items():
            if not 0 <= keep[name] <= mask.numel():
                raise invalid(
                    f"fixed_counts: {name}", keep[name], f"a whole number from 0 to {mask.numel()}, its weights"
                )
        return {name: torch.tensor(operator.index(keep[name])) for name in masks}

    return allocate


def fraction_to(density: float, masks: Masks) -> float:
    """The fraction of the remaining weights to prune so that `density` of all prunable weights is left.

    Raises UserError unless density is in (0, the current density].
    """
    return fraction_from(count(masks), density)


def fraction_from(now: Count, density: float) -> float:
    """`fraction_to`, given the current count.

    A density that rounds to the current count is reached already: a schedule's steps may be smaller than a weight.
    """
    if not now.kept:
        raise UserError("density: no weight is left to prune")
    wanted = density * now.total
    if not (density > 0 and wanted <= now.kept + 0.5):
        raise invalid("density", density, f"a number in (0, {now.density:.6g}], the density now")
    return max(0.0, 1 - wanted / now.kept)


def number_pruned(living: Tensor, fraction: float) -> Tensor:
    """How many of `living` weights a fraction prunes: int64."""
    return torch.round(living.to(torch.float64) * fraction).to(torch.int64)


def check_fraction(fraction: float) -> None:
    """Raise UserError for a fraction outside [0, 1)."""
    if not 0 <= fraction < 1:
        raise invalid("fraction", fraction, "a number in [0, 1)")
