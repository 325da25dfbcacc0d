"""A method's course with one seed: stages of training, each followed by a change of the network, and a last training.

A course can only be interrupted within its trainings, where it holds a few trees, so it can resume from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lthfunc.experiments.courses.context import MethodContext, Outcome, tested
from lthfunc.experiments.iterative import Progress
from lthfunc.experiments.rewinding_and_controls import end_of
from lthfunc.training.loop import fit_together
from lthfunc.training.results import BestNetwork, Checkpointer, Fit, Observers, Point
from lthfunc.training.session import TrainingSession
from lthfunc.training.trainer import Trainer
from lthfunc.trees.types import Buffers, Masks, Params, Ticket, TrainState


class Carry(NamedTuple):
    """The state of a course: its network, what that may be rewound to, and the masks that it compares."""

    state: TrainState
    anchor: TrainState | None = None
    recent: tuple[Masks, ...] = ()


class Stage(NamedTuple):
    """Train to a step (not at all if the network is there already), then change the state of the course."""

    until: Callable[[Carry], int]
    then: Callable[[Carry], Carry]


class Course(NamedTuple):
    """Where a method starts, its stages, and the trainer of all its steps.

    ticket: (params and buffers that validation chose, masks) -> the method's final network.
    """

    start: Carry
    trainer: Trainer
    stages: Sequence[Stage] = ()
    ticket: Callable[[Params, Buffers, Masks], Ticket] = Ticket


@dataclass(frozen=True)
class Method:
    """A method of the field, as a function of a context and a seed. course: the same arguments -> its course."""

    course: Callable[[MethodContext, int], Course]

    def __call__(self, context: MethodContext, seed: int) -> Outcome:
        """Follow the course to its end."""
        return follow(context, seed, self.course(context, seed))


def follow(
    context: MethodContext,
    seed: int,
    course: Course,
    observe: Observers | None = None,
    checkpointer: Checkpointer[Progress] | None = None,
    so_far: Progress | None = None,
) -> Outcome:
    """Run a course, from its start or from a checkpoint. observe: called with the steps of all its trainings together.

    Raises Stopped if the checkpointer requests it.
    """
    carry, first, offset, fit = course.start, 0, -int(course.start.state.step), None
    if so_far is not None:
        fit, first, offset = so_far.fit, so_far.stage, so_far.offset
        carry = Carry(fit.state, so_far.anchor, so_far.recent)
    trainer = course.trainer
    for number in range(first, len(course.stages)):
        until, then = course.stages[number]
        end, saver = until(carry._replace(state=_begun(carry, fit))), _of_fits(checkpointer, carry, number, offset)
        if end > int(carry.state.step):
            state = train_to(trainer, carry.state, seed, end, _shifted(observe, offset), saver, fit)
            carry = carry._replace(state=state)
        before, fit = int(carry.state.step), None
        carry = then(carry)
        offset += before - int(carry.state.step)
    end = end_of(_begun(carry, fit), context.steps)
    (fit,) = fit_together(
        trainer, [carry.state], seeds=[seed], until=end, eval_every=context.eval_every,
        observe=_shifted(observe, offset), so_far=None if fit is None else [fit],
        checkpointer=_of_fits(checkpointer, carry, len(course.stages), offset),
    )  # fmt: skip
    chosen = fit.best
    return tested(context, course.ticket(chosen.params, chosen.buffers, carry.state.masks), offset + end)


def _begun(carry: Carry, fit: Fit | None) -> TrainState:
    """The network at the step at which its training started, which determines the training's length."""
    state = carry.state
    return state if fit is None else state._replace(step=torch.full_like(state.step, fit.curve[0].step))


def train_to(
    trainer: Trainer,
    state: TrainState,
    seed: int,
    until: int,
    observe: Observers | None,
    checkpointer: Checkpointer[Fit] | None,
    so_far: Fit | None,
) -> TrainState:
    """Train to a step, without evaluations on the validation split."""
    if so_far is None:
        point = Point(int(state.step), math.nan, math.nan, math.nan)
        so_far = Fit(state, BestNetwork(point, state.params, state.buffers), (point,))
    if checkpointer is not None:
        checkpointer.on_phase("preparation", int(state.step))
    since = [so_far.since]
    with TrainingSession(
        trainer, [state], [seed], until, since=since, observe=observe, checkpointer=checkpointer
    ) as session:
        session.to(until, [so_far])
        return session.now()[0][0]


def _of_fits(
    checkpointer: Checkpointer[Progress] | None, carry: Carry, number: int, offset: int
) -> Checkpointer[Fit] | None:
    """A course's checkpointer as one of the training in its stage of this number."""
    if checkpointer is None:
        return None
    return checkpointer.of(lambda fits: [Progress(fit, carry.anchor, number, offset, carry.recent) for fit in fits])


def _shifted(observe: Observers | None, offset: int) -> Observers | None:
    """An observer that receives the steps of all trainings together."""
    return None if observe is None else lambda number, points: observe(offset + number, points)
