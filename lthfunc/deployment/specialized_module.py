"""A ticket's network, ready to run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from lthfunc.deployment.cost import Cost

#: Times whose quartiles are farther apart than this share of the median are too uncertain to be compared.
STEADY = 0.25
#: So are those of a process that had a processor for less than this share of the time, since others ran there. The
#: times of all threads are summed, so two that ran for half of the time each still reach it: the check holds on one.
_UNDISTURBED = 0.8


class Timings(NamedTuple):
    """Times of programs, measured in turns.

    turns: seconds per batch in each turn, by candidate; "dense" is the compiled dense network. batch: its size.
    processor_share: processor time of this process / time that went by; None where it is not known, as on a GPU.
    """

    turns: dict[str, list[float]]
    batch: int
    processor_share: float | None = None

    @property
    def disturbed(self) -> bool:
        """Whether other programs kept this one from running."""
        return self.processor_share is not None and self.processor_share < _UNDISTURBED

    @property
    def seconds(self) -> dict[str, float]:
        """The median time per batch, by candidate."""
        return {name: statistics.median(found) for name, found in self.turns.items()}

    def quartiles(self, form: str) -> tuple[float, float]:
        """The first and third quartile of a candidate's times."""
        first, _, third = statistics.quantiles(self.turns[form], n=4, method="inclusive")
        return first, third

    def spread(self, form: str) -> float:
        """The distance between the quartiles of a candidate's times, relative to their median."""
        first, third = self.quartiles(form)
        return (third - first) / self.seconds[form]

    def speedup(self, form: str) -> float | None:
        """How many times as fast as dense, by the medians; None where the times of either are too uncertain."""
        if self.disturbed or max(self.spread("dense"), self.spread(form)) > STEADY:
            return None
        return self.seconds["dense"] / self.seconds[form]


class ProgramReport(NamedTuple):
    """What a program is and costs.

    name: of the candidate that was chosen. formats: by layer, where layers have formats of their own. left_out: why a
    format could not be used, by its name. cost: the ticket's theoretical cost. compact_flops: FLOPs per example of the
    network without dead units; None where it cannot be compacted. bytes: of the dense float32 weights, and of the
    weights as the program holds them. difference: the largest from the masked network's outputs, relative to the
    largest of these. measured: None where nothing was timed.
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
        """Its format: "dense", "compact", "sparse", or "layers" where layers have formats of their own."""
        return self.name.partition(" ")[0]


class SpecializedModule(nn.Module):
    """A ticket's network in evaluation mode, ready to run; `specialize` makes it.

    network: the plain module behind it (masked, compacted, or with layers replaced). report: what it is and costs.
    Compiled programs compile once for each batch size, on the first call with that size.
    """

    def __init__(self, network: nn.Module, run: Callable[[Tensor], Any], report: ProgramReport) -> None:
        super().__init__()
        self.network = network
        self.report = report
        self._run = run

    def __call__(self, x: Tensor) -> Any:  # not by way of hooks, which would cost a small network 5 %
        """Compute the outputs for a batch (n, ...) on the program's device."""
        return self._run(x)

    forward = __call__
