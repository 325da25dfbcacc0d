"""Trainings in processes of their own, each with its own threads: how a CPU runs several side by side.

The parent keeps the experiment: it prunes, rewinds, and writes every file. A worker makes the same plan from the
same settings, is sent the state that a training starts from, and sends the result back; so it does, bit for bit,
what the parent would have done.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET, Plan, Task, train_together
from lthfunc.experiments.plan import prepare
from lthfunc.runs.trainings import Queue, Result, Watcher, in_words, named
from lthfunc.training.loop import Point
from lthfunc.training.memory import hold_memory

#: Seconds between two words of a worker on its progress.
_NEWS = 0.1


def in_processes(config: Config, plan: Plan, queue: Queue, jobs: int, watcher: Watcher) -> Generator[Result]:
    """Run a queue on `jobs` workers; tickets first, since the next round waits for them.

    However this ends, no worker outlives it. Raises UserError, which names the training, where one fails.
    """
    workers = [_Worker(config) for _ in range(jobs)]
    try:
        while queue.ready or any(worker.task for worker in workers):
            for worker in workers:
                if worker.task is None and queue.ready:
                    task = queue.pop(lambda task: (task.variant != TICKET, task.number, task.seed))
                    worker.train(task)
                    watcher.begin(task, plan.end_of(task.start))
            for worker in _with_news(workers):
                task, kind, content = worker.news()
                if kind == "step":
                    watcher.step(task, *content)
                elif kind == "failed":
                    raise content
                else:
                    round_, seconds = content
                    queue.finished(task, round_)
                    yield Result(task, round_, seconds)
    finally:
        for worker in workers:
            worker.stop()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process, and the end of the pipe that leads to it."""

    def __init__(self, config: Config) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, config, str(Path.cwd())), name="lthfunc-worker", daemon=True
        )
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
            reason = _how_it_ended(self.process.exitcode)
            return task, "failed", UserError(f"{in_words(task)}: its process {reason}; lthfunc resume goes on")
        if kind != "step":
            self.task = None
        return task, kind, content

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def _with_news(workers: list[_Worker]) -> list[_Worker]:
    ready = wait([worker.pipe for worker in workers if worker.task is not None])
    return [worker for worker in workers if worker.pipe in ready]


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    return f"ended with exit code {code}"


def _work(pipe: Connection, config: Config, folder: str) -> None:
    """A worker's life: make the plan, then train whatever comes through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its workers
    os.chdir(folder)
    hold_memory()
    torch.set_num_threads(config.threads or 1)
    plan = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            task: Task = pickle.loads(pipe.recv_bytes())
            try:
                plan = plan or prepare(replace(config, jobs=1)).plan
                clock = time.perf_counter()
                (result,) = train_together(plan, [task], _teller(pipe))
                pipe.send_bytes(pickle.dumps(("done", (result, time.perf_counter() - clock))))
            except UserError as error:
                pipe.send_bytes(pickle.dumps(("failed", named(task, error))))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                sys.excepthook(*sys.exc_info())
                text = f"{in_words(task)}: {type(error).__name__}: {error}"
                pipe.send_bytes(pickle.dumps(("failed", RuntimeError(text))))


def _teller(pipe: Connection) -> Any:
    told = 0.0

    def observe(number: int, point: Point | None) -> None:
        nonlocal told
        now = time.monotonic()
        if point is not None or now - told > _NEWS:
            told = now
            pipe.send_bytes(pickle.dumps(("step", (number, point))))

    return observe
