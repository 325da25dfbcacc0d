"""A pool of processes on this machine's CPU, each with its own threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Task
from lthfunc.scheduling.executors import PATIENCE, News
from lthfunc.scheduling.local import Way
from lthfunc.scheduling.queue import in_words
from lthfunc.scheduling.worker_start import start


class Processes:
    """So many workers, which begin when this is made."""

    def __init__(self, way: Way, jobs: int) -> None:
        self._workers = [_Worker(way.config, way.folder) for _ in range(jobs)]

    def room(self) -> bool:
        """Whether a worker is idle."""
        return any(worker.task is None for worker in self._workers)

    def busy(self) -> bool:
        """Whether one is not."""
        return any(worker.task is not None for worker in self._workers)

    def train(self, task: Task) -> None:
        """Give it to an idle one."""
        next(worker for worker in self._workers if worker.task is None).train(task)

    def news(self) -> list[News]:
        """Of all workers that have something to say."""
        ready = wait([worker.pipe for worker in self._workers if worker.task is not None], PATIENCE)
        return [worker.news() for worker in self._workers if worker.pipe in ready]

    def ask_to_stop(self) -> None:
        """By a signal that they take as a request."""
        for worker in self._workers:
            worker.process.terminate()

    def close(self) -> None:
        """End them: all their files are whole at any moment."""
        for worker in self._workers:
            worker.stop()


class _Worker:
    """A process, and the end of the pipe that leads to it."""

    def __init__(self, config: Config, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=start, args=(theirs, config, folder, str(Path.cwd())), name="lthfunc-worker", daemon=True
        )
        with _ignoring_interrupts():  # which the process inherits: its imports take seconds
            self.process.start()
        theirs.close()
        self.task: Task | None = None

    def train(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # a process that ended is found out by `news`
            self.pipe.send_bytes(pickle.dumps(task))

    def news(self) -> News:
        task = self.task
        assert task is not None
        try:
            kind, content = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.task = None
            reason = _how_it_ended(self.process.exitcode)
            return News(task, "ended", UserError(f"{in_words(task)}: its process {reason}; lthfunc resume goes on"))
        if kind != "step":
            self.task = None
        return News(task, kind, content)

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    return f"ended with exit code {code}"
