"""Processes on this machine as an executor, each with its own threads."""

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
from typing import Any

from lthfunc.errors import UserError
from lthfunc.scheduling.executors import PATIENCE, Event
from lthfunc.scheduling.queue import Execution
from lthfunc.scheduling.worker_start import start


class ProcessExecutor:
    """`jobs` processes, which start when this is created."""

    def __init__(self, run: Execution, jobs: int) -> None:
        given = pickle.dumps((run.config, run.folder, run.workload, str(Path.cwd())))
        self._workers = [_Worker(given, run.again) for _ in range(jobs)]

    def room(self) -> bool:
        """Whether a worker is idle."""
        return any(worker.task is None for worker in self._workers)

    def busy(self) -> bool:
        """Whether a worker is not idle."""
        return any(worker.task is not None for worker in self._workers)

    def train(self, task: Any) -> None:
        """Start a training on an idle process."""
        next(worker for worker in self._workers if worker.task is None).train(task)

    def events(self) -> list[Event]:
        """The events of all workers that have something to report."""
        ready = wait([worker.pipe for worker in self._workers if worker.task is not None], PATIENCE)
        return [worker.event() for worker in self._workers if worker.pipe in ready]

    def ask_to_stop(self) -> None:
        """Send a signal that workers treat as a request."""
        for worker in self._workers:
            worker.process.terminate()

    def close(self) -> None:
        """Kill the processes, which is safe because their files are always complete."""
        for worker in self._workers:
            worker.stop()


class _Worker:
    """A process, and this end of the pipe to it."""

    def __init__(self, given: bytes, again: str) -> None:
        self._again = again
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=start, args=(theirs, given), name="lthfunc-worker", daemon=True
        )
        with _ignoring_interrupts():  # inherited by the process, whose imports take seconds
            self.process.start()
        theirs.close()
        self.task: Any = None

    def train(self, task: Any) -> None:
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # `event` notices a process that has ended
            self.pipe.send_bytes(pickle.dumps(task))

    def event(self) -> Event:
        task = self.task
        try:
            kind, content = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.task = None
            reason = _how_it_ended(self.process.exitcode)
            error = UserError(f"{task.description}: its process {reason}; resume with: {self._again}")
            return Event(task, "lost", error)
        if kind != "step":
            self.task = None
        return Event(task, kind, content)

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
