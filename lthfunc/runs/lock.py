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

from lthfunc.errors import DamagedError, UnavailableError
from lthfunc.runs import safe_files
from lthfunc.runs.side_file_schemas import Holder, content_of
from lthfunc.trees.atomic_io import TEMPORARY_SUFFIX

#: The locked file, and who holds it. The system releases the lock when its holder ends, for whatever reason.
LOCK, HOLDER = ".lock", ".holder.json"
#: Most bytes of the file that says who holds it.
_MOST = 100_000


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder. Raises UnavailableError if another process holds it, with its number and host."""
    safe_files.check_own(folder, folder / LOCK)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UnavailableError(
            f"{folder}: {_in_words(holder(folder))} is working on it; wait until it ends, or stop it"
        ) from error
    try:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        safe_files.write(folder, folder / HOLDER, (json.dumps(about) + "\n").encode())
        yield
    finally:
        with suppress(OSError):  # e.g. a deleted folder
            safe_files.remove(folder, folder / HOLDER)
        lock.release()


def is_unused(folder: Path) -> bool:
    """Whether a folder holds no more than a process may leave that ends before its run has begun."""
    return all(name in (LOCK, HOLDER) or name.endswith(TEMPORARY_SUFFIX) for name in safe_files.names(folder, folder))


def holder(folder: Path) -> dict[str, Any] | None:
    """The recorded holder of the folder, which may have been killed since."""
    try:
        return content_of(Holder, safe_files.read(folder, folder / HOLDER, _MOST))
    except (OSError, DamagedError):
        return None


def is_held(folder: Path) -> bool:
    """Whether a process is working on the run."""
    path = folder / LOCK
    safe_files.check_own(folder, path)
    if safe_files.status(folder, path) is None or not os.access(path, os.W_OK):
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def at_work(folder: Path) -> bool:
    """Whether a process is recorded as working on the run and, as far as this machine can tell, exists."""
    about = holder(folder)
    return about is not None and is_there(about)


def is_there(about: Mapping[str, Any]) -> bool:
    """Whether the recorded process (`host`, `pid`) exists, as far as this machine can tell."""
    if about.get("host") != socket.gethostname() or os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(about["pid"], 0)  # only checks that it exists
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _in_words(about: dict[str, Any] | None) -> str:
    if about is None:
        return "another process"
    return f"process {about.get('pid')} on {about.get('host')} (since {about.get('since')})"
