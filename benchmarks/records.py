"""How a measurement is taken and written down: variants in turn, medians, versions and hardware beside them."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lthfunc.errors import UserError, invalid, unknown
from lthfunc.runs.folder import machine

#: Makes so many calls of what is measured.
Run = Callable[[int], Any]
Record = dict[str, Any]
_MOST_CALLS = 20_000


def chosen(networks: Sequence[str], default: Sequence[str], every: Sequence[str], threads: int) -> list[str]:
    """The networks to measure. Raises UserError for a name that is not among `every`, and for no thread at all."""
    for name in networks:
        if name not in every:
            raise unknown("--network", name, every)
    if threads < 1:
        raise invalid("--threads", threads, "a whole number of at least 1")
    return list(networks or default)


def reported(measure: Callable[..., Any], options: argparse.Namespace) -> int:
    """Measure by a script's options; a mistake in them is one line and exit code 2."""
    try:
        measure(**{**vars(options), "networks": options.networks or []})
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def in_turn(variants: dict[str, Run], *, seconds: float, repeats: int, device: str) -> dict[str, list[float]]:
    """Calls per second of each variant, `repeats` times in turn (A B C, A B C, …), so that noise hits all alike.

    A timing makes as many calls as take about `seconds`, found out beforehand; that also warms everything up.
    """
    calls = {name: _calls(run, seconds, device) for name, run in variants.items()}
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            found[name].append(calls[name] / _timed(run, calls[name], device))
    return found


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


def synchronize(device: str) -> None:
    """Wait for the device; clocks are honest only after that."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def record(rates: list[float], **about: Any) -> Record:
    """One line of results: what was measured, and the spread of its rates."""
    spread = {"min": min(rates), "median": statistics.median(rates), "max": max(rates), "repeats": len(rates)}
    return {**about, **{name: round(value, 3) for name, value in spread.items()}}


def header(benchmark: str, command: str, device: str, threads: int | None = None) -> dict[str, Any]:
    """What the numbers of a file were taken on."""
    peers: dict[str, str | None] = {}
    for name in ("jax", "jaxlib", "optax", "sparseprop", "scipy"):
        try:
            peers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            peers[name] = None
    return {"benchmark": benchmark, "command": command, "machine": machine(device, threads), "peers": peers}


def write(path: str | Path, head: dict[str, Any], records: list[Record]) -> None:
    """The header and the records as one JSON file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({**head, "records": records}, indent=1) + "\n", encoding="utf-8")
