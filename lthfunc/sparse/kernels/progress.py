"""Who is told how a build of the kernels goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Is called with how many parts are compiled, of how many; with 0 when a build begins.
Watch = Callable[[int, int], None]
_watches: list[Watch] = []


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Meanwhile, tell `watch` of each build in this process."""
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)


def tell(done: int, parts: int) -> None:
    """Tell whoever watches."""
    for watch in _watches:
        watch(done, parts)
