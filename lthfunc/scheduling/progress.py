"""The progress of a run, for other processes that read its folder.

``.progress.json``: ``{"time": …, "done": steps, "total": steps, "left": seconds, "metric": …, "trainings": [{"seed",
"round", "variant", "density", "start", "at", "stop", "rate", "point"}, …]}``; it exists while a process works on the
run, and is never written within a step.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lthfunc.errors import DamagedError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Plan, Task
from lthfunc.experiments.records import Record
from lthfunc.runs import safe_files
from lthfunc.runs.folder import PROGRESS, Name
from lthfunc.runs.side_file_schemas import Progress, content_of
from lthfunc.scheduling.execute import trainings_ahead
from lthfunc.scheduling.forecast import Pace, Seen, pace_of, seconds_left
from lthfunc.scheduling.queue import Watcher
from lthfunc.sparse.cost_model import cost_of_teachers, relative_time
from lthfunc.training.results import Point
from lthfunc.trees.ops import whole
from lthfunc.trees.packed_states import counts_of

if TYPE_CHECKING:
    from lthfunc.runs.mirror import Mirror

#: Seconds between two reports, and between two uploads.
_EVERY, _UPLOAD_EVERY = 1.0, 20.0
#: Most bytes of such a file.
_MOST = 10_000_000


class AllWatchers(Watcher):
    """Passes everything on to several watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        for name in ("total", "begin", "step", "end"):
            setattr(self, name, partial(_tell, [getattr(each, name) for each in watchers]))


def _tell(listeners: Sequence[Callable[..., None]], *event: Any) -> None:
    for each in listeners:
        each(*event)


class Uploads(Watcher):
    """Uploads a run to its address after every training, and at intervals for its checkpoints."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._last = mirror, time.monotonic()
        self._thread: threading.Thread | None = None

    def total(self, steps: int) -> None:
        self._upload()

    def step(self, task: Task, number: int, point: Point | None) -> None:
        if time.monotonic() - self._last > _UPLOAD_EVERY:
            self._upload()

    def end(self, task: Task, item: Record) -> None:
        self._upload()

    def _upload(self) -> None:
        """Upload during training, unless the last upload is still running; failures are retried later."""
        self._last = time.monotonic()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._quietly, name="lthfunc-mirror", daemon=True)
            self._thread.start()

    def _quietly(self) -> None:
        with suppress(Exception):
            self._mirror.send()


class Outlook(NamedTuple):
    """What is known of a run before it starts.

    steps: of each training ahead. workers: trainings at once. density: of a round -> as planned. cost: the share of
    its weights that each layer keeps -> the time of a step, in units of the dense network's. earlier: times of
    trainings that an interrupted run has finished. metric: the run's.
    """

    steps: Mapping[Name, int]
    workers: int
    density: Callable[[int], float]
    cost: Callable[[Mapping[str, float]], float]
    earlier: Sequence[Seen] = ()
    metric: str = "accuracy"


def outlook_of(config: Config, plan: Plan, workers: int, records: Sequence[Record]) -> Outlook:
    """The outlook of a run with these finished trainings."""

    shape, sparse = plan.trainer.data.shape, config.engine.startswith("sparse")
    beside = cost_of_teachers(plan.trainer.work.loss, shape) if sparse else 0.0

    def cost(kept: Mapping[str, float]) -> float:
        return relative_time(config.engine, plan.model, shape, kept, beside)

    steps = {name: plan.steps_of(*name[1:]) for name in trainings_ahead(config, plan, records)}
    earlier = [
        Seen(taken, 0.0, item["seconds"], 0.0, cost({name: each["density"] for name, each in item["layers"].items()}))
        for item in records
        if (taken := item["final_step"] - item["curve"][0][0]) > 0 and item["seconds"] > 0
    ]
    return Outlook(steps, workers, plan.density_of, cost, earlier, config.metric)


@dataclass
class _UnderWay:
    """An unfinished training.

    first, last: (time, step) of its first step in this process, time of its last. evaluated: (time, step) of its last
    evaluation's end.
    """

    task: Task
    density: float
    start: int
    stop: int
    at: int
    begun: float
    cost: float
    first: tuple[float, int] | None = None
    last: float = 0.0
    evaluated: tuple[float, int] | None = None
    point: Point | None = None

    @property
    def rate(self) -> float | None:
        """Steps per second."""
        if self.first is None or self.at == self.first[1] or self.last <= self.first[0]:
            return None
        return (self.at - self.first[1]) / (self.last - self.first[0])


class Tracker(Watcher):
    """How far a run is, and the time that it still takes."""

    def __init__(self, outlook: Outlook, clock: Callable[[], float] = time.monotonic) -> None:
        self._outlook, self._clock = outlook, clock
        self._ahead = dict(outlook.steps)
        self._under: dict[Name, _UnderWay] = {}
        self._seen: list[Seen] = []
        self._kept: tuple[int, dict[str, float]] = (-1, {})  # of the latest round so far
        self._total = self._before = 0
        self._left: tuple[float, float | None] = (float("-inf"), None)  # when it was computed last

    def total(self, steps: int) -> None:
        self._total = steps

    def begin(self, task: Task, stop: int) -> None:
        start, now = int(task.start.step), self._clock()
        layers = counts_of(task.start)
        kept = {name: layer.density for name, layer in layers.items()}
        self._ahead.pop(task.key, None)
        self._kept = max(self._kept, (task.number, kept), key=lambda each: each[0])
        cost, share = self._outlook.cost(kept), whole(layers.values()).density
        self._under[task.key] = _UnderWay(task, share, start, stop, start, now, cost)

    def step(self, task: Task, number: int, point: Point | None) -> None:
        under, now = self._under[task.key], self._clock()
        under.at, under.last = number, now
        if under.first is None:
            under.first = now, number
        if point is not None:
            under.point, under.evaluated = point, (now, number)

    def end(self, task: Task, item: Record) -> None:
        under = self._under.pop(task.key)
        self._before += under.stop - under.start
        if under.rate is not None:
            self._seen.append(_seen(under, self._clock() - under.last))

    def is_under_way(self, seed: int, number: int) -> bool:
        """Whether a training of a seed's round has not ended yet."""
        return any(name[:2] == (seed, number) for name in (*self._ahead, *self._under))

    def snapshot(self) -> dict[str, Any]:
        """The progress as plain values, as in ``.progress.json``."""
        under, now = list(self._under.values()), self._clock()
        if now - self._left[0] >= _EVERY:
            self._left = now, self.seconds_left()
        done = self._before + sum(each.at - each.start for each in under)
        return {
            "time": time.time(), "done": done, "total": self._total, "left": self._left[1],
            "metric": self._outlook.metric, "trainings": [_plain(each) for each in under],
        }  # fmt: skip

    def seconds_left(self) -> float | None:
        """The time that the run still takes; None before the first steps."""
        under, workers, now = list(self._under.values()), self._outlook.workers, self._clock()
        seen = self._seen or [_seen(each, 0.0) for each in under if each.rate] or list(self._outlook.earlier)
        if not seen:
            return None
        pace = pace_of(seen, workers)
        waiting = dict(self._ahead)  # another thread may draw this
        costs = {number: self._cost_of(number) for number in {name[1] for name in waiting}}
        ahead = {name: pace.training(steps, costs[name[1]]) for name, steps in waiting.items()}
        return seconds_left(ahead, {each.task.key: _left(each, pace, now) for each in under}, workers)

    def _cost_of(self, number: int) -> float:
        """The cost of a step in a later round, in which layers go on losing weights as before (at first, alike)."""
        latest, kept = self._kept
        planned, before = self._outlook.density(number), self._outlook.density(max(0, latest))
        if before == 1:
            return self._outlook.cost(dict.fromkeys(kept, planned))
        power = math.log(planned) / math.log(before)
        return self._outlook.cost({name: share**power for name, share in kept.items()})


def _seen(under: _UnderWay, back: float) -> Seen:
    assert under.first is not None
    (first, step), last = under.first, under.last
    return Seen(under.at - step, first - under.begun, last - first, back, under.cost)


def _left(under: _UnderWay, pace: Pace, now: float) -> float:
    """Seconds until a training ends: at its own rate once it has one, before that as expected.

    Counted from the end of its last evaluation, since the steps after it don't know yet what the next one takes.
    """
    if under.first is None or under.stop == under.start:
        return max(0.0, pace.training(under.stop - under.start, under.cost) - (now - under.begun))
    time, step = under.evaluated or (under.last, under.at)
    seconds, done, taken = pace.step(under.cost), step - under.first[1], time - under.first[0]
    if done > 0 and taken > 0:
        share = (step - under.start) / (under.stop - under.start)
        seconds = share * taken / done + (1 - share) * seconds
    return max(0.0, (under.stop - step + pace.back) * seconds - (now - time))


def _plain(under: _UnderWay) -> dict[str, Any]:
    task, point = under.task, under.point
    figures = None if point is None else {"step": point.step, "loss": point.val_loss, "accuracy": point.val_accuracy}
    return {
        "seed": task.seed, "round": task.number, "variant": task.variant, "density": under.density,
        "start": under.start, "at": under.at, "stop": under.stop, "rate": under.rate,
        "point": figures,
    }  # fmt: skip


class _Broadcast(Watcher):
    """Writes the progress of the trainings, about once per second."""

    def __init__(self, path: Path, tracker: Tracker) -> None:
        self._path, self._tracker = path, tracker
        self._written = float("-inf")

    def total(self, steps: int) -> None:
        self._write()

    def begin(self, task: Task, stop: int) -> None:
        self._write()

    def step(self, task: Task, number: int, point: Point | None) -> None:
        if time.monotonic() - self._written > _EVERY:
            self._write()

    def end(self, task: Task, item: Record) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with suppress(OSError):  # no reason to end a training
            payload = json.dumps(self._tracker.snapshot()).encode()
            safe_files.write(self._path.parent, self._path, payload, durable=False)


@contextmanager
def broadcasting(folder: Path, tracker: Tracker, watchers: Sequence[Watcher]) -> Iterator[Watcher]:
    """The tracker and the watchers as one, which also writes to the folder during this context."""
    path = folder / PROGRESS
    try:
        yield AllWatchers([tracker, *watchers, _Broadcast(path, tracker)])
    finally:
        with suppress(OSError):
            safe_files.remove(folder, path)


def progress(folder: Path) -> dict[str, Any] | None:
    """The latest progress; None if no process works on the run, or its file is incomplete."""
    try:
        return content_of(Progress, safe_files.read(folder, folder / PROGRESS, _MOST))
    except (OSError, DamagedError):
        return None
