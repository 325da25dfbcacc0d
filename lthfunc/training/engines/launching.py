"""Calling a program step after step: one by one on a CPU, as captured CUDA graphs of many steps on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lthfunc.training.engines.interface import Tick
from lthfunc.training.engines.tracing import Program
from lthfunc.trees.shards import has_group


class Launcher:
    """A program and its arguments for each slot of the feed; the arguments never move."""

    def __init__(self, program: Program, arguments: Sequence[tuple[Tensor, ...]]) -> None:
        self._program, self._arguments = program, arguments
        self._capture = arguments[0][0].is_cuda
        self._seen: set[int] = set()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def launch(self, steps: int, tick: Tick | None) -> int:
        """Run the program on slots 0 … steps-1, or on fewer if `tick` stops it; returns how many."""
        if self._capture and steps in self._seen and self._replay(steps):
            if tick is not None:
                tick(steps)
            return steps
        # The first time also warms up what a capture must find ready.
        self._seen.add(steps)
        program = self._program
        for slot, arguments in enumerate(self._arguments[:steps]):
            program(*arguments)
            if tick is not None and tick(1):
                return slot + 1
        return steps

    def _replay(self, steps: int) -> bool:
        if steps not in self._graphs:
            graph = torch.cuda.CUDAGraph()
            # With ranks, NCCL's own thread asks the device about its work, which would end a capture of all threads.
            watched = "thread_local" if has_group() else "global"
            try:
                with torch.cuda.graph(graph, capture_error_mode=watched):
                    for arguments in self._arguments[:steps]:
                        self._program(*arguments)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                warnings.warn(f"no CUDA graph of this step: {reason}; launched one by one, more slowly", stacklevel=2)
                self._capture = False
                return False
            self._graphs[steps] = graph
        self._graphs[steps].replay()
        return True
