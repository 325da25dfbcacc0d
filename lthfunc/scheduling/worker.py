"""A worker process, which trains what its parent sends until the parent is gone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from functools import cache
from multiprocessing.connection import Connection, wait

from lthfunc.scheduling.executors import throttled, try_training, worker_context
from lthfunc.scheduling.queue import Execution


def work(pipe: Connection, given: bytes) -> None:
    """Train what arrives through the pipe. given: the pickled settings, folders and workload of a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent informs its workers
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config, folder, workload, here = pickle.loads(given)
    os.chdir(here)
    report = throttled(lambda said: pipe.send_bytes(pickle.dumps(("step", said))))

    @cache
    def run() -> Execution:
        return Execution(config, worker_context(workload, config), folder, asked.is_set, workload=workload)

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        while True:
            task = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps(try_training(run, task, report)))


def _end_with_parent() -> None:
    """End at once if the parent is killed, since another process may resume the run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
