"""Executors: workers that train concurrently, and how a queue runs on them.

The parent prunes, rewinds, and writes every file except checkpoints, which a worker writes for its own training. A
worker has the same plan or, in another process, makes it from the same settings. It receives the state that a training
starts from and returns the result, so its results have the bits that the parent's would have.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol

import torch

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.queue import Execution, Queue, Result, Workload, with_description
from lthfunc.training.malloc import keep_freed_memory
from lthfunc.training.results import Observers, Point, Stopped

#: Seconds between two reports of a worker's progress.
_REPORT_EVERY = 0.1
#: Seconds that an executor waits for events before its caller checks whether to stop.
PATIENCE = 0.2

EventKind = Literal["step", "done", "stopped", "failed", "lost"]


class Event(NamedTuple):
    """What happened to a training.

    kind: "step" (content: its step, and a new point of its curve or None), "done" (its result and cost), "stopped" (on
    request, with a checkpoint), "failed" (an error), or "lost" (an error: its process is gone).
    """

    task: Any
    kind: EventKind
    content: Any


class Executor(Protocol):
    """Workers that train."""

    def room(self) -> bool:
        """Whether a worker is idle."""

    def busy(self) -> bool:
        """Whether any training is unfinished."""

    def train(self, task: Any) -> None:
        """Start a training; there must be room."""

    def events(self) -> list[Event]:
        """The events since the last call, after a short wait if there are none."""

    def ask_to_stop(self) -> None:
        """Ask all unfinished trainings to stop after the current step, with a checkpoint."""

    def close(self) -> None:
        """End all workers, whatever they are doing."""


def worker_context(workload: Workload, config: Config) -> Any:
    """What all trainings share, in a worker process, which this also prepares."""
    keep_freed_memory()
    torch.set_num_threads(config.threads or 1)
    return workload.context(replace(config, jobs=1))


def try_training(run: Callable[[], Execution], task: Any, observe: Observers) -> tuple[EventKind, Any]:
    """Run a training in a worker; returns kind and content of its last event. run: created by the first call."""
    try:
        (value,), cost = train_with_checkpoints(run(), [task], observe)
        return "done", (value, cost)
    except Stopped:
        return "stopped", None
    except UserError as error:
        return "failed", with_description(task, error)
    except OSError as error:  # e.g. a full disk
        return "failed", error
    except Exception as error:
        sys.excepthook(*sys.exc_info())
        return "failed", RuntimeError(f"{task.description}: {type(error).__name__}: {error}")


def throttled(report: Callable[[tuple[int, Point | None]], None]) -> Observers:
    """Report every new point of a training's curve, and its steps at intervals."""
    last = 0.0

    def observe(number: int, points: Sequence[Point] | None) -> None:
        nonlocal last
        now = time.monotonic()
        point = None if points is None else points[0]
        if point is not None or now - last > _REPORT_EVERY:
            last = now
            report((number, point))

    return observe


def run_on(executor: Executor, run: Execution, queue: Queue) -> Generator[Result]:
    """Run a queue on an executor, tickets first, since the next round waits for them.

    No worker outlives this, however it ends. Raises UserError, which names the training, if one fails, and Stopped once
    all workers have written their checkpoints.
    """
    stopped = False
    try:
        while (queue.ready and not stopped) or executor.busy():
            if run.stopping() and not stopped:
                stopped = True
                executor.ask_to_stop()
            while queue.ready and not stopped and executor.room():
                task = queue.pop(lambda task: (task.variant != TICKET, task.number, task.seed))
                executor.train(task)
                run.watcher.begin(task, run.workload.end(run.context, task))
            for task, kind, content in executor.events():
                if kind == "step":
                    run.watcher.step(task, *content)
                elif kind == "failed" or (kind == "lost" and not stopped):  # also ends one that is still starting
                    raise content
                elif kind == "done":
                    queue.finished(task, content[0])
                    yield Result(task, *content)
        if stopped:
            raise Stopped
    finally:
        executor.close()
