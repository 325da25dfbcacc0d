"""Downloads: who is told of them, and how long a server may be silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lthfunc.watches import Watches

#: Are called with what is downloaded as it begins, and with "" once it has ended.
DOWNLOADS: Watches[[str]] = Watches()
#: Seconds after which a server that sends nothing is given up.
_SILENT = 20


@contextmanager
def downloading(what: str) -> Iterator[None]:
    """Meanwhile something is downloaded by sockets, which give up a silent server. what: and from where, in words."""
    import socket  # which every command would pay for

    DOWNLOADS.tell(f"downloading {what}; a server that is silent for {_SILENT} s is given up")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENT)  # torchvision has no argument for it
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        DOWNLOADS.tell("")
