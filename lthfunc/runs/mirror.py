"""A run at a remote address: a local folder that is uploaded often enough to resume the run from anywhere.

Remote objects are written atomically. A training counts once its line is in metrics.jsonl, which is uploaded last, as
it was before the other files were listed; only then are a finished training's leftovers deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from contextlib import suppress

from lthfunc.errors import LostRunError, UserError
from lthfunc.hardware import cache_home
from lthfunc.remote import RemotePath, fetch, files_below, reaching, remote_path, remove, send
from lthfunc.runs import safe_files
from lthfunc.runs.folder import METRICS, PROGRESS
from lthfunc.runs.lock import HOLDER, LOCK, is_there
from lthfunc.runs.manifests import MANIFEST
from lthfunc.runs.side_file_schemas import Holder, content_of
from lthfunc.runs.sweep_results import SWEEP
from lthfunc.tracebacks import first_line
from lthfunc.trees.atomic_io import TEMPORARY_SUFFIX

#: Seconds after which a process that has sent no sign of life counts as gone.
_SILENT = 300.0
#: The files that list what exists, of a run and of a sweep.
_LOGS = (METRICS, SWEEP)
_UNSENT = ".unsent"
#: A file's time of change and its size.
_Stamp = tuple[int, int]


class Mirror:
    """A local copy of a remote folder, or of a single file, which is uploaded at the end. said: lines for the user."""

    def __init__(self, option: str, url: str, *, single: bool = False) -> None:
        self.option, self.url, self._single = option, url.rstrip("/"), single
        self._place: RemotePath = remote_path(option, self.url)
        self._home = cache_home() / "mirrors" / self._place.key
        self.folder = self._home / self._place.name
        self.said: list[str] = []
        self._sent: dict[str, _Stamp] = {}
        self._working, self._closed = threading.Lock(), False

    def __enter__(self) -> Mirror:
        """Download the remote files and record there who is working on them.

        Local files that could not be uploaded the last time are used, unless the run was continued elsewhere since.

        Raises UserError if the address cannot be reached or another process is working on it.
        """
        with reaching(self.option, self.url):
            there = files_below(self._place)
            self._check_free(there)
            if "" in there and not self._single:
                raise UserError(f"{self.option}: {self.url!r} is a file, but a run needs a folder")
            names = [name for name in there if bool(name) != self._single and not _is_passing(name)]
            if not self._is_ahead(names):
                self._fetch(names)
            self._home.mkdir(parents=True, exist_ok=True)
            if not self._single:
                (self._home / _UNSENT).touch()
                self._say_held()  # also finds out now whether the address can be written to
        return self

    def send(self) -> None:
        """Upload what has changed. Raises whatever the file system raises."""
        with self._working:
            if self._closed:
                return
            if self._single:
                if (stamp := self._stamp("")) is not None and self._sent.get("") != stamp:
                    send(self._place, "", safe_files.read(self._home, self.folder))
                return
            self._say_held()
            # The lists of what exists, as they are before the rest is listed; a sweep's runs before the sweep.
            logs = {
                name: (stamp, safe_files.read(self.folder, self.folder / name))
                for name, stamp in self._stamps().items()
                if name.endswith(".jsonl")
            }
            here = self._stamps()
            changed = {name: stamp for name, stamp in here.items() if self._sent.get(name) != stamp}
            for name in sorted(changed, key=lambda name: name.endswith(MANIFEST)):
                if not name.endswith(".jsonl") and (payload := self._content(name)) is not None:
                    send(self._place, name, payload)
                    self._sent[name] = changed[name]
            for name in sorted(logs, key=lambda name: (-name.count("/"), name)):
                stamp, lines = logs[name]
                if self._sent.get(name) != stamp:
                    send(self._place, name, lines[: lines.rfind(b"\n") + 1])
                    self._sent[name] = stamp
            for name in [name for name in self._sent if name not in here]:
                remove(self._place, name)
                del self._sent[name]

    def __exit__(self, *error: object) -> None:
        """Upload the rest and release the run. Raises LostRunError if that fails; nothing is lost then."""
        try:
            self.send()
            with self._working:
                self._closed = True
            if not self._single:
                remove(self._place, HOLDER)
        except Exception as error:
            again = "" if self._single else f", and uploaded when {self._again()}"
            raise LostRunError(
                f"{self.url}: cannot be written ({first_line(error)}); what was not uploaded is in {self.folder}{again}"
            ) from error
        (self._home / _UNSENT).unlink(missing_ok=True)

    def _stamps(self) -> dict[str, _Stamp]:
        """The local files to upload, each with a stamp that changes with it."""
        names = [path.relative_to(self.folder).as_posix() for path in safe_files.files(self.folder)]
        found = {name: self._stamp(name) for name in names if not _is_passing(name)}
        return {name: stamp for name, stamp in found.items() if stamp is not None}

    def _stamp(self, name: str) -> _Stamp | None:
        about = safe_files.status(self._home, self.folder / name)
        return None if about is None else (about.st_mtime_ns, about.st_size)

    def _content(self, name: str) -> bytes | None:
        """A file's content; None for a checkpoint whose training has ended in the meantime."""
        try:
            return safe_files.read(self.folder, self.folder / name)
        except FileNotFoundError:
            return None

    def _again(self) -> str:
        """How what is here goes on, in words."""
        if safe_files.status(self.folder, self.folder / METRICS) is None:  # of several runs, or none yet
            return "the same command is typed here again"
        return f"it is resumed from here: lthfunc resume {self.url}"

    def _is_ahead(self, names: list[str]) -> bool:
        """Whether the local folder continues the remote one."""
        logs = self._logs()
        if not logs or not (self._home / _UNSENT).exists():
            return False
        if "/" in logs[0] and any(_is_log(name) and name not in logs for name in names):
            return False
        for log in logs:
            theirs = self._place.system.cat_file(f"{self._place.path}/{log}") if log in names else b""
            if not safe_files.read(self.folder, self.folder / log).startswith(theirs):
                return False
        self.said.append(f"{self.url}: continuing with {self.folder}, which could not be uploaded last time")
        return True

    def _logs(self) -> list[str]:
        """The local files that list what exists: the folder's own, or those of its runs, since a study has none."""
        found = [name for name in self._stamps() if _is_log(name)]
        return [name for name in _LOGS if name in found][:1] or found

    def _fetch(self, names: list[str]) -> None:
        shutil.rmtree(self._home, ignore_errors=True)
        for name in sorted(names, key=lambda name: name not in _LOGS):  # so that all trainings of the log are there
            with suppress(FileNotFoundError):
                fetch(self._place, name, self.folder / name)
                if (stamp := self._stamp(name)) is not None:
                    self._sent[name] = stamp

    def _check_free(self, there: dict[str, str]) -> None:
        if HOLDER not in there:
            return
        try:
            about = content_of(Holder, self._place.system.cat_file(f"{self._place.path}/{HOLDER}"))
        except FileNotFoundError:
            return
        if about is None:
            return
        silent, me = time.time() - about.get("heard", 0.0), (about["host"], about["pid"])
        if silent < _SILENT and me != (socket.gethostname(), os.getpid()) and is_there(about):
            raise UserError(
                f"{self.option}: process {me[1]} on {me[0]} is working on {self.url} (last seen {silent:.0f} s ago); "
                f"wait for its end, or {_SILENT:.0f} s after it was lost"
            )

    def _say_held(self) -> None:
        about = {"pid": os.getpid(), "host": socket.gethostname(), "heard": time.time()}
        send(self._place, HOLDER, json.dumps(about).encode())


def _is_log(name: str) -> bool:
    """Whether a file lists what exists, of the folder or of a run in it."""
    folder, _, last = name.rpartition("/")
    return last in _LOGS and "/" not in folder


def _is_passing(name: str) -> bool:
    """Whether a file is temporary or belongs to this machine alone."""
    last = name.rpartition("/")[2]
    return last in (LOCK, HOLDER) or last.startswith(PROGRESS) or last.endswith(TEMPORARY_SUFFIX)
