"""Memory over many rounds: a run of a tiny network, its resident memory round by round.

    python -m benchmarks.memory --rounds 1000 --json FILE
    python -m benchmarks.memory --method set

or, installed, `lthfunc benchmark memory`. Runs are those of `lthfunc prune`, including files, checkpoints and records.
``--method`` runs a method on an MLP of 3072-4096-4096-10 at a density of 1 % instead, on the sparse engine.
"""

from __future__ import annotations

import itertools
import json as writer
import math
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from torch import nn

from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.records import Record as Training
from lthfunc.experiments.resolve import resolved
from lthfunc.runs.folder import PRUNE, create
from lthfunc.scheduling.execute import execute
from lthfunc.scheduling.queue import Execution, Watcher
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.malloc import keep_freed_memory
from lthfunc.training.results import Point

from .records import Options, header, saying, script

_POINTS = 10


def tiny(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network of some 1,800 weights for the digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, classes))


def large(shape: tuple[int, ...], classes: int) -> nn.Module:
    """An MLP of 29,401,088 weights."""
    sides = (math.prod(shape), 4096, 4096, classes)
    layers = [part for pair in itertools.pairwise(sides) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


class Watching(Watcher):
    """Notes the resident memory at each evaluation, and after each training."""

    def __init__(self) -> None:
        self.evaluating: list[float] = []
        self.mib: list[float] = []

    def step(self, task: Task, number: int, point: Point | None) -> None:
        """A training is at this step."""
        if point is not None:
            self.evaluating.append(resident())

    def end(self, task: Task, item: Training) -> None:
        """A training ended."""
        self.mib.append(resident())


def resident() -> float:
    """This process's resident memory, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("memory", __doc__)
    options.add("--rounds", type=int, default=1000, help="how often to prune (1000)")
    options.add("--method", help="a run of a large MLP by this method instead, on the sparse engine")
    options.json()
    run(**options.parsed(arguments))


def run(*, rounds: int = 1000, method: str | None = None, json: str | None = None) -> list[float]:
    """Measure; returns MiB after each round, the dense one first, or of a method at each evaluation."""
    found = _over_rounds(rounds) if method is None else _of_method(method)
    command = f"--rounds {rounds}" if method is None else f"--method {method}"
    if json is not None:
        head = header("memory", f"lthfunc benchmark memory {command}", "cpu", 1)
        Path(json).write_text(writer.dumps({**head, "records": [found.record]}, indent=1) + "\n", encoding="utf-8")
    return found.mib


class Found(NamedTuple):
    """What was measured, and as a record."""

    mib: list[float]
    record: dict[str, Any]


def _of_method(method: str) -> Found:
    """Of 60 steps of a training on 1,080 random images, with four checkpoints."""
    saying("memory")(f"{method} on 29,401,088 weights")
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, size in (("train", 1200), ("test", 200)):
        arrays[f"x_{part}"] = draw.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8)
        arrays[f"y_{part}"] = draw.integers(0, 10, size)
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(file := Path(scratch) / "images.npz", **arrays)
        config = Config(
            arch="benchmarks.memory:large", dataset=f"npz:{file}", method=method, steps=60, eval_every=20,
            engine="sparse", checkpoint_every="15", threads=1, densities=None if method == "dense" else "0.01",
        )  # fmt: skip
        watching, prepared = _watched(config, Path(scratch))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"before": prepared, "at an evaluation": max(watching.evaluating), "at most": most}
    for name, mib in found.items():
        Console(width=100).print(f"{name:17}: {mib:8.1f} MiB", highlight=False)
    return Found(watching.evaluating, {"method": method, "mib": {name: round(mib, 1) for name, mib in found.items()}})


def _watched(config: Config, scratch: Path) -> tuple[Watching, float]:
    """(what was noted of a run, MiB before it)."""
    watching = Watching()
    keep_freed_memory()
    with using_threads(1):
        config, plan, *_ = prepare(resolved(config))
        folder = scratch / "run"
        folder.mkdir()
        create(folder, config, PRUNE, data=plan.trainer.data)
        prepared = resident()
        execute(Execution(config, plan, folder, watcher=watching), [], 1)
    return watching, prepared


def _over_rounds(rounds: int) -> Found:
    config = Config(
        arch="benchmarks.memory:tiny", rounds=rounds, rate=0.005, min_layer_weights=1, steps=4, eval_every=2,
        engine="eager", checkpoint_every="2", threads=1, batch_size=50,
    )  # fmt: skip
    saying("memory")(f"{rounds:,} rounds of a tiny network")
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        watching, _ = _watched(config, Path(scratch))
    mib, seconds = watching.mib, time.perf_counter() - begun
    at = sorted({round(number * rounds / _POINTS) for number in range(_POINTS + 1)})
    console = Console(width=100)
    for number in at:
        console.print(f"round {number:5}: {mib[number]:8.1f} MiB", highlight=False)
    grown = mib[-1] - mib[len(mib) // _POINTS]
    console.print(
        f"{rounds:,} rounds in {seconds:.0f} s; from round {len(mib) // _POINTS} on {grown:+.1f} MiB", highlight=False
    )
    return Found(mib, {"rounds": rounds, "mib": {str(number): round(mib[number], 1) for number in at}})


if __name__ == "__main__":
    sys.exit(script(main))
