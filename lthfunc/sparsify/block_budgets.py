"""Budgets of blocks: a density for each, from what their weights and inputs look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import invalid
from lthfunc.sparsify.activations import wanda
from lthfunc.trees.ops import count
from lthfunc.trees.types import Masks, Params


class BlockBudgets(NamedTuple):
    """How many weights each block keeps.

    measure: (params, masks, moments) of a block's layers -> a number. densities: (the measures of all blocks, their
    sizes, the density of all together) -> the density of each. inputs: whether the measure reads moments, which then
    are the diagonals of those in the network before it is pruned.
    """

    measure: Callable[[Params, Masks, Mapping[str, Tensor]], float]
    densities: Callable[[Sequence[float], Sequence[int], float], list[float]]
    inputs: bool = False


@public
def same_density() -> BlockBudgets:
    """The same density in every block.

    >>> lf.same_density().densities([0.0, 0.0], [100, 300], 0.5)
    [0.5, 0.5]
    """
    return BlockBudgets(lambda params, masks, moments: 0.0, lambda measures, sizes, density: [density] * len(sizes))


@public
def owl(threshold: float = 5.0, spread: float = 0.08) -> BlockBudgets:
    """OWL: blocks with more outliers keep more weights (Yin et al. 2024, sec. 3.2).

    The measure is the share of a block's weights whose |w| · ‖x‖ (`wanda`) is above threshold times the block's mean
    (eq. 1), in the network before pruning. Densities grow linearly with it, over an interval of length 2 · spread, and
    their mean is the density asked for.

    threshold: their M. spread: their λ, in [0, 1]. Raises UserError for one out of range.

    >>> [round(each, 2) for each in lf.owl(spread=0.1).densities([0.01, 0.03, 0.02], [100, 100, 100], 0.5)]
    [0.4, 0.6, 0.5]
    """
    if not threshold > 0:
        raise invalid("threshold", threshold, "a number above 0")
    if not 0 <= spread <= 1:
        raise invalid("spread", spread, "a number in [0, 1]")

    def measure(params: Params, masks: Masks, moments: Mapping[str, Tensor]) -> float:
        scores = wanda(moments)(params, masks)
        total, size = sum(float(each.double().sum()) for each in scores.values()), count(masks).total
        return sum(int((each > threshold * total / size).sum()) for each in scores.values()) / size

    def densities(measures: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
        places = [2 * spread * place for place in _places(measures)]
        return [density + place - math.fsum(places) / len(places) for place in places]

    return BlockBudgets(measure, densities, inputs=True)


@public
def alpha_pruning(spread: float = 0.3) -> BlockBudgets:
    """AlphaPruning: blocks whose weights have heavier-tailed spectra keep more of them (Lu et al. 2024, sec. 3).

    The measure is the mean of the exponents of a block's layers: Hill's estimate, from the upper half of the
    eigenvalues of Wᵀ W, of a power law (eq. 2); a convolution's are those of all its kernel positions together.
    Sparsities grow linearly with it, from 1 - spread to 1 + spread times one number (eq. 3).

    spread: their τ, in [0, 1). Raises UserError for one out of range.

    >>> [round(each, 2) for each in lf.alpha_pruning(0.2).densities([3.0, 5.0], [100, 100], 0.5)]
    [0.6, 0.4]
    """
    if not 0 <= spread < 1:
        raise invalid("spread", spread, "a number in [0, 1)")

    def measure(params: Params, masks: Masks, moments: Mapping[str, Tensor]) -> float:
        return math.fsum(hill_exponent(params[name]) for name in masks) / len(masks)

    def densities(measures: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
        shares = [1 - spread + 2 * spread * place for place in _places(measures)]
        pruned = math.fsum(share * size for share, size in zip(shares, sizes, strict=True))
        return [1 - share * (1 - density) * sum(sizes) / pruned for share in shares]

    return BlockBudgets(measure, densities)


def hill_exponent(weight: Tensor) -> float:
    """The exponent of a power law of the eigenvalues of Wᵀ W, from those above their median (Hill's estimator).

    Infinity where they are equal. Of a convolution, the eigenvalues for each position of the kernel.
    """
    matrices = weight.flatten(2).permute(2, 0, 1) if weight.ndim > 2 else weight
    values = torch.linalg.svdvals(matrices.double() if not matrices.is_complex() else matrices).flatten().square()
    tail = values.sort().values[len(values) // 2 :]
    logarithms = tail.clamp(min=torch.finfo(torch.float64).tiny).log()
    rise = float((logarithms - logarithms[0]).sum())
    return 1 + len(tail) / rise if rise else math.inf


def _places(measures: Sequence[float]) -> list[float]:
    """Where each measure lies between the least, 0, and the largest finite one, 1; 0 where all are equal."""
    finite = [each for each in measures if math.isfinite(each)] or [0.0]
    least, most = min(finite), max(finite)
    return [min(1.0, (each - least) / (most - least)) if most > least else 0.0 for each in measures]
