"""Memory over many rounds: a run of a tiny network, its resident memory round by round.

    python -m benchmarks.memory --rounds 1000 --json FILE

or, installed, `lthfunc benchmark memory`. Rounds run as in `lthfunc prune`, including files, checkpoints and records.
"""

from __future__ import annotations

import json as writer
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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

from .records import Options, header, saying, script

_POINTS = 10


def tiny(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network of some 1,800 weights for the digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, classes))


class Watching(Watcher):
    """Notes the resident memory after each training."""

    def __init__(self) -> None:
        self.mib: list[float] = []

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
    options.json()
    run(**options.parsed(arguments))


def run(*, rounds: int = 1000, json: str | None = None) -> list[float]:
    """Measure; returns MiB after each round, the dense one first."""
    config = Config(
        arch="benchmarks.memory:tiny", rounds=rounds, rate=0.005, min_layer_weights=1, steps=4, eval_every=2,
        engine="eager", checkpoint_every="2", threads=1, batch_size=50,
    )  # fmt: skip
    saying("memory")(f"{rounds:,} rounds of a tiny network")
    watching, begun = Watching(), time.perf_counter()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch, using_threads(1):
        config, plan, *_ = prepare(resolved(config))
        folder = Path(scratch) / "run"
        folder.mkdir()
        create(folder, config, PRUNE, data=plan.trainer.data)
        execute(Execution(config, plan, folder, watcher=watching), [], 1)
    mib, seconds = watching.mib, time.perf_counter() - begun
    at = sorted({round(number * rounds / _POINTS) for number in range(_POINTS + 1)})
    console = Console(width=100)
    for number in at:
        console.print(f"round {number:5}: {mib[number]:8.1f} MiB", highlight=False)
    grown = mib[-1] - mib[len(mib) // _POINTS]
    console.print(
        f"{rounds:,} rounds in {seconds:.0f} s; from round {len(mib) // _POINTS} on {grown:+.1f} MiB", highlight=False
    )
    if json is not None:
        found: dict[str, Any] = {"rounds": rounds, "mib": {str(number): round(mib[number], 1) for number in at}}
        head = header("memory", f"lthfunc benchmark memory --rounds {rounds}", "cpu", 1)
        Path(json).write_text(writer.dumps({**head, "records": [found]}, indent=1) + "\n", encoding="utf-8")
    return mib


if __name__ == "__main__":
    sys.exit(script(main))
