"""Ranks as threads of one process: what several ranks compute, without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lthfunc.distributed.collectives import Collectives


class Ranks:
    """Ranks as threads: `total` waits for all, as a collective does, and counts what is exchanged."""

    def __init__(self, count: int) -> None:
        self.count, self.numbers, self.calls = count, 0, 0
        self._barrier = threading.Barrier(count)
        self._given: list[Tensor] = [torch.empty(0)] * count

    def collectives(self, rank: int) -> Collectives:
        def total(numbers: Tensor) -> Tensor:
            self._given[rank] = numbers
            self._barrier.wait()
            found = torch.stack(self._given).sum(0)
            self._barrier.wait()
            if rank == 0:
                self.numbers, self.calls = self.numbers + numbers.numel(), self.calls + 1
            return found

        return Collectives(rank, self.count, total)

    def run(self, work: Callable[[int, Collectives], Any]) -> list[Any]:
        found: list[Any] = [None] * self.count

        def one(rank: int) -> None:
            try:
                found[rank] = work(rank, self.collectives(rank))
            except BaseException as error:
                self._barrier.abort()
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, threading.BrokenBarrierError):
                raise each
        return found
