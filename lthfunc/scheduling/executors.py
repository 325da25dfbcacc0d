"""Trainings side by side, each with a worker of its own somewhere: what a pool of workers is, and its use.

The parent keeps the experiment: it prunes, rewinds, and writes every file but checkpoints, which a worker writes of its
own training. A worker has the same plan or, in another process, makes it from the same settings; it is given the state
that a training starts from, and gives the result back; so it does, bit for bit, what the parent would have done.
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
from lthfunc.experiments.iterative import TICKET, Plan, Round, Task
from lthfunc.experiments.plan import prepare
from lthfunc.scheduling.local import Way
from lthfunc.scheduling.queue import Queue, Result, Spent, in_words, named
from lthfunc.training.malloc import keep_freed_memory
from lthfunc.training.results import Observers, Point, Stopped

#: Seconds between two words of a worker on its progress.
_NEWS = 0.1
#: Seconds that a pool waits for news, after which its user looks whether to stop.
PATIENCE = 0.2

Kind = Literal["step", "done", "stopped", "failed", "ended"]


class News(NamedTuple):
    """Of a training.

    kind: "step" (content: its step and a new point of its curve or None), "done" (its round and what was spent),
    "stopped" (it was asked to, and kept), "failed" (an error), or "ended" (an error: its process is gone).
    """

    task: Task
    kind: Kind
    content: Any


class Pool(Protocol):
    """Workers that train."""

    def room(self) -> bool:
        """Whether another training can be handed in."""

    def busy(self) -> bool:
        """Whether trainings are under way."""

    def train(self, task: Task) -> None:
        """Hand in a training, where there is room."""

    def news(self) -> list[News]:
        """What happened since, after a moment's wait where nothing did."""

    def ask_to_stop(self) -> None:
        """Ask all trainings under way to end after their step, kept."""

    def close(self) -> None:
        """End all workers, however things stand."""


def plan_of_worker(config: Config) -> Plan:
    """The plan of a process that works for another one, which is made ready for it."""
    keep_freed_memory()
    torch.set_num_threads(config.threads or 1)
    return prepare(replace(config, jobs=1)).plan


def attempted(task: Task, train: Callable[[], tuple[list[Round], Spent]]) -> tuple[Kind, Any]:
    """A worker's try at a training: the kind and the content of its last news."""
    try:
        (result,), spent = train()
        return "done", (result, spent)
    except Stopped:
        return "stopped", None
    except UserError as error:
        return "failed", named(task, error)
    except OSError as error:  # a full disk, say
        return "failed", error
    except Exception as error:
        sys.excepthook(*sys.exc_info())
        return "failed", RuntimeError(f"{in_words(task)}: {type(error).__name__}: {error}")


def teller(tell: Callable[[tuple[int, Point | None]], None]) -> Observers:
    """Tells of a training's steps: of every new point of its curve, and at intervals between."""
    told = 0.0

    def observe(number: int, points: Sequence[Point] | None) -> None:
        nonlocal told
        now = time.monotonic()
        point = None if points is None else points[0]
        if point is not None or now - told > _NEWS:
            told = now
            tell((number, point))

    return observe


def by_pool(pool: Pool, way: Way, queue: Queue) -> Generator[Result]:
    """Run a queue on a pool; tickets first, since the next round waits for them.

    However this ends, no worker outlives it. Raises UserError, which names the training, where one fails, and Stopped
    once all workers have kept what they were at.
    """
    stopped = False
    try:
        while (queue.ready and not stopped) or pool.busy():
            if way.stopping() and not stopped:
                stopped = True
                pool.ask_to_stop()
            while queue.ready and not stopped and pool.room():
                task = queue.pop(lambda task: (task.variant != TICKET, task.number, task.seed))
                pool.train(task)
                way.watcher.begin(task, way.plan.end_of(task.start))
            for task, kind, content in pool.news():
                if kind == "step":
                    way.watcher.step(task, *content)
                elif kind == "failed" or (kind == "ended" and not stopped):  # one still starting ends when asked to
                    raise content
                elif kind == "done":
                    round_, spent = content
                    queue.finished(task, round_)
                    yield Result(task, round_, spent)
        if stopped:
            raise Stopped
    finally:
        pool.close()
