"""Composing transformations: an experiment is a fold of them over a state."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.arguments import public
from lthfunc.trees.types import TrainState

#: A pure function from state to state: train, prune, rewind, or any composition of them.
Transformation = Callable[[TrainState], TrainState]


@public
def compose(*transformations: Transformation) -> Transformation:
    """One transformation that applies the given transformations from left to right.

    >>> start = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> find = lf.compose(lf.prune(fraction=0.5), lf.rewind(to=start))
    >>> lf.density(find(start).masks)
    0.5
    """

    def composed(state: TrainState) -> TrainState:
        for transformation in transformations:
            state = transformation(state)
        return state

    return composed


@public
def iterate(transformation: Transformation, rounds: int) -> Transformation:
    """One transformation that applies the given transformation `rounds` times; 0 is the identity.

    >>> start = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> lf.density(lf.iterate(lf.prune(fraction=0.5), rounds=2)(start).masks)
    0.25
    """
    return compose(*[transformation] * rounds)
