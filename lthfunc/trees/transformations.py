"""Putting transformations together: an experiment is a fold of them over a state."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.arguments import public
from lthfunc.trees.types import TrainState

#: A pure function from state to state: train, prune, rewind, or any composition of them.
Transformation = Callable[[TrainState], TrainState]


@public
def compose(*transformations: Transformation) -> Transformation:
    """One transformation that applies the given ones from left to right."""

    def composed(state: TrainState) -> TrainState:
        for transformation in transformations:
            state = transformation(state)
        return state

    return composed


@public
def iterate(transformation: Transformation, rounds: int) -> Transformation:
    """One transformation that applies the given one `rounds` times (0 = identity)."""
    return compose(*[transformation] * rounds)
