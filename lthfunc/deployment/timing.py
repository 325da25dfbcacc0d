"""Timings of variants in turn, so that noise affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import torch

#: Makes a number of calls of what is measured.
TimedFunction = Callable[[int], Any]
K = TypeVar("K", bound=Hashable)
_MOST_CALLS = 20_000


def in_turn(
    variants: dict[K, TimedFunction],
    *,
    seconds: float,
    repeats: int,
    device: str,
    say: Callable[[str], object] = lambda line: None,
) -> dict[K, list[float]]:
    """Calls per second of each variant, `repeats` times in turn (A B C, A B C, …).

    A timing makes as many calls as take about `seconds`; finding that number also warms everything up. say: gets a line
    before the first calls of each variant, which may compile, and before each turn.
    """
    calls = {}
    for name, run in variants.items():
        say(f"{_title(name)}: first calls")
        calls[name] = _calls(run, seconds, device)
    found: dict[K, list[float]] = {name: [] for name in variants}
    for turn in range(repeats):
        say(f"turn {turn + 1} of {repeats}")
        for name, run in variants.items():
            found[name].append(calls[name] / seconds_of(partial(run, calls[name]), device))
    return found


def repeated(call: Callable[[], Any]) -> TimedFunction:
    """Repeated calls of a function without arguments."""

    def run(n: int) -> None:
        for _ in range(n):
            call()

    return run


class ProcessorShare:
    """How much of the time timed functions were run, and not kept waiting by other programs: sums over `watched`."""

    def __init__(self) -> None:
        self._passed = self._used = 0.0

    def watched(self, run: TimedFunction) -> TimedFunction:
        """The same function; a single call is not counted, since it may compile."""

        def counted(n: int) -> None:
            passed, used = time.perf_counter(), time.process_time()
            run(n)
            if n > 1:
                self._passed += time.perf_counter() - passed
                self._used += time.process_time() - used

        return counted

    @property
    def share(self) -> float | None:
        """Processor time of all threads / time that went by; None before anything was counted."""
        return self._used / self._passed if self._passed else None


def synchronize(device: str) -> None:
    """Wait until the device has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _title(name: Hashable) -> str:
    """A variant in words: what it is, and at which density or width where its name is a tuple."""
    if not isinstance(name, tuple):
        return str(name)
    return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in name)


def _calls(run: TimedFunction, seconds: float, device: str) -> int:
    seconds_of(partial(run, 1), device)  # may compile
    calls = 2
    # Until the fixed cost of a timing is small.
    while (taken := seconds_of(partial(run, calls), device)) < seconds / 3 and calls < _MOST_CALLS:
        calls = min(_MOST_CALLS, 4 * calls)
    return max(2, min(_MOST_CALLS, round(seconds * calls / taken)))


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """Seconds that some work takes; on a GPU between two events in its stream, without the host's waiting.

    Work in other streams counts as far as that stream waits for it.
    """
    synchronize(device)
    if not device.startswith("cuda"):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record(stream)
        work()
        ended.record(stream)
        synchronize(device)
    return float(begun.elapsed_time(ended)) / 1e3
