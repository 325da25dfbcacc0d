"""Safe access to the files of a run, which may come from a stranger: only regular files, never through links.

Every function takes the run's folder and a path below it. The path to the folder itself may have links; below it, each
part of a path is opened relative to the folder before, so that no link, old or new, leads out of the run. Anything that
is not a regular file (a link, a pipe, a device) counts as damage.

A hard link looks like a regular file and is read as one. Nothing is written through it: files are replaced, and before
something is appended to one, a copy takes its place.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lthfunc.errors import DamagedError
from lthfunc.trees.atomic_io import TEMPORARY_SUFFIX

#: Whether this system opens files relative to an open folder; otherwise each part of a path is checked first.
_RELATIVE = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
#: Opening must not follow a link, nor wait for the other end of a pipe.
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
#: Most bytes of a text file; no run has as many.
MOST = 2 << 30


class _Place(NamedTuple):
    """A file's open folder and its name there; or None and its path."""

    folder: int | None
    name: str


def read(root: Path, path: Path, most: int | None = None) -> bytes:
    """A file's content. Raises FileNotFoundError, or DamagedError if it isn't a regular file or exceeds `most`."""
    with opened(root, path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise DamagedError(f"{path}: has {size:,} bytes, too many for such a file")
        try:
            return file.read()
        except MemoryError as error:
            raise DamagedError(f"{path}: its {size:,} bytes don't fit in memory") from error


@contextmanager
def opened(root: Path, path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Raises as `read` does."""
    with _reaching(root, path) as place:
        handle = _regular(place, path, os.O_RDONLY)
    with os.fdopen(handle, "rb") as file:
        yield file


def status(root: Path, path: Path) -> os.stat_result | None:
    """The status of what is there, without following links; None if nothing is."""
    try:
        with _reaching(root, path) as place:
            return os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def exists(root: Path, path: Path) -> bool:
    """Whether a file is there. Raises DamagedError if it is not a regular file."""
    about = status(root, path)
    if about is not None:
        _check_regular(path, about)
    return about is not None


def names(root: Path, path: Path) -> list[str]:
    """The sorted names in a folder, links included; none if it doesn't exist. Raises DamagedError if it is a link."""
    try:
        with _reaching(root, path / "-") as place:  # it need not exist
            return sorted(os.listdir(path if place.folder is None else place.folder))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []


def files(root: Path) -> Iterator[Path]:
    """All regular files at any depth, a folder's before those of its subfolders; no links."""
    for path, about in entries(root, root):
        if stat.S_ISREG(about.st_mode):
            yield path


def entries(root: Path, path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All entries of a folder at any depth, each with its own status; links are not followed."""
    waiting = [path]
    while waiting:
        below, folders = waiting.pop(), []
        for name in names(root, below):
            about = status(root, below / name)
            if about is None:
                continue
            yield below / name, about
            if stat.S_ISDIR(about.st_mode) and not _is_link(about):
                folders.append(below / name)
        waiting += reversed(folders)


def write(root: Path, path: Path, payload: bytes, *, durable: bool = True) -> None:
    """Write a file atomically, replacing one of its name; durable: also wait until it is on disk.

    It is written under a temporary name and renamed. Its folder must exist.
    """
    with _reaching(root, path) as place:
        beside = place._replace(name=_beside(place.name))
        handle = os.open(beside.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o666, dir_fd=beside.folder)
        try:
            try:
                put(handle, payload)
                if durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(beside.name, place.name, src_dir_fd=beside.folder, dst_dir_fd=place.folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside.name, dir_fd=beside.folder)
            raise
        if durable and place.folder is not None:
            os.fsync(place.folder)


def append(root: Path, path: Path, payload: bytes) -> None:
    """Append to a file, created if missing, and wait for the disk; if that fails, remove what was appended."""
    with _reaching(root, path) as place:
        handle = _regular(place, path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            if os.fstat(handle).st_nlink > 1:
                write(root, path, read(root, path))
                os.close(handle)
                handle = _regular(place, path, os.O_RDWR | os.O_APPEND)
            before = os.fstat(handle).st_size
            try:
                put(handle, payload)
                os.fsync(handle)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(handle, before)
                    os.fsync(handle)
                raise
        finally:
            os.close(handle)


def put(handle: int, payload: bytes) -> None:
    """Write all of it, without a buffer, which would try again later."""
    left = memoryview(payload)
    while left:
        left = left[os.write(handle, left) :]


def remove(root: Path, path: Path) -> None:
    """Delete a file, or a link but not its target, if it exists."""
    with suppress(FileNotFoundError), _reaching(root, path) as place:
        os.unlink(place.name, dir_fd=place.folder)


def make(root: Path, path: Path) -> None:
    """Make a folder and those between it and the run's, which must exist. Raises DamagedError for a link."""
    for part in [*reversed(path.relative_to(root).parents), path.relative_to(root)][1:]:
        with _reaching(root, root / part) as place:
            try:
                os.mkdir(place.name, dir_fd=place.folder)
            except FileExistsError:
                _check_folder(root / part, os.stat(place.name, dir_fd=place.folder, follow_symlinks=False))


def check_own(root: Path, path: Path) -> None:
    """Raise DamagedError if another program must not write into what is there: not a regular file, or a hard link."""
    about = status(root, path)
    if about is None:
        return
    _check_regular(path, about)
    if about.st_nlink > 1:
        raise DamagedError(f"{path}: is a hard link to another file; delete it")


def check_tree(root: Path, path: Path) -> None:
    """Raise DamagedError if another program that writes this file or folder would write through a link."""
    about = status(root, path)
    found = [] if about is None else [(path, about), *entries(root, path)]
    for each, about in found:
        if _is_link(about) and each != path and Path(os.path.realpath(each)).is_relative_to(os.path.realpath(root)):
            continue  # to a file beside it, as trackers create
        if _is_link(about) or not stat.S_ISDIR(about.st_mode):
            check_own(root, each)


def check_folder(root: Path, path: Path) -> None:
    """Raise DamagedError if something other than a folder is there, such as a link to one."""
    about = status(root, path)
    if about is not None:
        _check_folder(path, about)


@contextmanager
def _reaching(root: Path, path: Path) -> Iterator[_Place]:
    """The folder that holds a file. An OSError has the file's path."""
    *folders, name = _parts(root, path)
    try:
        if not _RELATIVE:
            for number in range(len(folders)):
                between = root.joinpath(*folders[: number + 1])
                _check_folder(between, os.lstat(between))
            yield _Place(None, str(root.joinpath(*folders, name)))
            return
        handle = os.open(root, _FOLDER)
        try:
            between = root
            for part in folders:
                between = between / part
                _check_folder(between, os.stat(part, dir_fd=handle, follow_symlinks=False))
                following = os.open(part, _FOLDER | _SAFELY, dir_fd=handle)
                os.close(handle)
                handle = following
            yield _Place(handle, name)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def lies_in(root: Path, path: Path) -> bool:
    """Whether a path lies in a run's folder, judged by its parts alone."""
    try:
        return bool(_parts(root, path))
    except DamagedError:
        return False


def _parts(root: Path, path: Path) -> tuple[str, ...]:
    """The parts of a path below a run's folder. Raises DamagedError if the path leads out of it."""
    try:
        found = Path(os.path.normpath(path.relative_to(root))).parts
    except ValueError:
        found = ()
    if not found or found[0] == os.pardir or "\0" in str(path):
        raise DamagedError(f"{path}: does not lie in the run's folder")
    return found


def _regular(place: _Place, path: Path, flags: int) -> int:
    """Open a regular file. Raises DamagedError for anything else, if possible without opening it."""
    try:
        _check_regular(path, os.stat(place.name, dir_fd=place.folder, follow_symlinks=False))
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    handle = os.open(place.name, flags | _SAFELY, 0o666, dir_fd=place.folder)
    try:
        _check_regular(path, os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return handle


def _is_link(about: os.stat_result) -> bool:
    """Whether this is a link, or a junction on Windows."""
    return stat.S_ISLNK(about.st_mode) or bool(getattr(about, "st_reparse_tag", 0))


def _check_regular(path: Path, about: os.stat_result) -> None:
    if _is_link(about):
        raise DamagedError(f"{path}: is a link; nothing of a run is reached through links")
    if not stat.S_ISREG(about.st_mode):
        raise DamagedError(f"{path}: is not a regular file")


def _check_folder(path: Path, about: os.stat_result) -> None:
    if _is_link(about):
        raise DamagedError(f"{path}: is a link; nothing of a run is reached through links")
    if not stat.S_ISDIR(about.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def _beside(name: str) -> str:
    path = Path(name)
    return str(path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"))
