"""One process at a time on a run's folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lthfunc.errors import DamagedError, UserError
from lthfunc.runs import safe_files
from lthfunc.runs.side_file_schemas import holder_of

#: What is locked, and who holds it. The system lets go of the lock when its holder ends, however it ends.
LOCK, HOLDER = ".lock", ".holder.json"
#: Bytes of what says who holds it.
_MOST = 100_000


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder. Raises UserError where another process holds it, with its number and host."""
    safe_files.check_own(folder, folder / LOCK)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: {_in_words(holder(folder))} is working on it; wait until it ends, or stop it"
        ) from error
    try:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        safe_files.write(folder, folder / HOLDER, (json.dumps(about) + "\n").encode())
        yield
    finally:
        with suppress(OSError):  # a folder that is gone, say
            safe_files.remove(folder, folder / HOLDER)
        lock.release()


def holder(folder: Path) -> dict[str, Any] | None:
    """Who says to hold the folder, or did until it ended without a word."""
    try:
        return holder_of(safe_files.read(folder, folder / HOLDER, _MOST))
    except (OSError, DamagedError):
        return None


def is_held(folder: Path) -> bool:
    """Whether a process is working on the run now."""
    path = folder / LOCK
    safe_files.check_own(folder, path)
    if safe_files.status(folder, path) is None or not os.access(path, os.W_OK):
        return False
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def at_work(folder: Path) -> bool:
    """Whether a process says that it works on the run, and is there as far as this machine can tell."""
    about = holder(folder)
    return about is not None and is_there(about)


def is_there(about: Mapping[str, Any]) -> bool:
    """Whether the process of these words (`host`, `pid`) is there, as far as this machine can tell."""
    if about.get("host") != socket.gethostname() or os.name == "nt":  # where a signal of 0 would end it
        return True
    try:
        os.kill(about["pid"], 0)  # which asks, and does nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _in_words(about: dict[str, Any] | None) -> str:
    if about is None:
        return "another process"
    return f"process {about.get('pid')} on {about.get('host')} (since {about.get('since')})"
