"""Downloads: who is told of them, and how long a server may be silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Is called with what is downloaded as it begins, and with "" once it has ended.
Watch = Callable[[str], None]
_watches: list[Watch] = []
#: Seconds after which a server that sends nothing is given up.
_SILENT = 20


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Meanwhile, tell `watch` of each download in this process."""
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)


@contextmanager
def downloading(what: str) -> Iterator[None]:
    """Meanwhile something is downloaded by sockets, which give up a silent server. what: and from where, in words."""
    import socket  # which every command would pay for

    _tell(f"downloading {what}; a server that is silent for {_SILENT} s is given up")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENT)  # torchvision has no argument for it
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        _tell("")


def _tell(text: str) -> None:
    for watch in _watches:
        watch(text)
