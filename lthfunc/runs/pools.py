"""Trainings side by side, each in a process of its own somewhere: what a pool of such processes is, and its use.

The parent keeps the experiment: it prunes, rewinds, and writes every file but checkpoints, which a worker writes of its
own training. A worker makes the same plan from the same settings, is sent the state that a training starts from, and
sends the result back; so it does, bit for bit, what the parent would have done.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal, NamedTuple, Protocol

from lthfunc.experiments.iterative import TICKET, Task
from lthfunc.runs.together import Way
from lthfunc.runs.trainings import Queue, Result
from lthfunc.training.fits import Stopped


class News(NamedTuple):
    """Of a training.

    kind: "step" (content: its step and a new point of its curve or None), "done" (its round and what was spent),
    "stopped" (it was asked to, and kept), "failed" (an error), or "ended" (an error: its process is gone).
    """

    task: Task
    kind: Literal["step", "done", "stopped", "failed", "ended"]
    content: Any


class Pool(Protocol):
    """Processes that train."""

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
        """End all processes, however things stand."""


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
