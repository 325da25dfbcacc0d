"""What a measurement was taken on, and how it is written down."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lthfunc.runs.folder import machine


def rates(
    variants: dict[str, Callable[[int], Any]], calls: int, repeats: int, device: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Calls per second of each variant, `repeats` times in turn (A B C, A B C, …), so that drift hits all alike.

    A variant is a function that makes n calls. Each is warmed up with two before; the seconds that this took, any
    compilation among them, are the second result.
    """
    warmup = {}
    for name, run in variants.items():
        start = time.perf_counter()
        run(2)
        synchronize(device)
        warmup[name] = time.perf_counter() - start
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            synchronize(device)
            start = time.perf_counter()
            run(calls)
            synchronize(device)
            found[name].append(calls / (time.perf_counter() - start))
    return found, warmup


def synchronize(device: str) -> None:
    """Wait for the device; clocks are honest only after that."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ratio(found: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the repeats of the ratio taken within each repeat."""
    return statistics.median(a / b for a, b in zip(found[name], found[base], strict=True))


def report(title: str, result: dict[str, Any], device: str, path: str | None) -> None:
    """Print a result, and write it as JSON with the versions and the machine's name."""
    whole = {"benchmark": title, "machine": machine(device), **result}
    text = json.dumps(whole, indent=2)
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
