"""How many threads a loop takes, found out while it runs: results don't depend on their number, so a clock may choose.

Threads that share a step wait for each other some ten times in it. On a machine that others use too, one of them is
often not running, and a step then takes as long as a time slice of its core, up to twenty times longer; one thread
alone loses only its share. So where the threads don't get the time of their cores, one is tried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

#: Seconds of steps between two looks, and in a trial.
_WINDOW, _TRIAL = 0.1, 0.02
#: Threads that get less than this share of their cores' time are disturbed: they wait for each other without sleep.
_DISTURBED = 0.85
#: One thread must be faster by so much.
_MARGIN = 1.05
#: Threads without cores of their own may be this many times slower: a call of a trial takes fewer steps by that factor.
_SLOWER = 20
#: Seconds until the other number is tried again, since other programs come and go; doubled each time it was not faster.
_AGAIN = 2.0


class ThreadTuner:
    """Chooses between all threads of a loop and one. threads: all; clock: of seconds."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._all, self._clock = threads, clock
        self._now, self._trial = threads, False
        self._rate = self._steps = self._seconds = self._cpu = 0.0
        self._not_before, self._pause = float("-inf"), _AGAIN
        self._warm = False

    def at_most(self, steps: int) -> int:
        """So many steps in the next call, or fewer where it is a trial, which should not take long."""
        return min(steps, max(1, int(self._rate * _TRIAL / _SLOWER))) if self._trial else steps

    def processor_time(self) -> float:
        """Seconds of all threads together, as `took` wants them. One thread has nothing to choose, and a look at this
        clock may take as long as a step where a sandbox keeps it."""
        return time.process_time() if self._all > 1 else 0.0

    @property
    def threads(self) -> int:
        """For the next call."""
        return self._other if self._trial else self._now

    @property
    def _other(self) -> int:
        return 1 if self._now == self._all else self._all

    def took(self, steps: int, seconds: float, cpu: float) -> None:
        """Note how long a call of `steps` steps took. cpu: seconds of processor time of all threads together."""
        if self._all == 1:
            return
        if not self._warm:  # the first call also touches its memory for the first time
            self._warm = True
            return
        self._steps, self._seconds, self._cpu = self._steps + steps, self._seconds + seconds, self._cpu + cpu
        if self._seconds < (_TRIAL if self._trial else _WINDOW):
            return
        rate, share = self._steps / self._seconds, self._cpu / (self._all * self._seconds)
        self._steps = self._seconds = self._cpu = 0.0
        if self._trial:
            self._compare(rate)
            return
        self._rate = rate
        disturbed = self._now == 1 or share < _DISTURBED
        self._trial = disturbed and self._clock() >= self._not_before

    @contextmanager
    def running(self) -> Iterator[None]:
        """The threads set for a call, and put back."""
        threads = self.threads
        if threads == self._all:
            yield
            return
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(self._all)

    def _compare(self, rate: float) -> None:
        """A trial of the other number ended with this rate."""
        alone, together = (rate, self._rate) if self._now == self._all else (self._rate, rate)
        self._trial = False
        better = 1 if alone > _MARGIN * together else self._all
        self._pause = 2 * self._pause if better == self._now else _AGAIN
        self._now = better
        self._not_before = self._clock() + self._pause


class ThreadTuners(threading.local):
    """The tuners by number of threads; each thread that trains has its own."""

    def __init__(self) -> None:
        self._of: dict[int, ThreadTuner] = {}

    def of(self, threads: int) -> ThreadTuner:
        """The tuner for this number of threads."""
        return self._of.setdefault(threads, ThreadTuner(threads))
