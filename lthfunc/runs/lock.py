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

from lthfunc.errors import UserError
from lthfunc.trees.writing import write_atomically

#: What is locked, and who holds it. The system lets go of the lock when its holder ends, however it ends.
LOCK, HOLDER = ".lock", ".holder.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder. Raises UserError where another process holds it, with its number and host."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: {_in_words(holder(folder))} is working on it; wait for its end, or stop it"
        ) from error
    try:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        write_atomically(folder / HOLDER, (json.dumps(about) + "\n").encode())
        yield
    finally:
        with suppress(OSError):  # a folder that is gone, say
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def holder(folder: Path) -> dict[str, Any] | None:
    """Who says to hold the folder, or did until it ended without a word."""
    try:
        about = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def is_held(folder: Path) -> bool:
    """Whether a process is working on the run now."""
    if not (folder / LOCK).exists() or not os.access(folder / LOCK, os.W_OK):
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
        os.kill(int(about["pid"]), 0)  # which asks, and does nothing
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _in_words(about: dict[str, Any] | None) -> str:
    if about is None:
        return "another process"
    return f"process {about.get('pid')} on {about.get('host')} (since {about.get('since')})"
