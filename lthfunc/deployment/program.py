"""A ticket's network, ready to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from lthfunc.deployment.cost import Cost


class Timings(NamedTuple):
    """seconds: of a batch, by form (medians; "dense" is the compiled dense network). batch: its size."""

    seconds: dict[str, float]
    batch: int

    def speedup(self, form: str) -> float:
        """How much faster than dense."""
        return self.seconds["dense"] / self.seconds[form]


class ProgramReport(NamedTuple):
    """What a program is.

    name: as it was measured; form: "dense", "compact", "sparse", or "layers", where layers have formats of their own.
    formats: of each layer then. left_out: why a form or a layer's format was not to be had. cost: of the ticket in
    theory. compact_flops: of an example, of the network without dead units, or None where it cannot be compacted.
    bytes: of the dense float32 weights, and of what the program holds. difference: from the masked network's outputs,
    relative to the largest. measured: None where nothing was timed.
    """

    name: str
    formats: dict[str, str]
    left_out: dict[str, str]
    cost: Cost
    compact_flops: float | None
    bytes: tuple[int, int]
    difference: float
    measured: Timings | None

    @property
    def form(self) -> str:
        """Of the network."""
        return self.name.partition(" ")[0]


class Program(nn.Module):
    """Maps inputs to the outputs of a ticket's network in evaluation mode.

    network: the plain module behind it (masked, compacted, or with layers replaced). report: what it is and costs. It
    is made ready for a size of batch when that size first comes.
    """

    def __init__(self, network: nn.Module, run: Callable[[Tensor], Any], report: ProgramReport) -> None:
        super().__init__()
        self.network = network
        self.report = report
        self._run = run

    def __call__(self, x: Tensor) -> Any:  # not by way of hooks, which would cost a small network 5 %
        """The outputs for a batch (n, ...), on the program's device."""
        return self._run(x)

    forward = __call__
