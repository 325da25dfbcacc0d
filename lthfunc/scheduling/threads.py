"""A pool of threads in this process, for trainings that are calls of the sparse engine's machine and little else.

The machine lets other threads run Python meanwhile, so that they don't wait for each other; and a thread, unlike a
process, which must import PyTorch and read the data first, begins at once.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

import torch

from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Plan, Task
from lthfunc.scheduling.checkpointing import train_kept
from lthfunc.scheduling.executors import PATIENCE, News, attempted, teller
from lthfunc.scheduling.local import Way
from lthfunc.sparse.engine import takes_whole_steps
from lthfunc.sparse.sparse_or_dense import always_sparse


def can_share_a_process(config: Config, plan: Plan) -> bool:
    """Whether trainings of a run can be threads: Python has little to do in them, and none draws from torch's global
    generator."""
    trainer = plan.trainer
    return (
        always_sparse(config.engine, plan.model, trainer.data.shape)
        and takes_whole_steps(trainer.loss, trainer.optimizer, augment=bool(config.augment))
        and not config.compact
    )


class Threads:
    """So many workers, which all use one plan."""

    def __init__(self, way: Way, jobs: int) -> None:
        self._way, self._jobs, self._under = way, jobs, 0
        self._said: SimpleQueue[News] = SimpleQueue()
        self._asked = threading.Event()
        self._threads = ThreadPoolExecutor(
            jobs, "lthfunc-training", initializer=torch.set_num_threads, initargs=(way.config.threads or 1,)
        )

    def room(self) -> bool:
        """Whether a worker is idle."""
        return self._under < self._jobs

    def busy(self) -> bool:
        """Whether one is not."""
        return self._under > 0

    def train(self, task: Task) -> None:
        """Give it to an idle one."""
        self._under += 1
        self._threads.submit(self._train, task)

    def news(self) -> list[News]:
        """Of all workers that have something to say."""
        found = []
        try:
            found.append(self._said.get(timeout=PATIENCE))
            while True:
                found.append(self._said.get_nowait())
        except Empty:
            self._under -= sum(news.kind != "step" for news in found)
            return found

    def ask_to_stop(self) -> None:
        """After their step."""
        self._asked.set()

    def close(self) -> None:
        """End them: a thread can't be ended but by itself, which takes a step."""
        self._asked.set()
        self._threads.shutdown(cancel_futures=True)

    def _train(self, task: Task) -> None:
        way = self._way
        tell = teller(lambda said: self._said.put(News(task, "step", said)))
        said = attempted(task, lambda: train_kept(way.plan, [task], way.folder, way.config, self._asked.is_set, tell))
        self._said.put(News(task, *said))
