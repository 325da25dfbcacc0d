"""Calls as CUDA graphs, so that peers that launch kernels one by one are measured without the host's launch time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from lthfunc.deployment.timing import TimedFunction
from lthfunc.tracebacks import first_line

K = TypeVar("K", bound=Hashable)
#: Calls before a capture, in which libraries initialise and compilers try kernels out.
_WARM = 3


def runnable(variants: dict[K, TimedFunction], own: Callable[[K], bool]) -> dict[K, TimedFunction]:
    """The variants that a first call of each finds to run; a line on stderr names each that is left out.

    own: which are this library's; their errors are raised.
    """
    found = {}
    for name, run in variants.items():
        try:
            run(1)
        except Exception as error:
            if own(name):
                raise
            print(f"left out: {name} ({type(error).__name__}: {first_line(error)})", file=sys.stderr, flush=True)
        else:
            found[name] = run
    return found


def graphed(call: Callable[[], Any], device: torch.device | str) -> Callable[[], Any]:
    """The call captured on its device's stream, as one launch; the call itself where there are no graphs.

    It reads and writes the same memory each time, and doesn't wait for the device.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return call
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM):
                call()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            call()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay
