"""Densities over rounds or steps, as plain numbers: how fast a network becomes sparse.

A schedule is the list of densities after each pruning. `prune_to_densities` turns one into a transformation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import invalid
from lthfunc.sparsify.allocation import fraction_from, globally
from lthfunc.sparsify.scores import checked_score, magnitude
from lthfunc.sparsify.structures import unstructured
from lthfunc.sparsify.transforms import prune, prune_once
from lthfunc.tracebacks import is_library_function
from lthfunc.trees.ops import Count, count
from lthfunc.trees.transformations import Transformation, compose
from lthfunc.trees.types import TrainState


@public
def one_shot(density: float) -> list[float]:
    """A schedule that prunes to `density` at once.

    >>> lf.one_shot(0.1)
    [0.1]
    """
    return geometric(density, 1)


@public
def geometric(density: float, rounds: int) -> list[float]:
    """A schedule that prunes the same share of what is left in each round: density^(k / rounds).

    Tanaka et al. 2020, alg. 1. density: after the last round, in (0, 1]. Raises UserError for a density or a number of
    rounds out of range.

    >>> [round(each, 3) for each in lf.geometric(0.125, rounds=3)]
    [0.5, 0.25, 0.125]
    """
    return [density ** (k / rounds) for k in range(1, rounds + 1)]


@public
def by_rate(rate: float, rounds: int) -> list[float]:
    """A schedule that prunes the fraction `rate` of what is left in each of `rounds` rounds: densities (1 - rate)^k.

    Raises UserError where the rate is not in (0, 1).

    >>> [round(each, 3) for each in lf.by_rate(0.2, rounds=3)]
    [0.8, 0.64, 0.512]
    """
    return geometric((1 - rate) ** rounds, rounds) if rounds else []


class PruningStep(NamedTuple):
    """A pruning during training: after this step, to this density."""

    step: int
    density: float


@public
def cubic(density: float, start: int, end: int, every: int, initial: float = 1.0) -> list[PruningStep]:
    """Gradual pruning: sparsity s_f + (s_i - s_f) (1 - (t - t_0) / nΔt)³ (Zhu & Gupta 2017, eq. 1).

    From step `start` to `end`, every `every` steps and at `end` itself. density: after the last pruning; initial: the
    density before the first. Returns (step, density) pairs. Raises UserError for a density or step out of range.

    >>> [(step, round(density, 3)) for step, density in lf.cubic(0.2, start=0, end=100, every=50)]
    [(0, 1.0), (50, 0.3), (100, 0.2)]
    """
    if not density <= initial <= 1:
        raise invalid("initial", initial, f"a density from {density:g} to 1")
    return [
        PruningStep(step, density + (initial - density) * (1 - (step - start) / (end - start)) ** 3)
        for step in periodic(start, end, every)
    ]


@public
def periodic(start: int, end: int, every: int) -> list[int]:
    """The steps `start`, `start + every` and so on below `end`, and `end` itself.

    Raises UserError where there are none.

    >>> lf.periodic(10, 25, every=10)
    [10, 20, 25]
    """
    if not 0 <= start < end:
        raise invalid("start", start, f"a step from 0 to {end - 1}, before the last pruning")
    return [*range(start, end, every), end]


@public
def prune_to_densities(densities: Sequence[float], **how: Any) -> Transformation:
    """Prune to each of these densities in turn, without training in between; scores are recomputed before each.

    densities: falling, in (0, 1], as `geometric` gives them. how: the other arguments of `prune`. Returns a
    transformation.

    >>> state = lf.init(lf.from_module(nn.Linear(8, 4)))
    >>> lf.density(lf.prune_to_densities(lf.geometric(0.25, rounds=2))(state).masks)
    0.25
    """
    one_by_one = compose(*(prune(density=density, **how) for density in densities))
    if not is_library_function(how.get("score", magnitude)):
        return one_by_one  # which looks at each score before it is used
    exact = how.get("allocate", globally) is globally and how.get("select", unstructured) is unstructured

    def looked_at_once(before: TrainState) -> TrainState:
        """The same, but a GPU is waited for at the beginning and at the end, not in each of a hundred rounds."""
        state, now, missing = before, count(before.masks), list[Tensor]()
        scoring = {**how, "score": checked_score(how.get("score", magnitude), missing)}
        for density in densities:
            fraction = fraction_from(now, density)
            state = prune_once(state, fraction, **scoring)
            now = Count(now.kept - round(now.kept * fraction), now.total) if exact else count(state.masks)
        if missing and bool(torch.stack(missing).any()):
            return one_by_one(before)  # says which
        return state

    return looked_at_once
