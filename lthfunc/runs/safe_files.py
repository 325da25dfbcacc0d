"""Files of a run, which may be a stranger's: reached from its folder on, regular files alone, never through links.

Every function takes the run's folder and a path below it. How the user reaches the folder is the user's own business;
from there on each step is taken from the folder before it, so that no link, old or new, leads anywhere else. What is
there and is no regular file (a link, a pipe, a device) is damage.

A hard link cannot be told from the file, and is read as one. Nothing is written through it: files are replaced, and one
that is added to in its place is replaced by a copy of its own before.
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

#: Whether this system opens files relative to an open folder; elsewhere each part of a path is looked at before.
_RELATIVE = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
#: A pipe would wait for its other end.
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
#: Bytes of a file of lines or words, more than any run has.
MOST = 2 << 30


class _Place(NamedTuple):
    """A file's folder, open, and its name there; or None, and its path."""

    folder: int | None
    name: str


def read(root: Path, path: Path, most: int | None = None) -> bytes:
    """A file's content. Raises FileNotFoundError, and DamagedError where it is no file, or longer than `most`."""
    with opened(root, path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise DamagedError(f"{path}: has {size:,} bytes, more than such a file can have")
        try:
            return file.read()
        except MemoryError as error:
            raise DamagedError(f"{path}: its {size:,} bytes don't fit into memory") from error


@contextmanager
def opened(root: Path, path: Path) -> Iterator[BinaryIO]:
    """A file, to be read. Raises as `read` does."""
    with _reaching(root, path) as place:
        handle = _regular(place, path, os.O_RDONLY)
    with os.fdopen(handle, "rb") as file:
        yield file


def status(root: Path, path: Path) -> os.stat_result | None:
    """Of what lies there itself, be it a link; None where nothing does."""
    try:
        with _reaching(root, path) as place:
            return os.stat(place.name, dir_fd=place.folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def exists(root: Path, path: Path) -> bool:
    """Whether something lies there. Raises DamagedError where that is no regular file."""
    about = status(root, path)
    if about is not None:
        _check_regular(path, about)
    return about is not None


def names(root: Path, path: Path) -> list[str]:
    """What a folder holds, links and all, in order; nothing where there is none. Raises DamagedError for a link."""
    try:
        with _reaching(root, path / "-") as place:  # which need not be there
            return sorted(os.listdir(path if place.folder is None else place.folder))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []


def files(root: Path) -> Iterator[Path]:
    """All regular files at any depth, a folder's before those of folders in it; neither links nor what they lead to."""
    for path, about in entries(root, root):
        if stat.S_ISREG(about.st_mode):
            yield path


def entries(root: Path, path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Whatever a folder holds, at any depth, each with its own status; links are not followed."""
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
    """Write a file whole or not at all, in place of what has its name; durable: and wait until the disk has it.

    It is written beside it and renamed. Its folder must be there.
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
    """Add to a file, made where there is none, and wait for the disk; what can't be added whole is taken back."""
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
    """Write all of it, without a buffer that would try again later."""
    left = memoryview(payload)
    while left:
        left = left[os.write(handle, left) :]


def remove(root: Path, path: Path) -> None:
    """Delete a file, or a link and not what it leads to, if it is there."""
    with suppress(FileNotFoundError), _reaching(root, path) as place:
        os.unlink(place.name, dir_fd=place.folder)


def make(root: Path, path: Path) -> None:
    """Make a folder, and those between it and the run's, which must be there. Raises DamagedError for a link."""
    for part in [*reversed(path.relative_to(root).parents), path.relative_to(root)][1:]:
        with _reaching(root, root / part) as place:
            try:
                os.mkdir(place.name, dir_fd=place.folder)
            except FileExistsError:
                _check_folder(root / part, os.stat(place.name, dir_fd=place.folder, follow_symlinks=False))


def check_own(root: Path, path: Path) -> None:
    """Raise DamagedError where something lies there that another program may not write into: no regular file, or one
    of several names."""
    about = status(root, path)
    if about is None:
        return
    _check_regular(path, about)
    if about.st_nlink > 1:
        raise DamagedError(f"{path}: has another name elsewhere (a hard link); delete it")


def check_tree(root: Path, path: Path) -> None:
    """Raise DamagedError where another program that writes this file or folder would write through a link."""
    about = status(root, path)
    found = [] if about is None else [(path, about), *entries(root, path)]
    for each, about in found:
        if _is_link(about) and each != path and Path(os.path.realpath(each)).is_relative_to(os.path.realpath(root)):
            continue  # to a file beside it, as trackers make them
        if _is_link(about) or not stat.S_ISDIR(about.st_mode):
            check_own(root, each)


def check_folder(root: Path, path: Path) -> None:
    """Raise DamagedError where something lies there that is no folder, or a link to one."""
    about = status(root, path)
    if about is not None:
        _check_folder(path, about)


@contextmanager
def _reaching(root: Path, path: Path) -> Iterator[_Place]:
    """The folder that holds a file. An OSError tells the file's path."""
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
    """Whether a path lies in a run's folder, as far as its words tell."""
    try:
        return bool(_parts(root, path))
    except DamagedError:
        return False


def _parts(root: Path, path: Path) -> tuple[str, ...]:
    """The names on the way from a run's folder. Raises DamagedError where the path leads out of it."""
    try:
        found = Path(os.path.normpath(path.relative_to(root))).parts
    except ValueError:
        found = ()
    if not found or found[0] == os.pardir or "\0" in str(path):
        raise DamagedError(f"{path}: does not lie in the run's folder")
    return found


def _regular(place: _Place, path: Path, flags: int) -> int:
    """A regular file opened. Raises DamagedError for anything else, which is not even opened where that is known."""
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
    """Whether this is a link, or a junction of Windows."""
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
