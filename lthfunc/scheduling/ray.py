"""A pool of Ray's workers: trainings wherever Ray finds cores or GPUs for them, and again where it loses one.

A worker keeps its training in a folder of its own; the run's folder, which the process alone need see that keeps the
experiment, gets its checkpoints by the way that progress takes.

Needs the extra `ray`; nothing here is imported without ``--on ray``.
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
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, trainings_at_once
from lthfunc.experiments.iterative import Round, Task
from lthfunc.runs.checkpoints import checkpoints, latest_checkpoint, put_checkpoint
from lthfunc.runs.environment import versions
from lthfunc.scheduling.checkpointing import place_of, train_kept
from lthfunc.scheduling.executors import PATIENCE, News, attempted, plan_of_worker
from lthfunc.scheduling.local import Way
from lthfunc.scheduling.queue import Spent, in_words
from lthfunc.tracebacks import first_line
from lthfunc.training.results import Point

#: Seconds between two questions about progress.
_ASK = 0.5
#: How often a training is begun again that lost its worker.
_TRIES = 3


class RayPool:
    """Workers on Ray; a local cluster where no address is given, which ends with this."""

    def __init__(self, way: Way) -> None:
        self._ray, self._started = join_cluster(way.config.on)
        self._way = way
        self._free: list[Any] = []
        self._under: dict[Any, tuple[Task, Any]] = {}
        self._tries: dict[int, int] = {}
        self._asked = 0.0
        try:
            self._slots = _slots(self._ray, way.config)
        except BaseException:
            self.close()
            raise

    def room(self) -> bool:
        """Whether fewer trainings are under way than the cluster holds."""
        return len(self._under) < self._slots

    def busy(self) -> bool:
        """Whether any is."""
        return bool(self._under)

    def train(self, task: Task) -> None:
        """On an idle worker, or a new one."""
        worker = self._free.pop() if self._free else self._worker()
        kept = latest_checkpoint(place_of(self._way.folder, task))
        self._under[worker.train.remote(pickle.dumps((task, kept)))] = (task, worker)

    def news(self) -> list[News]:
        """Results, workers that are gone, and from time to time how far the others are."""
        ray = self._ray
        done, _ = ray.wait(list(self._under), num_returns=len(self._under), timeout=PATIENCE)
        found = [each for ref in done if (each := self._ended(ref)) is not None]
        if time.monotonic() - self._asked > _ASK:
            self._asked = time.monotonic()
            found += self._progress()
        return found

    def ask_to_stop(self) -> None:
        """Tell every worker."""
        for _, worker in self._under.values():
            worker.stop.remote()

    def close(self) -> None:
        """End all workers, and the cluster if it is ours."""
        with contextlib.suppress(Exception):
            for worker in (*(worker for _, worker in self._under.values()), *self._free):
                self._ray.kill(worker)
        if self._started:
            self._ray.shutdown()

    def _worker(self) -> Any:
        config = self._way.config
        resources: dict[str, Any] = {"num_cpus": config.threads or 1}
        if config.device.startswith("cuda"):
            resources["num_gpus"] = config.gpu_share
        # Three calls at once: a training, a question about it, and a request to stop.
        remote = self._ray.remote(_RayWorker).options(max_concurrency=3, **resources)
        return remote.remote(config, str(Path.cwd()), versions())

    def _ended(self, ref: Any) -> News | None:
        task, worker = self._under.pop(ref)
        try:
            kind, content, kept = pickle.loads(self._ray.get(ref))
        except self._ray.exceptions.RayActorError as error:  # killed, or its node is gone
            tries = self._tries[id(task)] = self._tries.get(id(task), 0) + 1
            if tries > _TRIES:
                text = f"{in_words(task)}: lost its worker {tries} times ({first_line(error)}); lthfunc resume goes on"
                return News(task, "ended", UserError(text))
            self.train(task)  # which goes on from its last checkpoint
            return None
        self._keep(task, kept)
        self._free.append(worker)
        return News(task, kind, content)

    def _progress(self) -> list[News]:
        asked = {worker.progress.remote(self._known(task)): task for task, worker in self._under.values()}
        if not asked:
            return []
        known, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
        found = []
        for ref in known:
            with contextlib.suppress(self._ray.exceptions.RayActorError):  # found out by its result
                said, kept = self._ray.get(ref)
                self._keep(asked[ref], kept)
                found += [News(asked[ref], "step", each) for each in said]
        return found

    def _known(self, task: Task) -> str | None:
        """The name of the checkpoint that is here."""
        here = checkpoints(place_of(self._way.folder, task))
        return here[0].name if here else None

    def _keep(self, task: Task, kept: tuple[str, bytes] | None) -> None:
        if kept is not None:
            put_checkpoint(place_of(self._way.folder, task), *kept)


class _RayWorker:
    """A worker's life: make the plan, then train whatever comes. Its calls run in threads of their own."""

    def __init__(self, config: Config, here: str, expected: dict[str, Any]) -> None:
        if Path(here).is_dir():
            os.chdir(here)
        self._config, self._expected = config, expected
        self._folder = Path(tempfile.mkdtemp(prefix="lthfunc-"))
        self._place = self._folder
        self._asked = threading.Event()
        self._plan: Any = None
        self._lock = threading.Lock()
        self._at, self._points = 0, list[tuple[int, Point]]()

    def train(self, payload: bytes) -> bytes:
        task, kept = pickle.loads(payload)
        place = place_of(self._folder, task)
        shutil.rmtree(place, ignore_errors=True)  # what was left of it here may be behind what was sent
        if kept is not None:
            put_checkpoint(place, *kept)
        with self._lock:
            self._at, self._points, self._place = int(task.start.step), [], place
        kind, content = attempted(task, lambda: self._trained(task))
        kept = None if kind == "done" else latest_checkpoint(place)
        shutil.rmtree(place, ignore_errors=True)
        return pickle.dumps((kind, content, kept))

    def _trained(self, task: Task) -> tuple[list[Round], Spent]:
        check_same(self._expected, versions())
        if self._plan is None:
            self._plan = plan_of_worker(self._config)
        return train_kept(self._plan, [task], self._folder, self._config, self._asked.is_set, self._observe)

    def progress(self, known: str | None) -> tuple[list[tuple[int, Point | None]], tuple[str, bytes] | None]:
        with self._lock:
            said: list[tuple[int, Point | None]] = [*self._points, (self._at, None)]
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
    """Ray, joined to a cluster; one that was not joined before ends, or is left, with this. Raises UserError."""
    ray, begun = join_cluster(on)
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()


def join_cluster(on: str) -> tuple[Any, bool]:
    """(Ray, whether its cluster was joined just now). Raises UserError where it doesn't answer."""
    ray = _ray_module(on)
    begun = not ray.is_initialized()
    if begun:
        _connect(ray, on)
    return ray, begun


def _ray_module(on: str) -> Any:
    """Ray; for a cluster at an address with its token, where there is one, which a client does not use by itself."""
    known = "RAY_AUTH_TOKEN" in os.environ or Path("~/.ray/auth_token").expanduser().exists()
    if on.startswith("ray://") and known:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read as Ray is imported
    import ray

    return ray


def _connect(ray: Any, on: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = on
    if on == "ray":
        address = "auto" if os.environ.get("RAY_ADDRESS") else "local"
    mine = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **mine)
    except Exception as error:  # of its many kinds
        reason = f"{first_line(error)}; one that asks for a token takes RAY_AUTH_TOKEN"
        raise invalid("--on", on, f"the address of a cluster that answers ({reason})") from error


def _slots(ray: Any, config: Config) -> int:
    """Trainings at once: `--jobs`, or what the cluster holds."""
    held = ray.cluster_resources()
    fit = int(held.get("CPU", 1) // (config.threads or 1))
    if config.device.startswith("cuda"):
        fit = min(fit, int(held.get("GPU", 0) / config.gpu_share))
        if fit == 0:
            raise UserError("--on: no node of the cluster has a GPU; --device cpu does without")
    if fit == 0:
        raise invalid("--threads", config.threads, f"at most {int(held.get('CPU', 1))}, the cores of the cluster")
    return max(1, min(config.jobs or trainings_at_once(config), fit))


def check_same(expected: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raise UserError where a node's versions are others."""
    for name, value in expected.items():
        if mine.get(name) != value:
            raise UserError(f"--on: a node has {name} {mine.get(name)}, and this run was begun with {value}")
