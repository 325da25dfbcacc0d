"""A worker process: it trains what its parent sends, until the parent is gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Round, Task
from lthfunc.scheduling.checkpointing import train_kept
from lthfunc.scheduling.executors import attempted, plan_of_worker, teller
from lthfunc.scheduling.queue import Spent


def work(pipe: Connection, config: Config, folder: Path, here: str) -> None:
    """Make the plan, then train whatever comes through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent tells its workers
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir(here)
    planned = cache(lambda: plan_of_worker(config))
    tell = teller(lambda said: pipe.send_bytes(pickle.dumps(("step", said))))

    def train(task: Task) -> tuple[list[Round], Spent]:
        return train_kept(planned(), [task], folder, config, asked.is_set, tell)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            task: Task = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps(attempted(task, partial(train, task))))


def _end_with_parent() -> None:
    """A worker whose parent was killed ends at once: another process may go on with the run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
