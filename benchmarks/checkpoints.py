"""What checkpoints cost: whole trainings with and without them, alternately, and the longest pause between steps.

    python -m benchmarks.checkpoints --network lenet300 --network resnet18 --seconds 65 --json FILE

or, installed, `lthfunc benchmark checkpoints`. Trainings run as in `lthfunc prune`, each for this many seconds, once
with the default interval (30 s), once without checkpoints. A checkpoint is copied out of the loop between two steps and
written during the next ones: its pause is the longest time from one step to the next, shown with the median.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console

import lthfunc as lf
from lthfunc.catalog.networks import NETWORKS
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET, Plan, Task
from lthfunc.models import build
from lthfunc.runs.checkpoints import save_checkpoint
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.queue import Execution
from lthfunc.training.cpu_threads import using_threads
from lthfunc.trees.ops import data_to_device, leaves

from .records import Options, Record, checked_densities, chosen, header, record, saying, script, write

_NETWORKS = ("lenet300", "resnet18")
_QUICK = ("lenet300",)
_NEVER = "never"


class Timed(NamedTuple):
    """A training. seconds: in total; gaps: from one step to the next; written: seconds that each checkpoint took.

    sizes: bytes of the last checkpoint, and of its trees.
    """

    seconds: float
    gaps: list[float]
    written: list[float]
    sizes: tuple[int, int]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("checkpoints", __doc__)
    options.networks("default: lenet300 and resnet18")
    options.add("--engine", default="eager", help="eager, compile or sparse (eager)")
    options.add("--density", type=float, default=1.0, help="of the weights that are trained (1)")
    options.add("--every", default=Config().checkpoint_every, help="checkpoint interval")
    options.add("--seconds", type=float, default=65.0, help="length of each training (65)")
    options.add("--repeats", type=int, default=3, help="trainings of each kind (3)")
    options.threads()
    options.device()
    options.add("--quick", action="store_true", help="only LeNet-300-100: under a minute")
    options.json()
    run(**options.parsed(arguments))


def run(
    *, networks: list[str], engine: str = "eager", density: float = 1.0, every: str = "30s", seconds: float = 65.0,
    repeats: int = 3, threads: int = 1, device: str = "cpu", quick: bool = False, json: str | None = None,
) -> list[Record]:  # fmt: skip
    """Measure these networks. Raises UserError for an unknown name or an invalid interval."""
    checked_densities([density], ())
    names = chosen(networks, _QUICK if quick else _NETWORKS, tuple(NETWORKS), threads)
    if quick:
        every, seconds, repeats = "1s", 3.0, 1
    console, records = Console(width=150), list[Record]()
    with using_threads(threads):
        for name in names:
            found = _measured(name, engine, density, every, seconds, repeats, device)
            records += [{**each, "threads": threads, "device": device} for each in found]
            for each in found:
                console.print(_line(each), highlight=False)
    if json is not None:
        command = " ".join(["lthfunc benchmark checkpoints", *(f"--network {each}" for each in networks)])
        write(json, header("checkpoints", command, device, threads), records)
    return records


def _measured(
    name: str, engine: str, density: float, every: str, seconds: float, repeats: int, device: str
) -> list[Record]:
    plan, task = _case(name, engine, density, device)
    say, steps = saying(name), 3
    say("how long a step takes")
    for share in (
        0.05,
        1.0,
    ):  # a few steps show how many fill a twentieth of the time, and those how many fill all of it
        gaps = _timed(plan._replace(steps=steps), task, _NEVER).gaps
        steps = max(3, int(share * seconds / statistics.median(gaps)))
    plan = plan._replace(steps=steps, eval_every=steps)
    kept: dict[str, list[Timed]] = {every: [], _NEVER: []}
    for number in range(repeats):
        say(f"turn {number + 1} of {repeats}, {steps} steps each with and without checkpoints")
        for interval in (every, _NEVER) if number % 2 == 0 else (_NEVER, every):
            kept[interval].append(_timed(plan, task, interval))
    whole = {interval: [each.seconds for each in runs] for interval, runs in kept.items()}
    step = statistics.median(gap for each in kept[_NEVER] for gap in each.gaps)
    return [
        record(
            whole[interval], network=name, engine=engine, density=density, checkpoint_every=interval, steps=steps,
            share=round(statistics.median(whole[interval]) / statistics.median(whole[_NEVER]) - 1, 5),
            median_step_ms=round(1000 * step, 3),
            longest_step_ms=round(1000 * max(max(each.gaps) for each in runs), 3),
            checkpoints=sum(len(each.written) for each in runs) / repeats,
            written_ms=round(1000 * statistics.median([time for each in runs for time in each.written] or [0.0]), 1),
            bytes=max(each.sizes[0] for each in runs), dense_bytes=max(each.sizes[1] for each in runs),
        )
        for interval, runs in kept.items()
    ]  # fmt: skip


def _case(name: str, engine: str, density: float, device: str) -> tuple[Plan, Task]:
    small = name.startswith("lenet")
    shape, size, batch = ((1, 28, 28), 6000, 60) if small else ((3, 32, 32), 512, 128)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size, *shape), generator=draw, dtype=torch.uint8)
    targets = torch.randint(0, 10, (size,), generator=draw)
    scale = lf.Scale(255.0, (0.5,) * shape[0], (0.25,) * shape[0])
    pair = (pixels, targets)
    data = lf.data.from_tensors("random", pair, (pixels[:batch], targets[:batch]), val=batch, classes=10, scale=scale)
    data = data_to_device(data, device)
    model = build(name, shape, 10)
    trainer = lf.make_trainer(model, data, optimizer=lf.adam(1e-4), batch_size=batch, engine=engine)
    start = lf.init(model, 0, device)
    if density < 1:
        start = lf.prune(density=density, score=lf.random_scores(0))(start)
    return Plan(model, trainer, steps=10, eval_every=10**9), Task(0, 0, TICKET, start, None)


def _timed(plan: Plan, task: Task, interval: str) -> Timed:
    """One training, from the call to its result on the disk that checkpoints go to."""
    times: list[float] = []
    written: list[float] = []
    paths: list[Path] = []

    def saved(*given: Any) -> Path:
        begun = time.perf_counter()
        path = save_checkpoint(*given)
        written.append(time.perf_counter() - begun)
        paths.append(path)
        return path

    with tempfile.TemporaryDirectory() as folder, mock.patch("lthfunc.scheduling.checkpointing.save_checkpoint", saved):
        begun = time.perf_counter()
        train_with_checkpoints(
            Execution(Config(checkpoint_every=interval), plan, Path(folder)), [task],
            lambda number, point: times.append(time.perf_counter()) if point is None else None,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        last = [
            (path.stat().st_size, sum(leaf.nbytes for leaf in leaves(lf.load_tree(path)[0]))) for path in paths[-1:]
        ]
    return Timed(seconds, [after - before for before, after in pairwise(times)], written, last[0] if last else (0, 0))


def _line(item: Record) -> str:
    return (
        f"{item['network']:10} {item['engine']:8} at {item['density']:g} every {item['checkpoint_every']:6} "
        f"{item['median']:7.1f} s for "
        f"{item['steps']:,} steps ({100 * item['share']:+.2f} %), step {item['median_step_ms']:.2f} ms, longest "
        f"{item['longest_step_ms']:.2f} ms; {item['checkpoints']:g} checkpoints of {item['written_ms']:.0f} ms, "
        f"{item['bytes']:,} bytes for {item['dense_bytes']:,}"
    )


if __name__ == "__main__":
    sys.exit(script(main))
