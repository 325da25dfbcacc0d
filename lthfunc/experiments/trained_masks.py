"""Trainings in which masks are trained: of a network whose weights are computed from something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lthfunc.training.results import BestNetwork, Fit
from lthfunc.training.trainer import Trainer
from lthfunc.trees.types import Buffers, Params, Ticket, TrainState


class TrainedMasks(NamedTuple):
    """A network that is trained in place of a plan's (`lf.parametrized`).

    trainer: of it. begin: (the plan's network at the start, seed) -> its state at the same step. ticket: (its params,
    its buffers, the plan's network at the start) -> the plan's network with the masks that they stand for. dense:
    whether its steps compute with all weights, as while masks are looked for, or with those of the start's masks.
    """

    trainer: Trainer
    begin: Callable[[TrainState, int], TrainState]
    ticket: Callable[[Params, Buffers, TrainState], Ticket]
    dense: bool = True

    def finished(self, fit: Fit, start: TrainState) -> Fit:
        """A fit of it as one of the plan's network."""
        last = self.ticket(fit.state.params, fit.state.buffers, start)
        best = self.ticket(fit.best.params, fit.best.buffers, start)
        state = TrainState(last.params, last.buffers, last.masks, (), fit.state.step)
        return fit._replace(state=state, best=BestNetwork(fit.best.point, best.params, best.buffers))
