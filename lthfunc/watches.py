"""Those who are told how something in this process goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, ParamSpec

P = ParamSpec("P")


class Watches(Generic[P]):
    """Functions to call with whatever is told, for as long as each wants to know."""

    def __init__(self) -> None:
        self._watches: list[Callable[P, None]] = []

    @contextmanager
    def watched(self, watch: Callable[P, None]) -> Iterator[None]:
        """Meanwhile, tell `watch`."""
        self._watches.append(watch)
        try:
            yield
        finally:
            self._watches.remove(watch)

    def tell(self, *given: P.args, **named: P.kwargs) -> None:
        """Tell whoever watches."""
        for watch in self._watches:
            watch(*given, **named)
