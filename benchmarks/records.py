"""How measurements are written down: medians, versions and hardware beside them."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError, invalid, unknown
from lthfunc.runs.environment import machine

Record = dict[str, Any]
#: What a record says of a training step, of one network: FLOPs of its products, bytes that it can't do without.
FLOPS, MOVED = "FLOPs of a step", "bytes of a step"


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


def record(rates: list[float], **about: Any) -> Record:
    """One line of results: what was measured, and the spread of its rates."""
    spread = {"min": min(rates), "median": statistics.median(rates), "max": max(rates), "repeats": len(rates)}
    return {**about, **{name: round(value, 3) for name, value in spread.items()}}


def header(benchmark: str, command: str, device: str, threads: int | None = None) -> dict[str, Any]:
    """What the numbers of a file were taken on."""
    peers: dict[str, str | None] = {}
    for name in ("jax", "jaxlib", "optax", "sparseprop", "scipy", "onnxruntime"):
        try:
            peers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            peers[name] = None
    return {"benchmark": benchmark, "command": command, "machine": machine(device, threads), "peers": peers}


def write(path: str | Path, head: dict[str, Any], records: list[Record]) -> None:
    """The header and the records as one JSON file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({**head, "records": records}, indent=1) + "\n", encoding="utf-8")
