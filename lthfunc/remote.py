"""Remote files (s3://, gs://, hf://, …), by fsspec: fetched whole, written whole."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.downloads import downloading
from lthfunc.errors import UserError, failing_as
from lthfunc.hardware import cache_home
from lthfunc.tracebacks import first_line

#: Extras to install, by protocol, since fsspec only names a module.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
#: Seconds to wait for a server that may not exist, and the number of attempts.
_PATIENCE, _TRIES = 10, 2


class RemotePath(NamedTuple):
    """A remote path. path: without its protocol, as the file system names it."""

    url: str
    system: Any
    path: str

    @property
    def name(self) -> str:
        """Its last part, as the name of a local file."""
        last = self.path.rpartition("/")[2]
        return last if last and why_not_a_name(last) is None else "root"

    @property
    def key(self) -> str:
        """A hash of its address, for names of folders."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]


def is_remote(name: str) -> bool:
    """Whether a name is an address that fsspec reads."""
    return re.match(r"[a-z][a-z0-9+]*://", name) is not None and not name.startswith("ray://")


def remote_path(option: str, url: str) -> RemotePath:
    """The remote path of an address. Raises UserError where no installed package reads such addresses."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    given: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        given["config_kwargs"] = {
            "connect_timeout": _PATIENCE, "read_timeout": 6 * _PATIENCE, "retries": {"max_attempts": _TRIES}
        }  # fmt: skip
    try:
        system, path = url_to_fs(url, **given)
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(protocol)
        reason = f"needs lthfunc[{extra}] (pip install 'lthfunc[{extra}]')" if extra else first_line(error)
        raise UserError(f"{option}: {url!r} cannot be read: {reason}") from error
    return RemotePath(url, system, str(path).rstrip("/"))


def reaching(option: str, url: str) -> AbstractContextManager[None]:
    """Turn whatever goes wrong on the way to an address, of any protocol, into one line. Raises UserError."""
    return failing_as(lambda error: f"{option}: {url!r} cannot be reached or read ({_reason(error)})")


def files_below(place: RemotePath) -> dict[str, str]:
    """Every file at or below a path: its relative name ("" for the path itself) -> a version of the file.

    Links are left out. Raises UserError for names that no local folder can hold.
    """
    place.system.invalidate_cache()
    found = place.system.find(place.path, detail=True)
    names = {
        path[len(place.path) :].removeprefix("/"): _version(info)
        for path, info in sorted(found.items())
        if info.get("type", "file") == "file" and not info.get("islink") and not path.endswith("/")
    }
    _check_names(place, names)
    return names


def why_not_a_name(name: str) -> str | None:
    """Why an object's name, in parts with "/" in between, is not a valid path below a local folder; None if it is."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of its folder"
    if "" in parts or "." in parts:
        return "has an empty part"
    if "\\" in name or any(re.match(r"[A-Za-z]:", part) for part in parts):
        return "is a path of Windows"
    if any(unicodedata.category(each) in ("Cc", "Cs") for each in name):
        return "holds control characters"
    return None


def _check_names(place: RemotePath, names: Iterable[str]) -> None:
    """Raise UserError where a name is invalid, or two names would be the same file, or a file and a folder."""
    known: dict[str, str] = {}
    for name in names:
        reason = why_not_a_name(name) if name else None
        if reason is None:
            same = unicodedata.normalize("NFC", name).casefold()
            other = known.setdefault(same, name)
            reason = None if other == name else f"is the same as {other!r} where case doesn't count"
        if reason is not None:
            raise UserError(f"{place.url!r} holds an object that is not fetched: its name {name!r} {reason}")
    for same, name in known.items():
        parts = same.split("/")
        for length in range(1, len(parts)):
            if (folder := known.get("/".join(parts[:length]))) is not None:
                raise UserError(
                    f"{place.url!r} holds an object that is not fetched: {folder!r} is a file, and a folder of {name!r}"
                )


def fetch_to_cache(option: str, url: str, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """A local copy of a remote file or folder, fetched once and again when it changes.

    wanted: which names below a folder. Raises UserError where there is nothing.
    """
    place = remote_path(option, url)
    with reaching(option, url):
        names = {name: version for name, version in files_below(place).items() if wanted(name)}
    if not names:
        raise UserError(f"{option}: there is nothing at {url!r}")
    version = hashlib.sha256(repr(sorted(names.items())).encode()).hexdigest()[:16]
    home = cache_home() / "fetched" / place.key
    target = home / version / place.name
    if not target.exists():
        (home / version).mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=home, prefix=".") as scratch,
            downloading(f"{url} into {home.parent}"),
            reaching(option, url),
        ):
            beside = Path(scratch) / place.name
            for name in names:
                fetch(place, name, beside / name if name else beside)
            with contextlib.suppress(OSError):  # another process was quicker
                beside.replace(target)
        for old in home.iterdir():
            if old.name != version and not old.name.startswith("."):
                shutil.rmtree(old, ignore_errors=True)
    return target


def fetch(place: RemotePath, name: str, target: Path) -> None:
    """Fetch one file below a path; an interruption leaves part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    place.system.get_file(_below(place, name), str(target))


def send(place: RemotePath, name: str, payload: bytes) -> None:
    """Write one object below a path; it appears whole, as objects do."""
    path = _below(place, name)
    parent = path.rpartition("/")[0]
    with contextlib.suppress(Exception):  # where there are no folders
        place.system.makedirs(parent, exist_ok=True)
    place.system.pipe_file(path, payload)


def remove(place: RemotePath, name: str) -> None:
    """Delete one object, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        place.system.rm_file(_below(place, name))


def _below(place: RemotePath, name: str) -> str:
    return f"{place.path}/{name}" if name else place.path


def _version(info: Mapping[str, Any]) -> str:
    known = [str(info[key]) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created") if info.get(key)]
    return "/".join([str(info.get("size")), *known])


def _reason(error: Exception) -> str:
    text = first_line(error)
    return text if text and text != "None" else type(error).__name__
