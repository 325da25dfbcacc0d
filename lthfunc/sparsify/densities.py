"""Densities over rounds or steps, as plain numbers: how fast a network becomes sparse.

A schedule is the list of densities after each pruning. `at_densities` turns one into a transformation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lthfunc.arguments import public
from lthfunc.errors import invalid
from lthfunc.sparsify.transforms import prune
from lthfunc.trees.fold import Transformation, compose


@public
def one_shot(density: float) -> list[float]:
    """All at once."""
    return geometric(density, 1)


@public
def geometric(density: float, rounds: int) -> list[float]:
    """The same share of what is left in each round: density^(k / rounds) (Tanaka et al. 2020, alg. 1)."""
    _check_density(density)
    if rounds < 1:
        raise invalid("rounds", rounds, "a whole number of at least 1")
    return [density ** (k / rounds) for k in range(1, rounds + 1)]


@public
def by_rate(rate: float, rounds: int) -> list[float]:
    """`rate` of what is left in each round: (1 - rate)^k."""
    if not 0 < rate < 1:
        raise invalid("rate", rate, "a number between 0 and 1, both excluded")
    return geometric((1 - rate) ** rounds, rounds) if rounds else []


class Pruning(NamedTuple):
    """A pruning during training: after this step, to this density."""

    step: int
    density: float


@public
def cubic(density: float, start: int, end: int, every: int, initial: float = 1.0) -> list[Pruning]:
    """Sparsity s_f + (s_i - s_f) (1 - (t - t_0) / nΔt)³, quick at first (Zhu & Gupta 2017, eq. 1).

    From step `start` to `end`, every `every` steps, and at `end` itself; `initial` is the density before.
    """
    _check_density(density)
    return [
        Pruning(step, density + (initial - density) * (1 - (step - start) / (end - start)) ** 3)
        for step in periodic(start, end, every)
    ]


@public
def periodic(start: int, end: int, every: int) -> list[int]:
    """Steps `start`, `start + every` … below `end`, and `end`."""
    if every < 1:
        raise invalid("every", every, "a whole number of steps, at least 1")
    if not 0 <= start < end:
        raise invalid("start", start, f"a step from 0 to {end - 1}, before the last pruning")
    return [*range(start, end, every), end]


@public
def at_densities(densities: Sequence[float], **how: Any) -> Transformation:
    """Prune to one density after the other, without training between: `how` are the arguments of `prune`.

    What scores depend on, such as SynFlow's, is asked anew before each.
    """
    return compose(*(prune(density=density, **how) for density in densities))


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise invalid("density", density, "a number in (0, 1]")
