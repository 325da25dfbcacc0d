"""Children of a process that has torch imported, each of which imports lthfunc anew, from a copy with one change."""

from __future__ import annotations

import compileall
import importlib
import math
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

#: Slow to import, and none of them imports lthfunc.
_HEAVY = (
    "numpy", "torch", "torch.func", "torch._dynamo", "torch._inductor", "torchvision", "optree", "safetensors.torch",
    "scipy.stats", "hypothesis", "pytest", "pydantic", "typer", "rich.console", "matplotlib.figure",
    "plotly.graph_objects",
)  # fmt: skip
#: The exit status of a child whose work raised.
BROKEN = 70
#: That of one that could not change a function.
UNCHANGED = 71
#: Bytes that a child may have: a change may make a loop grow without end.
_MEMORY = 10 << 30


def prepare() -> None:
    """Import what all children need."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        os.environ[name] = "1"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in _HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    assert not any(name.split(".")[0] == "lthfunc" for name in sys.modules)


class Overlay:
    """A copy of the library that comes before the installed one, in the child and in processes that its tests start."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.path = folder
        shutil.copytree(root / "lthfunc", folder / "lthfunc", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(folder, quiet=2)

    def put(self, file: str, source: bytes) -> None:
        """Change a file; what was compiled of it goes."""
        place = self.path / file
        place.write_bytes(source)
        for compiled in (place.parent / "__pycache__").glob(f"{place.stem}.*.pyc"):
            compiled.unlink()


class Child:
    """A forked process in a session of its own, which `work` runs in; what it prints goes to a file, if any.

    limit: of its processor time [s], or infinite; of time by the clock it has ten times as much, since others may use
    the machine.
    """

    def __init__(self, overlay: Overlay, work: Callable[[], int], root: Path, out: Path | None, limit: float) -> None:
        self._until, self.timed_out, self.seconds = time.monotonic() + 10 * limit, False, 0.0
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return

        def begin() -> int:
            os.setsid()
            os.chdir(root)
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
            _limit_processor(limit)
            if out is not None:
                target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(target, 1)
                os.dup2(target, 2)
            os.environ["PYTHONPATH"] = str(overlay.path)
            sys.path.insert(0, str(overlay.path))
            return work()

        _exit_with(begin)

    def result(self) -> int | None:
        """The exit status, below 0 for a signal; None while it runs. It is ended when its time is up."""
        if time.monotonic() > self._until and not self.timed_out:
            self.timed_out = True
            self.end()
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.timed_out |= os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        self.seconds = usage.ru_utime + usage.ru_stime
        self.end()  # what its tests may have left running
        return os.waitstatus_to_exitcode(status)

    def stop(self) -> None:
        """Ask it to end, so that it ends its own children, and after a second end it."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            until = time.monotonic() + 1
            while not os.waitpid(self.pid, os.WNOHANG)[0] and time.monotonic() < until:
                time.sleep(0.02)
        self.end()

    def end(self) -> None:
        """End it and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _exit_with(work: Callable[[], int]) -> NoReturn:
    """End this process, a child of a fork, with the status of some work."""
    code = BROKEN
    try:
        code = int(work())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _limit_processor(seconds: float) -> None:
    """Of this process; one that is limited already keeps the bound at which it is killed."""
    if math.isfinite(seconds):
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        bound = math.ceil(seconds) + 5 if most == resource.RLIM_INFINITY else most
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), bound))


def forked(work: Callable[[], int], limit: float) -> int:
    """The exit status of some work in a process of its own; a signal that ended it ends this one.

    limit: of its processor time [s].
    """

    def limited() -> int:
        _limit_processor(limit)
        return work()

    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _exit_with(limited)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)
