"""How many threads a loop takes, found out while it runs: results don't depend on their number, so a clock may choose.

Threads that share a step wait for each other some ten times in it. On a machine that others use too, one of them is
often not running, and a step then takes as long as a time slice of its core, up to twenty times longer; one thread
alone loses only its share. So both are tried at first, and again where the rate falls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

#: Seconds of steps that a trial takes, and that lie between two looks at the rate.
_TRIAL, _WINDOW = 0.02, 0.1
#: One thread must be faster by so much; a rate that falls below this share of what it was is looked into; seconds after
#: which one thread is compared again, since the machine may have become quiet.
_MARGIN, _FALLEN, _AGAIN = 1.05, 0.75, 2.0


class Pace:
    """Chooses between all threads of a loop and one. threads: all; clock: of seconds."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._all, self._clock = threads, clock
        self._tries = [threads, 1] if threads > 1 else []
        self._rates: dict[int, float] = {}
        self._now = threads
        self._steps = self._seconds = 0.0
        self._since = clock()
        self._warm = False

    @property
    def threads(self) -> int:
        """For the next call."""
        return self._tries[0] if self._tries else self._now

    def took(self, steps: int, seconds: float) -> None:
        """A call of so many steps took so long."""
        if self._all == 1:
            return
        if not self._warm:  # the first call also touches its memory for the first time
            self._warm = True
            return
        self._steps += steps
        self._seconds += seconds
        if self._seconds < (_TRIAL if self._tries else _WINDOW):
            return
        rate, self._steps, self._seconds = self._steps / self._seconds, 0.0, 0.0
        if self._tries:
            self._rates[self._tries.pop(0)] = rate
            if not self._tries:
                alone = self._rates[1] > _MARGIN * self._rates[self._all]
                self._now, self._since = (1 if alone else self._all), self._clock()
        elif rate < _FALLEN * self._rates[self._now]:
            self._tries = [self._all, 1]
        elif self._now == 1 and self._clock() - self._since > _AGAIN:
            self._rates[1] = rate
            self._tries = [self._all]

    @contextmanager
    def running(self) -> Iterator[None]:
        """The threads set for a call, and put back."""
        if self.threads == self._all:
            yield
            return
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(self._all)
