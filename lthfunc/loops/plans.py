"""Plans of somebody's loop: what a round does to the network, and the steps at which rounds begin."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from lthfunc.argument_hints import described, hint, uncalled
from lthfunc.argument_kinds import is_whole
from lthfunc.errors import ArgumentError, UserError, invalid
from lthfunc.trees.types import TrainState

#: A change of the network: ``state -> state``, or ``state, gradient -> state`` for one that the dense gradient of the
#: step before it decides.
Change = Callable[..., TrainState]
#: What every round does, or the step before which each round begins by itself, and what it does.
LoopPlan = Change | Sequence[tuple[int, Change]]
#: (pruned network, anchor) -> what is trained.
Rewind = Callable[[TrainState, TrainState], TrainState]


def takes_gradient(change: Change) -> bool:
    """Whether a change is called with the gradient."""
    return "gradient" in inspect.signature(change).parameters


def checked_plan(where: str, plan: Any) -> LoopPlan:
    """The plan, whose list is copied. Raises UserError where it is neither a change nor a list of (step, change).

    where: begins the error.
    """
    if callable(plan) and not uncalled(plan, "Transformation"):
        if takes_gradient(plan):
            raise UserError(f"{where}: plan takes the gradient, so it needs steps: a list of (step, transformation)")
        own: Change = plan
        return own
    pairs = list(plan) if isinstance(plan, Sequence) and not isinstance(plan, str) else [plan]
    for pair in pairs:
        fits = isinstance(pair, tuple) and len(pair) == 2 and is_whole(pair[0]) and callable(pair[1])
        change = pair[1] if fits else pair
        if not fits or uncalled(change, "Transformation"):
            wanted = "a transformation, such as lf.prune(fraction=0.2), or a list of (step, transformation)"
            helps = hint(change, "Transformation")
            raise ArgumentError(
                f"{where}: plan must be {wanted}, not {described(change)}" + (f"; {helps}" if helps else "")
            )
    steps = [int(step) for step, _ in pairs]
    if any(step < 0 for step in steps):
        raise invalid(f"{where}: plan", min(steps), "steps of at least 0")
    return pairs


def begun(plan: LoopPlan, rounds: int) -> list[int] | None:
    """The steps at which the first rounds of a plan begin; None where it has no steps."""
    return None if callable(plan) else [step for step, _ in plan[:rounds]]


def check_begun(where: str, plan: LoopPlan, rounds: int, steps: list[int] | None) -> None:
    """Raise UserError where a plan cannot have begun so many rounds at these steps. where: begins the error."""
    if not callable(plan) and rounds > len(plan):
        raise UserError(f"{where}: it is in round {rounds} of a plan that has {len(plan)}")
    ours = begun(plan, rounds)
    if steps != ours:
        theirs, ours_too = ("without steps" if each is None else f"at {each}" for each in (steps, ours))
        raise UserError(f"{where}: it is of another plan: its rounds began {theirs}, those of this one {ours_too}")
