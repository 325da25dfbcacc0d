"""How a measurement is taken: variants in turn, so that noise hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

#: Makes so many calls of what is measured.
Run = Callable[[int], Any]
K = TypeVar("K", bound=Hashable)
_MOST_CALLS = 20_000


def in_turn(variants: dict[K, Run], *, seconds: float, repeats: int, device: str) -> dict[K, list[float]]:
    """Calls per second of each variant, `repeats` times in turn (A B C, A B C, …).

    A timing makes as many calls as take about `seconds`, found out beforehand; that also warms everything up.
    """
    calls = {name: _calls(run, seconds, device) for name, run in variants.items()}
    found: dict[K, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            found[name].append(calls[name] / _timed(run, calls[name], device))
    return found


def repeated(call: Callable[[], Any]) -> Run:
    """So many calls of a function without arguments."""

    def run(n: int) -> None:
        for _ in range(n):
            call()

    return run


def synchronize(device: str) -> None:
    """Wait for the device; clocks are honest only after that."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _calls(run: Run, seconds: float, device: str) -> int:
    _timed(run, 1, device)  # may compile
    calls = 2
    # Until what is done once for all calls together weighs little.
    while (taken := _timed(run, calls, device)) < seconds / 3 and calls < _MOST_CALLS:
        calls = min(_MOST_CALLS, 4 * calls)
    return max(2, min(_MOST_CALLS, round(seconds * calls / taken)))


def _timed(run: Run, calls: int, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    run(calls)
    synchronize(device)
    return time.perf_counter() - start
