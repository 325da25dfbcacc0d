"""Trainings in processes of their own, each with its own threads: how a CPU runs several side by side.

The parent keeps the experiment: it prunes, rewinds, and writes every file but checkpoints, which a worker writes of its
own training. A worker makes the same plan from the same settings, is sent the state that a training starts from, and
sends the result back; so it does, bit for bit, what the parent would have done.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET, Task
from lthfunc.experiments.plan import prepare
from lthfunc.runs.keeping import train_kept
from lthfunc.runs.together import Way
from lthfunc.runs.trainings import Queue, Result, in_words, named
from lthfunc.training.fits import Point, Stopped
from lthfunc.training.memory import hold_memory

#: Seconds between two words of a worker on its progress.
_NEWS = 0.1
#: Seconds after which the parent looks whether it should stop.
_PATIENCE = 0.2


def in_processes(way: Way, queue: Queue, jobs: int) -> Generator[Result]:
    """Run a queue on `jobs` workers; tickets first, since the next round waits for them.

    However this ends, no worker outlives it. Raises UserError, which names the training, where one fails, and Stopped
    once all workers have kept what they were at.
    """
    workers = [_Worker(way.config, way.folder) for _ in range(jobs)]
    stopped = False
    try:
        while (queue.ready and not stopped) or any(worker.task for worker in workers):
            if way.stopping() and not stopped:
                stopped = True
                for worker in workers:
                    worker.process.terminate()  # which it takes as a request
            for worker in workers:
                if worker.task is None and queue.ready and not stopped:
                    task = queue.pop(lambda task: (task.variant != TICKET, task.number, task.seed))
                    worker.train(task)
                    way.watcher.begin(task, way.plan.end_of(task.start))
            for worker in _with_news(workers):
                task, kind, content = worker.news()
                if kind == "step":
                    way.watcher.step(task, *content)
                elif kind == "failed" or (
                    kind == "ended" and not stopped
                ):  # one still starting ends when asked to stop
                    raise content
                elif kind == "done":
                    round_, spent = content
                    queue.finished(task, round_)
                    yield Result(task, round_, spent)
        if stopped:
            raise Stopped
    finally:
        for worker in workers:
            worker.stop()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process, and the end of the pipe that leads to it."""

    def __init__(self, config: Config, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, config, folder, str(Path.cwd())), name="lthfunc-worker", daemon=True
        )
        with _ignoring_interrupts():  # which the process inherits: its imports take seconds
            self.process.start()
        theirs.close()
        self.task: Task | None = None

    def train(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # a process that ended is found out by `news`
            self.pipe.send_bytes(pickle.dumps(task))

    def news(self) -> tuple[Task, str, Any]:
        """(the training it has, what kind of news, the news)."""
        task = self.task
        assert task is not None
        try:
            kind, content = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.task = None
            reason = _how_it_ended(self.process.exitcode)
            return task, "ended", UserError(f"{in_words(task)}: its process {reason}; lthfunc resume goes on")
        if kind != "step":
            self.task = None
        return task, kind, content

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()  # all its files are whole at any moment
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


def _with_news(workers: list[_Worker]) -> list[_Worker]:
    ready = wait([worker.pipe for worker in workers if worker.task is not None], _PATIENCE)
    return [worker for worker in workers if worker.pipe in ready]


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    return f"ended with exit code {code}"


def _work(pipe: Connection, config: Config, folder: Path, here: str) -> None:
    """A worker's life: make the plan, then train whatever comes through the pipe, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent tells its workers
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir(here)
    hold_memory()
    torch.set_num_threads(config.threads or 1)
    plan = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            task: Task = pickle.loads(pipe.recv_bytes())
            try:
                plan = plan or prepare(replace(config, jobs=1)).plan
                (result,), spent = train_kept(plan, [task], folder, config, asked.is_set, _teller(pipe))
                pipe.send_bytes(pickle.dumps(("done", (result, spent))))
            except Stopped:
                pipe.send_bytes(pickle.dumps(("stopped", None)))
            except UserError as error:
                pipe.send_bytes(pickle.dumps(("failed", named(task, error))))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except OSError as error:  # a full disk, say
                pipe.send_bytes(pickle.dumps(("failed", error)))
            except Exception as error:
                sys.excepthook(*sys.exc_info())
                text = f"{in_words(task)}: {type(error).__name__}: {error}"
                pipe.send_bytes(pickle.dumps(("failed", RuntimeError(text))))


def _end_with_parent() -> None:
    """A worker whose parent was killed ends at once: another process may go on with the run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _teller(pipe: Connection) -> Any:
    told = 0.0

    def observe(number: int, points: Sequence[Point] | None) -> None:
        nonlocal told
        now = time.monotonic()
        point = None if points is None else points[0]
        if point is not None or now - told > _NEWS:
            told = now
            pipe.send_bytes(pickle.dumps(("step", (number, point))))

    return observe
