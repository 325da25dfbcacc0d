"""Learning-rate schedules of somebody's loop, which go back where training goes back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from lthfunc.errors import UserError
from lthfunc.loops.torch_optimizers import groups, hyperparameters


class Schedules:
    """The schedules at the steps that training may return to, with the learning rates and momenta that they set.

    noted: step -> what they held; due: the step that training has returned to, until its next step.
    """

    def __init__(self, schedulers: Sequence[Any], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._schedulers, self._optimizers = schedulers, optimizers
        self.noted: dict[int, Any] = {}
        self.due: int | None = None

    def before_step(self, step: int, *, note: bool) -> None:
        """Note the schedules, or return to what was noted, where a round began since the last step.

        They did so when it began, but a loop may advance its schedules after that.
        """
        if self.due is not None:
            self.rewind(self.due)
            self.due = None
        elif note and step not in self.noted:
            states = [copy.deepcopy(scheduler.state_dict()) for scheduler in self._schedulers]
            self.noted[step] = {"schedulers": states, "groups": hyperparameters(self._optimizers)}

    def check(self, step: int) -> None:
        """Raise UserError for a step that can't be returned to."""
        if self._schedulers and step not in self.noted:
            raise UserError(f"scheduler: its state at step {step} is unknown (known: {[*self.noted]})")

    def rewind(self, step: int) -> None:
        """Return to a step, now and once more before the next one."""
        if not self._schedulers:
            return
        saved, self.due = copy.deepcopy(self.noted[step]), step
        for scheduler, state in zip(self._schedulers, saved["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        for group, values in zip(groups(self._optimizers), saved["groups"], strict=True):
            group.update(values)
