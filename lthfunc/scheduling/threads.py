"""Threads of this process as an executor, for trainings that hardly run Python: the sparse engine's.

The engine's machine releases Python's global lock, so threads don't wait for each other. A process would have to import
PyTorch and read the data before it trains; a thread starts at once.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any

import torch

from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Plan
from lthfunc.scheduling.executors import PATIENCE, Event, throttled, try_training
from lthfunc.scheduling.queue import Execution
from lthfunc.sparse.loops import takes_whole_steps
from lthfunc.sparse.sparse_or_dense import always_sparse


def can_share_a_process(config: Config, plan: Plan) -> bool:
    """Whether a run's trainings can be threads: they hardly run Python, and don't use torch's global RNG."""
    trainer = plan.trainer
    return (
        always_sparse(config.engine, trainer.work, trainer.data.shape)
        and takes_whole_steps(trainer.work)
        and not config.compact
        and trainer.data.stream is None  # which may be read with the global generators seeded
    )


class ThreadExecutor:
    """`jobs` threads, which share one plan."""

    def __init__(self, run: Execution, jobs: int) -> None:
        self._jobs, self._under = jobs, 0
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._asked = threading.Event()
        self._run = run._replace(stopping=self._asked.is_set)
        self._threads = ThreadPoolExecutor(
            jobs, "lthfunc-training", initializer=torch.set_num_threads, initargs=(run.config.threads or 1,)
        )

    def room(self) -> bool:
        """Whether a worker is idle."""
        return self._under < self._jobs

    def busy(self) -> bool:
        """Whether one is not."""
        return self._under > 0

    def train(self, task: Any) -> None:
        """Start a training on an idle thread."""
        self._under += 1
        self._threads.submit(self._train, task)

    def events(self) -> list[Event]:
        """The events of all workers that have something to report."""
        found = []
        try:
            found.append(self._events.get(timeout=PATIENCE))
            while True:
                found.append(self._events.get_nowait())
        except Empty:
            self._under -= sum(event.kind != "step" for event in found)
            return found

    def ask_to_stop(self) -> None:
        """Ask all trainings to stop after the current step."""
        self._asked.set()

    def close(self) -> None:
        """End the threads, each of which can only end by itself, after a step."""
        self._asked.set()
        self._threads.shutdown(cancel_futures=True)

    def _train(self, task: Any) -> None:
        report = throttled(lambda said: self._events.put(Event(task, "step", said)))
        self._events.put(Event(task, *try_training(lambda: self._run, task, report)))
