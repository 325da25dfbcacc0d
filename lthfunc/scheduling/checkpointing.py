"""Trainings with checkpoints, at intervals and when they are asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from lthfunc.deployment.compaction.compact import same_cuts
from lthfunc.energy.amounts import Metered
from lthfunc.energy.meter import Phases
from lthfunc.experiments.config import Interval, parse_interval
from lthfunc.experiments.iterative import Progress
from lthfunc.runs.checkpoints import checkpoints, load_checkpoint, save_checkpoint, step_of
from lthfunc.scheduling.queue import Execution, TrainingCost, place_of
from lthfunc.scheduling.ranks import broadcast_training, check_same_networks, naming_lost_ranks
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.packed_fits import dense_fit
from lthfunc.training.results import Checkpointer, Observers
from lthfunc.trees.packed_states import dense_state

#: Checkpoints at an interval in seconds are written less often if they would take more than this share of the time.
_SHARE = 0.01


def resume_step(folder: Path | None, task: Any) -> int:
    """The step from which a training would resume."""
    found = [] if folder is None else checkpoints(place_of(folder, task))
    return step_of(found[0]) if found else int(task.start.step)


def train_with_checkpoints(
    run: Execution, tasks: Sequence[Any], observe: Observers | None = None
) -> tuple[list[Any], TrainingCost]:
    """Train tasks that start at the same step, from their checkpoints if they have any.

    Returns their results and costs. If a checkpoint was written without a meter, the energy remains unknown.
    Raises Stopped.
    """
    begun = time.perf_counter()
    context, count = run.context, len(tasks)
    beginnings = [run.workload.begin(context, task) for task in tasks]
    trainer = beginnings[0].trainer
    phases = None
    if run.meter is not None:
        phases = Phases(run.meter, steps_per_epoch(trainer.data.examples, trainer.batch_size))
    places = [place for task in tasks if (place := run.place(task)) is not None]
    found = [
        load_checkpoint(place, each.start, each.trainer.work.optimizer)
        for place, each in zip(places, beginnings, strict=False)
    ]
    saved = [each for each in found if each is not None]
    if len(saved) < count or len({int(each.progress.fit.state.step) for each in saved}) > 1:
        saved = []  # one of them is damaged: all trainings of this program start again
    if run.config.compact and saved:
        now = dense_fit(saved[0].progress.fit).state
        # A unit may have died since the start; with other units removed, sums would be in another order.
        start = dense_state(beginnings[0].start)
        saved = saved if same_cuts(trainer.work.model, start, now, trainer.data.shape) else []
    before = sum(each.seconds for each in saved) / count

    def seconds() -> float:
        return before + (time.perf_counter() - begun) / count

    if saved and saved[0].energy is None:
        phases = None
    elif phases is not None and saved and saved[0].energy is not None:
        phases.resume(saved[0].energy.over(1 / count))
    interval = parse_interval(run.config.checkpoint_every)
    writer = _CheckpointWriter(interval, places, seconds, phases)
    checkpointer = Checkpointer(writer.write, run.stopping, writer.due, interval.after, packed=True)
    if phases is not None:
        checkpointer = _metered(checkpointer, phases)
    collectives, so_far = trainer.work.collectives, [each.progress for each in saved] or None
    broadcast_training(collectives, tasks, so_far)
    try:
        with naming_lost_ranks(collectives):
            values = run.workload.train(context, tasks, beginnings, observe, checkpointer, so_far)
            check_same_networks(collectives, values)
    finally:
        writer.close()
    return values, TrainingCost(seconds(), None if phases is None else phases.as_values(count))


def _metered(checkpointer: Checkpointer[Progress], phases: Phases) -> Checkpointer[Progress]:
    """A checkpointer that also reports phases to a meter, and the end of each epoch."""

    def pause(step: int) -> int:
        end, other = phases.epoch_end(step), checkpointer.next_check(step)
        return end if other is None else min(end, other)

    return replace(checkpointer, next_check=pause, on_phase=phases.next)


class _CheckpointWriter:
    """Writes checkpoints in a separate thread during the next steps. places: a folder for each training, or none."""

    def __init__(
        self, interval: Interval, places: Sequence[Path], seconds: Callable[[], float], phases: Phases | None
    ) -> None:
        self._interval, self._places, self._seconds, self._phases = interval, places, seconds, phases
        self._thread = ThreadPoolExecutor(1, "lthfunc-checkpoint")
        self._writing: Future[None] | None = None
        self._last, self._cost = time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written now. Raises OSError if the last one could not be written."""
        if self._writing is not None and self._writing.done():
            self._finish()
        if self._interval.steps is not None:
            return step % self._interval.steps == 0
        if self._interval.seconds is None or self._writing is not None:
            return False
        return time.monotonic() - self._last >= max(self._interval.seconds, self._cost / _SHARE)

    def write(self, progress: Sequence[Progress]) -> None:
        """Start to write, once the last checkpoint is written."""
        self._finish()
        self._last = time.monotonic()
        if self._places:
            energy = None if self._phases is None else self._phases.metered().over(len(self._places))
            self._writing = self._thread.submit(self._write, list(progress), self._seconds(), energy)

    def close(self) -> None:
        """Wait until the last checkpoint is written."""
        try:
            self._finish()
        finally:
            self._thread.shutdown()

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, progress: Sequence[Progress], seconds: float, energy: Metered | None) -> None:
        begun = time.monotonic()
        for place, each in zip(self._places, progress, strict=True):
            save_checkpoint(place, each, seconds, energy)
        self._cost = time.monotonic() - begun
