"""A training's program: on lanes of tokens where batches are of few sequences, else on lanes of examples."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from torch import Tensor

from lthfunc.sparse.capture import captured
from lthfunc.sparse.program import Epilogue, Lowered, Program, Stored, builder_for, lower
from lthfunc.sparse.python_losses import computes_loss
from lthfunc.sparse.sequence_inputs import length_of
from lthfunc.sparse.token_lanes import training_on_lanes
from lthfunc.sparse.updates import machine_numbers
from lthfunc.training.engines.interface import Work
from lthfunc.trees.types import TrainState


class Programs(threading.local):
    """Makes a training's program; keeps the last, since controls and continued trainings have the same masks.

    Each thread has its own.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._last: tuple[Lowered, object] | None = None

    def program(
        self, state: TrainState, batch: int, stored: Stored, positions: Mapping[str, Tensor] | None = None
    ) -> Program:
        """For networks under this state's masks. positions: where their survivors lie, if that is known."""
        work, last = self._work, self._last
        if last is not None and last[1] == (batch, stored) and last[0].program.fits(state.buffers):
            lowered = last[0]
            if lowered.move_to(lowered.program.positions_under(state.masks) if positions is None else positions):
                return lowered.program
        loss, update = "cross_entropy" if computes_loss(work) else None, machine_numbers(work.optimizer)
        epilogue = Epilogue(loss, True, update or ())
        made = self._on_lanes_of_tokens(state, batch, stored, epilogue, positions) or lower(
            captured(work.model, stored.shape, training=True), state.params, state.buffers, state.masks, batch=batch,
            stored=stored, epilogue=epilogue, positions=positions, builder=builder_for(work.precision),
        )  # fmt: skip
        self._last = made, (batch, stored)
        return made.program

    def _on_lanes_of_tokens(
        self, state: TrainState, batch: int, stored: Stored, epilogue: Epilogue, positions: Mapping[str, Tensor] | None
    ) -> Lowered | None:
        """The program where tokens take the lanes; None where examples do."""
        length = length_of(self._work.model, stored)
        if length is None or epilogue.loss is None or self._work.augment is not None:
            return None
        return training_on_lanes(self._work.model, state, batch, length, epilogue, positions)
