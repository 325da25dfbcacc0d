"""Allocation: how many weights each layer keeps. Scores, masks and a fraction in, keep counts out.

`fraction` is the share of the *remaining* weights to prune, so k rounds at rate r leave (1 - r)^k. Counts are
exact: of n remaining weights, round(fraction * n) go, halves to even, as in torch.nn.utils.prune.
"""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.ranking import ranks
from lthfunc.sparsify.scores import Scores
from lthfunc.trees.ops import Count, count
from lthfunc.trees.types import Masks

#: Weights to keep per prunable leaf: int64 scalars.
KeepCounts = dict[str, Tensor]
Allocate = Callable[[Scores, Masks, float], KeepCounts]


@public
def globally(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
    """One threshold for all layers: the best scores of the whole network stay, wherever they are.

    Ties at the threshold go to the earlier layer, then to the lower flat index. This is the allocation of
    torch.nn.utils.prune.global_unstructured, and of Frankle & Carbin 2019, sec. 4, for deep networks.
    """
    check_fraction(fraction)
    if not masks:
        return {}
    living = torch.stack([mask.sum() for mask in masks.values()]).sum()
    return counts_of_best(scores, masks, living - number_pruned(living, fraction))


def counts_of_best(scores: Scores, masks: Masks, budget: Tensor | int) -> KeepCounts:
    """Where the `budget` best of all remaining weights lie."""
    alive = torch.cat([mask.flatten() for mask in masks.values()])
    chosen = (ranks(torch.cat([scores[name].flatten() for name in masks]), alive) < budget) & alive
    sizes = [mask.numel() for mask in masks.values()]
    return {name: part.sum() for name, part in zip(masks, torch.split(chosen, sizes), strict=True)}


@public
def layerwise(rates: Mapping[str, float] | None = None, output_rate: float = 0.5) -> Allocate:
    """The same fraction in every layer, the output layer (the last one) at `output_rate` times that.

    The paper's rule for LeNet-300-100 (Frankle & Carbin 2019, sec. 2 and fig. 2). `rates` sets a fraction of
    its own for the layers whose name fits a pattern (``{"conv*": 0.1, "fc3.weight": 0.0}``; the first that fits
    counts), in place of the round's fraction.

    Raises UserError where a rate is outside [0, 1) or, when applied, a pattern fits no layer.
    """
    if output_rate < 0:
        raise invalid("output_rate", output_rate, "a number of at least 0, a share of the other layers' rate")
    rates = dict(rates or {})
    for pattern, rate in rates.items():
        if not 0 <= rate < 1:
            raise invalid(f"layer rate of {pattern!r}", rate, "a number in [0, 1)")

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


def check_patterns(option: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Raise UserError where a pattern fits none of the prunable layers' names."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise invalid(option, pattern, f"a pattern that fits one of {', '.join(names)}")


@public
def fixed_counts(keep: Mapping[str, int]) -> Allocate:
    """Keep exactly these counts, whatever the scores (the counts of another ticket, say)."""

    def allocate(scores: Scores, masks: Masks, fraction: float) -> KeepCounts:
        missing = [name for name in masks if name not in keep]
        if missing:
            raise UserError(f"as_given: no count for {', '.join(missing)}")
        return {name: torch.tensor(operator.index(keep[name])) for name in masks}

    return allocate


def fraction_to(density: float, masks: Masks) -> float:
    """The fraction of the remaining weights to prune so that `density` of all prunable weights is left.

    Raises UserError where density is not in (0, the present density].
    """
    return fraction_from(count(masks), density)


def fraction_from(now: Count, density: float) -> float:
    """`fraction_to`, where it is known how many weights remain.

    A density that rounds to as many weights as there are is reached: a schedule's steps may be smaller than a weight.
    """
    wanted = density * now.total
    if not (density > 0 and wanted <= now.kept + 0.5):
        raise invalid("density", density, f"a number in (0, {now.density:.6g}], the density now")
    return max(0.0, 1 - wanted / now.kept)


def number_pruned(living: Tensor, fraction: float) -> Tensor:
    """How many of so many weights go: int64."""
    return torch.round(living.to(torch.float64) * fraction).to(torch.int64)


def check_fraction(fraction: float) -> None:
    """Raise UserError where it isn't one."""
    if not 0 <= fraction < 1:
        raise invalid("fraction", fraction, "a number in [0, 1)")
