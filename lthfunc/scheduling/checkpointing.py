"""Trainings that are kept while they go on: from time to time, and when they are asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lthfunc.deployment.compaction.compact import same_cuts
from lthfunc.energy.amounts import Metered
from lthfunc.energy.meter import Meter
from lthfunc.energy.phases import Phases
from lthfunc.experiments.config import Config, Interval, parse_interval
from lthfunc.experiments.iterative import Plan, Progress, Round, Task, train_together
from lthfunc.runs.checkpoints import Kept, checkpoints, load_checkpoint, save_checkpoint, step_of
from lthfunc.runs.folder import training_folder
from lthfunc.scheduling.queue import Spent
from lthfunc.scheduling.ranks import check_alike, hand_out, together
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.results import Checkpointer, Observers

#: Whether a run should stop, asked after every step.
Stopping = Callable[[], bool]
#: A checkpoint every so many seconds is written less often where that would take more than this share of the time.
_SHARE = 0.01


def place_of(folder: Path, task: Task) -> Path:
    """Where the files of a training lie."""
    return training_folder(folder, task.seed, task.number, task.variant)


def position_of(folder: Path, task: Task) -> int:
    """The step that a training would go on from."""
    kept = checkpoints(place_of(folder, task))
    return step_of(kept[0]) if kept else int(task.start.step)


def train_kept(
    plan: Plan,
    tasks: Sequence[Task],
    folder: Path,
    config: Config,
    stopping: Stopping,
    observe: Observers | None,
    meter: Meter | None = None,
) -> tuple[list[Round], Spent]:
    """Train tasks that start at the same step, from their checkpoints where they have some.

    Returns their results, and what was spent on each. meter: of energy; what a checkpoint was trained without one stays
    unmetered. Raises Stopped.
    """
    begun = time.perf_counter()
    places = [place_of(folder, task) for task in tasks]
    found = [load_checkpoint(place, plan, task) for place, task in zip(places, tasks, strict=True)]
    kept = [each for each in found if each is not None]
    if len(kept) < len(tasks) or len({int(each.progress.fit.state.step) for each in kept}) > 1:
        kept = []  # one of them is damaged: all of this program begin again
    if config.compact and kept and not _as_compact(plan, tasks[0], kept[0]):
        kept = []
    before = sum(each.seconds for each in kept) / len(tasks)

    def seconds() -> float:
        return before + (time.perf_counter() - begun) / len(tasks)

    phases = None
    if meter is not None and not (kept and kept[0].energy is None):
        per_epoch = steps_per_epoch(len(plan.trainer.data.train.x), plan.trainer.batch_size)
        drawn = kept[0].energy.over(1 / len(tasks)) if kept and kept[0].energy is not None else None
        phases = Phases(meter, per_epoch, drawn)
    writer = _Writer(parse_interval(config.checkpoint_every), places, seconds, phases)
    checkpointer = Checkpointer(writer.keep, stopping, writer.due, writer.pause)
    if phases is not None:
        checkpointer = _metered(checkpointer, phases)
    collectives, so_far = plan.trainer.collectives, [each.progress for each in kept] or None
    hand_out(collectives, tasks, so_far)
    try:
        with together(collectives):
            rounds = train_together(plan, tasks, observe, checkpointer=checkpointer, so_far=so_far)
            check_alike(collectives, rounds)
    finally:
        writer.close()
    return rounds, Spent(seconds(), None if phases is None else phases.as_values(len(tasks)))


def _metered(checkpointer: Checkpointer[Progress], phases: Phases) -> Checkpointer[Progress]:
    """A keeper that also tells a meter what goes on, at the end of each epoch too."""

    def pause(step: int) -> int:
        end, other = phases.epoch_end(step), checkpointer.next_check(step)
        return end if other is None else min(end, other)

    return replace(checkpointer, next_check=pause, on_phase=phases.next)


def _as_compact(plan: Plan, task: Task, kept: Kept) -> bool:
    """Whether what is left out of a network is what was when its training began; its sums would be others else.

    A unit that reads nothing may have died since.
    """
    return same_cuts(plan.model, task.start, kept.progress.fit.state, plan.trainer.data.shape)


class _Writer:
    """Writes checkpoints in a thread of its own, while the steps go on."""

    def __init__(
        self, interval: Interval, places: Sequence[Path], seconds: Callable[[], float], phases: Phases | None
    ) -> None:
        self._interval, self._places, self._seconds, self._phases = interval, places, seconds, phases
        self._thread = ThreadPoolExecutor(1, "lthfunc-checkpoint")
        self._writing: Future[None] | None = None
        self._last, self._cost = time.monotonic(), 0.0

    def pause(self, step: int) -> int | None:
        """The next step at which a checkpoint is due by its number."""
        return self._interval.after(step)

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written now. Raises OSError where the last one could not be."""
        if self._writing is not None and self._writing.done():
            self._finish()
        if self._interval.steps is not None:
            return step % self._interval.steps == 0
        if self._interval.seconds is None or self._writing is not None:
            return False
        return time.monotonic() - self._last >= max(self._interval.seconds, self._cost / _SHARE)

    def keep(self, progress: Sequence[Progress]) -> None:
        """Begin to write, as soon as the last checkpoint is written."""
        self._finish()
        self._last = time.monotonic()
        energy = None if self._phases is None else self._phases.metered().over(len(self._places))
        self._writing = self._thread.submit(self._write, list(progress), self._seconds(), energy)

    def close(self) -> None:
        """Wait for the last checkpoint."""
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
