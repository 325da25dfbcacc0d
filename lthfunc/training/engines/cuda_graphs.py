"""Calling a program step after step: one by one on a CPU, as captured CUDA graphs of many steps on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lthfunc.training.engines.interface import Tick
from lthfunc.training.engines.reused_memory import GraphPools
from lthfunc.training.engines.tracing import CompiledFunction


class Launcher:
    """A program and its arguments for each slot of the prefetcher; the arguments never move.

    pools: memory for the graphs' intermediate results, shared with other launchers of an engine. capture: whether
    graphs are captured, where there are any.
    """

    def __init__(
        self,
        program: CompiledFunction,
        arguments: Sequence[tuple[Tensor, ...]],
        pools: GraphPools | None = None,
        *,
        capture: bool = True,
    ) -> None:
        self._program, self._arguments = program, arguments
        self._device = arguments[0][0].device
        self._capture = capture and self._device.type == "cuda"
        self._seen: set[int] = set()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pools = pools or GraphPools()

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
        # A graph is captured and replayed on streams of the current device, whatever device its arguments are on.
        with torch.cuda.device(self._device):
            if steps not in self._graphs and not self._captured(steps):
                return False
            self._graphs[steps].replay()
        return True

    def _captured(self, steps: int) -> bool:
        graph = torch.cuda.CUDAGraph()
        # Left to itself, PyTorch keeps one stream for all captures, on the device of the first.
        stream = torch.cuda.Stream(self._device)
        try:
            # "thread_local": meanwhile other threads (the prefetcher's, a checkpoint's, NCCL's) query devices.
            pool = self._pools.on(self._device)
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                for arguments in self._arguments[:steps]:
                    self._program(*arguments)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"no CUDA graph of this step: {reason}; launched one by one, more slowly", stacklevel=4)
            self._capture = False
            return False
        self._pools.captured(self._device, graph)
        self._graphs[steps] = graph
        return True
