"""Rates and latencies of tickets' programs, measured alternately, and lower bounds."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn, repeated, synchronize

from .execution_programs import Variant, dense_programs, peers_of, programs_of
from .execution_tickets import Masked
from .floors import BYTES, PEAK, reading_rate
from .networks import Case
from .records import Record, record, saying

#: Of inputs and weights, by the name of a precision.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
#: FLOPs of a batch from which a call takes too long to be repeated on a CPU.
_MOST_FLOPS = 1e11
#: Seconds per repeat for single calls of all variants together, and the minimum number of calls.
_LATENCY_SECONDS, _FEWEST_CALLS = 3.0, 5


class Setting(NamedTuple):
    """What all measurements share. peak: the device's best FLOP/s."""

    about: dict[str, Any]
    peak: float
    seconds: float
    repeats: int
    calls: int

    @property
    def device(self) -> str:
        """The device that it runs on."""
        return str(self.about["device"])


def measured(case: Case, tickets: Sequence[Masked], batch: int, setting: Setting) -> list[Record]:
    """Rates, lower bounds and latencies of a network under these masks, at one size of batch."""
    dtype, device = DTYPES[setting.about["precision"]], setting.device
    x = torch.randn(batch, *case.shape, device=device, dtype=dtype)
    dense = lf.ticket(lf.init(case.model))
    flops = lf.cost(case.model, dense.params, {}, case.shape).flops * batch
    given = {**setting.about, "network": case.name, "batch": batch}
    if device == "cpu" and flops > _MOST_FLOPS:
        print(f"{case.name}, batch {batch}: {flops:.1e} FLOPs a call, left out", file=sys.stderr)
        return []
    calls = dense_programs(case, dense, x)
    floors = []
    for item in tickets:
        calls |= programs_of(case, item, x)
        floors += _floors(case, item, batch, setting, given)
    runs: dict[Variant, TimedFunction] = {key: repeated(call) for key, call in calls.items()}
    if device == "cpu":
        runs |= peers_of(case, tickets, dense, x, setting.about["threads"])
    rates = in_turn(
        runs, seconds=setting.seconds, repeats=setting.repeats, device=device, say=saying(f"{case.name}, batch {batch}")
    )
    found = [
        _times(record(rate, variant=name, density=round(density, 4), **given, unit="samples/s"), batch)
        for (name, density), rate in rates.items()
    ]
    return found + floors + _latencies(calls, setting, given)


def _floors(case: Case, item: Masked, batch: int, setting: Setting, given: dict[str, Any]) -> list[Record]:
    """Surviving FLOPs at the peak rate; values and offsets of survivors at the rate of reading as much memory."""
    if item.kind:
        return []
    left = lf.cost(case.model, item.ticket.params, item.ticket.masks, case.shape)
    size = 8 * left.remaining
    rates = {
        PEAK: setting.peak / (left.effective_flops * batch),
        BYTES: reading_rate(size, setting.device) / size,
    }
    return [
        _times(record([rate], variant=name, density=round(item.density, 4), **given, unit="samples/s"), batch)
        for name, rate in rates.items()
    ]


def _latencies(calls: dict[Variant, Callable[[], Any]], setting: Setting, given: dict[str, Any]) -> list[Record]:
    """Milliseconds of single calls, alternating the variants: the median and the 95th percentile of each repeat."""
    found: dict[Variant, list[list[float]]] = {key: [] for key in calls}
    begun = time.perf_counter()
    for call in calls.values():
        call()
    times = max(_FEWEST_CALLS, min(setting.calls, int(_LATENCY_SECONDS / (time.perf_counter() - begun))))
    for _ in range(setting.repeats):
        for key, call in calls.items():
            call()  # brings its weights back into the caches, whatever ran before
            spans = []
            for _ in range(times):
                synchronize(setting.device)
                start = time.perf_counter()
                call()
                synchronize(setting.device)
                spans.append(1e3 * (time.perf_counter() - start))
            found[key].append(spans)
    records = []
    for (name, density), repeats in found.items():
        about = {**given, "variant": name, "density": round(density, 4)}
        records.append(record([statistics.median(each) for each in repeats], **about, unit="ms, p50"))
        records.append(record([sorted(each)[int(0.95 * (len(each) - 1))] for each in repeats], **about, unit="ms, p95"))
    return records


def _times(item: Record, factor: int) -> Record:
    return {**item, **{name: round(item[name] * factor, 1) for name in ("min", "median", "max")}}
