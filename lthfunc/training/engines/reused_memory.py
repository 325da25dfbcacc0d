"""What a loop on a GPU leaves to the next one like it: memory, and the graphs that were captured on it.

A graph reads and writes at the addresses that it was captured with, and capturing one takes as long as some hundred
steps of a small network. Trainings in short segments (drop and grow) would not get beyond it.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Reusable(Generic[T]):
    """Memory that is not in use: of the last loop alone, since it is large. Whoever takes it has it for itself."""

    def __init__(self) -> None:
        self._idle: list[tuple[Hashable, T]] = []

    def take(self, fit: Hashable) -> T | None:
        """The memory that was left, where it is what fits; other memory is given up, to make room."""
        while self._idle:
            kind, memory = self._idle.pop()
            if kind == fit:
                return memory
        return None

    def leave(self, fit: Hashable, memory: T) -> None:
        """Leave memory to the next loop, instead of what was left before."""
        self._idle = [(fit, memory)]

    def clear(self) -> None:
        """Give it up."""
        self._idle = []


class GraphPools:
    """The memory for intermediate results of all graphs of an engine, on each device.

    They never run at the same time, and leave nothing there. CUDA's allocator gives memory up with the last graph that
    was captured in it, and takes no new graph there then: the next one begins another.
    """

    def __init__(self) -> None:
        self._handles: dict[torch.device, Any] = {}
        self._graphs: dict[torch.device, weakref.WeakSet[torch.cuda.CUDAGraph]] = {}

    def on(self, device: torch.device) -> Any:
        """The handle of a GPU's, for a capture that begins now."""
        if not self._graphs.get(device):
            self._handles[device] = torch.cuda.graph_pool_handle()
            self._graphs[device] = weakref.WeakSet()
        return self._handles[device]

    def captured(self, device: torch.device, graph: torch.cuda.CUDAGraph) -> None:
        """A graph was captured there."""
        self._graphs[device].add(graph)
