"""Energy of trainings by phase and epoch."""

from __future__ import annotations

from typing import Any

from lthfunc.energy.amounts import Metered, as_values, nothing_yet
from lthfunc.energy.meter import Meter


class Phases:
    """Reads a meter when a training goes over to something else.

    per_epoch: steps of an epoch.
    """

    def __init__(self, meter: Meter, per_epoch: int) -> None:
        self._meter, self._per_epoch = meter, per_epoch
        self._metered = nothing_yet()
        self._now, self._epoch = "preparation", 0
        meter.lap()  # discards what was drawn before this training

    def next(self, phase: str, step: int) -> None:
        """The training enters, or continues, a phase at a step."""
        epoch = step // self._per_epoch
        if phase == self._now and (phase != "training" or epoch == self._epoch):
            return
        self._read()
        self._now, self._epoch = phase, epoch

    def resume(self, earlier: Metered) -> None:
        """Count from what the training had drawn before its checkpoint."""
        self._metered = earlier

    def epoch_end(self, step: int) -> int:
        """The step at which the epoch of a step ends."""
        return step - step % self._per_epoch + self._per_epoch

    def metered(self) -> Metered:
        """What was drawn so far."""
        self._read()
        return self._metered

    def as_values(self, trainings: int) -> dict[str, Any]:
        """Plain values for files: the share of each of the trainings that run as one program, and the source."""
        source = self._meter.source
        about = {"source": source.how, "country": source.country, "assumed": source.assumed}
        return {**about, **as_values(self.metered().over(trainings))}

    def _read(self) -> None:
        self._metered = self._metered.with_lap(self._meter.lap(), self._now, self._epoch)
