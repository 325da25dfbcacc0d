"""What a run is made to tell of itself while it runs, and to do to itself as it writes."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
from typing import Any

from lthfunc_cli import running
from outcomes import EVENTS, PHASES

from lthfunc.experiments import iterative
from lthfunc.reports import run_pictures
from lthfunc.runs import safe_files
from lthfunc.scheduling import execute, local
from lthfunc.scheduling.progress import Tracker


class Shared:
    """What a run tells whoever watches it: its phase, its progress, and the kind and number of the last event.

    progress: how often its trainings have said how far they are, after a step or a few.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def phase(self) -> int:
        return self._memory[0]

    @phase.setter
    def phase(self, value: int) -> None:
        self._memory[0] = value

    @property
    def progress(self) -> int:
        return int.from_bytes(self._memory[4:8], "little")

    @progress.setter
    def progress(self, value: int) -> None:
        self._memory[4:8] = value.to_bytes(4, "little")

    @property
    def event(self) -> tuple[int, int]:
        return self._memory[1], int.from_bytes(self._memory[2:4], "little")

    def happens(self, kind: int) -> int:
        number = self.event[1] + 1
        self._memory[1] = kind
        self._memory[2:4] = number.to_bytes(2, "little")
        return number


def watch(shared: Shared) -> None:
    """Make this process tell in which phase it is, and how far its trainings are."""

    def told(module: Any, name: str, phase: int) -> None:
        real = getattr(module, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            before, shared.phase = shared.phase, phase
            try:
                return real(*given, **named)
            finally:
                shared.phase = before

        setattr(module, name, wrapped)

    step = Tracker.step

    def stepping(*given: Any) -> None:
        shared.progress += 1
        step(*given)

    Tracker.step = stepping  # type: ignore[assignment, method-assign]
    told(local, "train_with_checkpoints", PHASES.index("training"))
    told(iterative, "_next_start", PHASES.index("pruning"))
    told(execute, "save_training", PHASES.index("saving"))
    told(run_pictures, "draw", PHASES.index("reporting"))
    told(running, "show_results", PHASES.index("reporting"))


def kill_at_event(shared: Shared, wanted: int | None) -> None:
    """Make this process count the moments at which it writes, and end itself at one of them."""

    def happens(kind: str) -> bool:
        return shared.happens(EVENTS.index(kind)) == wanted

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    put, sync, replace = safe_files.put, os.fsync, os.replace

    def putting(handle: int, payload: bytes) -> None:
        added = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_APPEND
        if happens("half a line written" if added else "half a file written"):
            put(handle, payload[: 2 * len(payload) // 3])
            end()
        put(handle, payload)

    def syncing(handle: int) -> None:
        if happens("before fsync"):
            end()
        sync(handle)

    def replacing(source: Any, target: Any, **folders: Any) -> None:
        if happens("before rename"):
            end()
        replace(source, target, **folders)
        if happens("after rename"):
            end()

    safe_files.put = putting
    os.fsync, os.replace = syncing, replacing  # type: ignore[assignment]
