"""Files that appear whole or not at all, and are on the disk once they have appeared."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lthfunc.errors import UserError

#: The suffix of files that are being written; those that a crash left are ignored.
TEMPORARY_SUFFIX = ".unfinished"


def safe_file_name(text: str) -> str:
    """Text as part of a file name that every file system accepts: ``timm:vit`` as ``timm-vit``."""
    return re.sub(r'[<>:"/\\|?*\s\x00-\x1f]+', "-", text).strip("-.") or "unnamed"


def write_atomically(path: str | os.PathLike[str], payload: bytes) -> None:
    """Write to a temporary file beside the target, then rename it: no reader and no crash ever sees half a file."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(payload)


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside the target, to be written in the block; it takes the target's name if the block succeeds.

    By then the file is on the disk, and afterwards so is its name. An OSError names the target.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file in it")
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=TEMPORARY_SUFFIX)
        temporary = Path(name)
        try:
            os.close(handle)
            yield temporary
            # mkstemp makes private files; give the result the permissions an ordinary write would have.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            fsync_path(temporary)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(target.parent)
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(TEMPORARY_SUFFIX)):
            error.filename, error.filename2 = str(target), None
        raise


def fsync_path(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # where folders cannot be opened, and a rename waits by itself
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
