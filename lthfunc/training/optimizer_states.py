"""States of optimisers: fresh ones, whether one fits, and the learning rates in it."""

from __future__ import annotations

from typing import Any, Protocol

import optree

from lthfunc.errors import UserError
from lthfunc.tracebacks import is_library_function
from lthfunc.training.chain import ChainState, is_library_optimizer
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.schedules import Schedule
from lthfunc.trees.ops import leaves
from lthfunc.trees.types import Buffers, Params


class Network(Protocol):
    """What an optimiser is for: a `TrainState`, for example."""

    @property
    def params(self) -> Params:
        """That are trained."""

    @property
    def buffers(self) -> Buffers:
        """Of the module."""


def fresh_state(optimizer: Optimizer, network: Network) -> Any:
    """The optimiser's state before the first step."""
    return optimizer.init(network.params, network.buffers) if optimizer.parts else optimizer.init(network.params)


def check_optimizer_state(state: Any, optimizer: Optimizer, network: Network) -> Any:
    """A fresh state of the optimiser, or None where both are a user's.

    Raises UserError where `state` is another optimiser's, or of another network.
    """
    if not is_library_function(optimizer.init) and not is_library_function(type(state)):
        return None  # what a user's own keeps is its own affair
    mine = fresh_state(optimizer, network)
    known = is_library_function(type(state)) and (is_library_optimizer(optimizer) or not optimizer.parts)
    if type(state) is not type(mine) or (known and not _alike(state, mine)):
        raise UserError(
            f"optimizer: the state's optimiser state ({type(state).__name__}) belongs to another optimiser or network; "
            "state._replace(opt=()) starts with a fresh one"
        )
    return mine


def _alike(state: Any, mine: Any) -> bool:
    """Whether two states have the same leaves, besides the schedules, of which each may have its own."""
    if optree.tree_structure(state) != optree.tree_structure(mine):
        return False
    return all(
        one.shape == other.shape for one, other in zip(leaves(_with_tables(state, mine)), leaves(mine), strict=True)
    )


def with_rates_of(state: Any, optimizer: Optimizer, network: Network) -> Any:
    """An optimiser's state with the schedules of `optimizer`. Raises UserError where it is another optimiser's."""
    mine = check_optimizer_state(state, optimizer, network)
    return _with_tables(state, mine) if is_library_function(optimizer.init) else state


def schedule_in(state: Any) -> Schedule | None:
    """The learning rates in an optimiser's state; None where a user's own keeps them elsewhere."""
    if isinstance(found := getattr(state, "schedule", None), Schedule):
        return found
    parts = state.parts if isinstance(state, ChainState) else ()
    return next((found for part in parts if (found := schedule_in(part)) is not None), None)


def _with_tables(state: Any, other: Any) -> Any:
    if not isinstance(state, tuple) or type(state) is not type(other):
        return state
    if not hasattr(state, "_fields"):
        return tuple(map(_with_tables, state, other))
    parts = zip(state._fields, state, other, strict=True)
    return type(state)(*(new if name == "schedule" else _with_tables(old, new) for name, old, new in parts))
