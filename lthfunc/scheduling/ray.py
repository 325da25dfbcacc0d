"""Ray's workers as an executor: on whatever cores or GPUs Ray finds; a lost worker is replaced.

A worker trains in a folder of its own. Only the parent, which manages the experiment, needs access to the run's folder;
it receives checkpoints in the same way as progress.

Needs the extra `ray`; nothing here is imported without ``--executor ray``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config
from lthfunc.runs.checkpoints import checkpoints, latest_checkpoint, put_checkpoint
from lthfunc.runs.environment import versions
from lthfunc.runs.folder import run_of
from lthfunc.scheduling.executors import PATIENCE, Event, try_training, worker_context
from lthfunc.scheduling.queue import Execution, Workload, place_of
from lthfunc.tracebacks import first_line
from lthfunc.training.results import Point

#: Seconds between two requests for progress.
_ASK_EVERY = 0.5
#: How often a training is started again after losing its worker.
_TRIES = 3


class RayExecutor:
    """Workers on Ray, up to `most` at once; without an address, on a local cluster, which ends with this."""

    def __init__(self, run: Execution, most: int) -> None:
        self._ray, self._started = join_cluster(run.config.executor)
        self._run = run
        self._free: list[Any] = []
        self._under: dict[Any, tuple[Any, Any]] = {}
        self._tries: dict[int, int] = {}
        self._asked = 0.0
        try:
            self._slots = _slots(self._ray, run.config, most)
        except BaseException:
            self.close()
            raise

    def room(self) -> bool:
        """Whether the cluster has room for another training."""
        return len(self._under) < self._slots

    def busy(self) -> bool:
        """Whether any training is unfinished."""
        return bool(self._under)

    def train(self, task: Any) -> None:
        """Start a training on an idle worker, or a new one."""
        worker = self._free.pop() if self._free else self._worker()
        place = self._run.place(task)
        saved = None if place is None else latest_checkpoint(place)
        self._under[worker.train.remote(pickle.dumps((task, saved)))] = (task, worker)

    def events(self) -> list[Event]:
        """Results, lost workers, and at intervals the progress of the others."""
        ray = self._ray
        done, _ = ray.wait(list(self._under), num_returns=len(self._under), timeout=PATIENCE)
        found = [each for ref in done if (each := self._ended(ref)) is not None]
        if time.monotonic() - self._asked > _ASK_EVERY:
            self._asked = time.monotonic()
            found += self._progress()
        return found

    def ask_to_stop(self) -> None:
        """Ask every worker to stop."""
        for _, worker in self._under.values():
            worker.stop.remote()

    def close(self) -> None:
        """End all workers, and the cluster if this process started it."""
        with contextlib.suppress(Exception):
            for worker in (*(worker for _, worker in self._under.values()), *self._free):
                self._ray.kill(worker)
        if self._started:
            self._ray.shutdown()

    def _worker(self) -> Any:
        config = self._run.config
        # Three calls at once: a training, a request for its progress, and a request to stop.
        remote = self._ray.remote(_RayWorker).options(max_concurrency=3, **_resources(config))
        return remote.remote(config, self._run.workload, str(Path.cwd()), versions())

    def _ended(self, ref: Any) -> Event | None:
        task, worker = self._under.pop(ref)
        try:
            kind, content, saved = pickle.loads(self._ray.get(ref))
        except self._ray.exceptions.RayActorError as error:  # killed, or its node is gone
            tries = self._tries[id(task)] = self._tries.get(id(task), 0) + 1
            if tries > _TRIES:
                reason = f"lost its worker {tries} times ({first_line(error)})"
                return Event(task, "lost", UserError(f"{task.description}: {reason}; resume with: {self._run.again}"))
            self.train(task)  # resumes from its last checkpoint
            return None
        self._save(task, saved)
        self._free.append(worker)
        return Event(task, kind, content)

    def _progress(self) -> list[Event]:
        asked = {worker.progress.remote(self._known(task)): task for task, worker in self._under.values()}
        if not asked:
            return []
        known, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
        found = []
        for ref in known:
            with contextlib.suppress(self._ray.exceptions.RayActorError):  # its result will show this
                said, saved = self._ray.get(ref)
                self._save(asked[ref], saved)
                found += [Event(asked[ref], "step", each) for each in said]
        return found

    def _known(self, task: Any) -> str | None:
        """The name of the local checkpoint."""
        place = self._run.place(task)
        here = [] if place is None else checkpoints(place)
        return here[0].name if here else None

    def _save(self, task: Any, saved: tuple[str, bytes] | None) -> None:
        place = self._run.place(task)
        if saved is not None and place is not None:
            put_checkpoint(place, *saved)


class _RayWorker:
    """Trains what it is sent. Its calls run in separate threads."""

    def __init__(self, config: Config, workload: Workload, here: str, expected: dict[str, Any]) -> None:
        if Path(here).is_dir():
            os.chdir(here)
        self._config, self._workload, self._expected = config, workload, expected
        self._folder = Path(tempfile.mkdtemp(prefix="lthfunc-"))
        self._place = self._folder
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._at: int | None = None
        self._points: list[tuple[int, Point]] = []

    @cached_property
    def _run(self) -> Execution:
        check_same(self._expected, versions())
        context = worker_context(self._workload, self._config)
        return Execution(self._config, context, self._folder, self._asked.is_set, workload=self._workload)

    def train(self, payload: bytes) -> bytes:
        task, saved = pickle.loads(payload)
        place = place_of(self._folder, task)
        run_of(place).mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)  # files left here may be older than what was sent
        if saved is not None:
            put_checkpoint(place, *saved)
        with self._lock:
            self._at, self._points, self._place = None, [], place
        kind, content = try_training(lambda: self._run, task, self._observe)
        saved = None if kind == "done" else latest_checkpoint(place)
        shutil.rmtree(place, ignore_errors=True)
        return pickle.dumps((kind, content, saved))

    def progress(self, known: str | None) -> tuple[list[tuple[int, Point | None]], tuple[str, bytes] | None]:
        with self._lock:
            said: list[tuple[int, Point | None]] = [*self._points]
            said += [] if self._at is None else [(self._at, None)]
            self._points = []
            place = self._place
        here = checkpoints(place)
        return said, latest_checkpoint(place) if here and here[0].name != known else None

    def stop(self) -> None:
        self._asked.set()

    def _observe(self, number: int, points: Sequence[Point] | None) -> None:
        self._at = number
        if points is not None:
            with self._lock:
                self._points.append((number, points[0]))


@contextmanager
def clustered(on: str) -> Iterator[Any]:
    """Ray, connected to a cluster; a new connection, or a local cluster, ends with this context. Raises UserError."""
    ray, begun = join_cluster(on)
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()


def join_cluster(on: str) -> tuple[Any, bool]:
    """(Ray, whether the connection is new). Raises UserError if the cluster doesn't answer."""
    known = "RAY_AUTH_TOKEN" in os.environ or Path("~/.ray/auth_token").expanduser().exists()
    if on.startswith("ray://") and known:  # a client does not use its token by itself
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    import ray

    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = on
    if on == "ray":
        address = "auto" if os.environ.get("RAY_ADDRESS") else "local"
    mine: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **mine)
    except Exception as error:  # Ray raises many kinds
        reason = f"{first_line(error)}; a cluster that requires a token takes it from RAY_AUTH_TOKEN"
        raise invalid("--executor", address, f"the address of a cluster that answers ({reason})") from error
    return ray, True


def _resources(config: Config) -> dict[str, float]:
    """The resources that one training takes."""
    gpus = config.gpu_share if config.device.startswith("cuda") else 0.0
    return {"num_cpus": config.threads or 1, "num_gpus": gpus}


def _slots(ray: Any, config: Config, most: int) -> int:
    """The number of concurrent trainings: `--jobs`, or as many of `most` as the cluster has room for."""
    held = ray.cluster_resources()
    fit = int(held.get("CPU", 1) // (config.threads or 1))
    if config.device.startswith("cuda"):
        fit = min(fit, int(held.get("GPU", 0) / config.gpu_share))
        if fit == 0:
            raise UserError("--executor: no node of the cluster has a GPU; use --device cpu")
    if fit == 0:
        raise invalid("--threads", config.threads, f"at most {int(held.get('CPU', 1))}, the cores of the cluster")
    return max(1, min(config.jobs or most, fit))


def check_same(expected: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raise UserError if a node has other versions."""
    for name, value in expected.items():
        if mine.get(name) != value:
            raise UserError(f"--executor: a node has {name} {mine.get(name)}, but this run started with {value}")
