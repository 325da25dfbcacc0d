"""Every architecture on every engine: whether it compiles and how long that takes, and steps per second.

    python -m benchmarks.architectures --network vit-tiny --batch 8 --density 0.1 --json FILE

or, installed, `lthfunc benchmark architectures`. Compiling is timed without any cache of compiled code. The sparse
engine trains a random mask of the given density; if it doesn't support a network, the record has the reason.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

import lthfunc as lf
from lthfunc.catalog.networks import NETWORKS
from lthfunc.errors import UserError
from lthfunc.models import build
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.engines.table import Making

from .records import Options, Record, chosen, header, record, saying, script, write

_REPEATS, _STEPS = 3, 2
_TEXT, _KINDS = 64, 65
_QUICK = ("lenet300",)
_ENGINES: dict[str, Making] = {"eager": "eager", "compile": "compile", "sparse": lf.sparse_engine}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("architectures", __doc__)
    options.networks("one of `lthfunc archs` (default: all)")
    options.add("--batch", type=int, default=8, help="examples of a step (8)")
    options.add("--density", type=float, default=0.1, help="of the masks (0.1)")
    options.threads()
    options.add("--quick", action="store_true", help="only LeNet-300-100: under a minute")
    options.json()
    run(**options.parsed(arguments))


def run(
    *, networks: list[str], batch: int = 8, density: float = 0.1, threads: int = 1, quick: bool = False,
    json: str | None = None,
) -> list[Record]:  # fmt: skip
    """Measure these architectures, by default all. Raises UserError for an unknown name."""
    names = chosen(networks, _QUICK if quick else tuple(NETWORKS), tuple(NETWORKS), threads)
    about = {"device": "cpu", "threads": threads, "batch": batch, "density": density, "precision": "fp32"}
    records: list[Record] = []
    console = Console(width=150)
    with (
        using_threads(threads),
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": scratch}),
    ):
        for name in names:
            found = _measured(name, batch, density, about)
            console.print(_lines(found), highlight=False)
            records += found
            if json is not None:  # an interrupted measurement keeps its records
                command = " ".join(["lthfunc benchmark architectures", *(f"--network {each}" for each in networks)])
                write(json, header("architectures", command, "cpu", threads), records)
    return records


def _measured(name: str, batch: int, density: float, about: dict[str, Any]) -> list[Record]:
    text = NETWORKS[name].inputs == "text"
    shape = (_TEXT,) if text else (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    draw = torch.Generator().manual_seed(0)
    size = 4 * batch
    x = torch.randint(0, _KINDS, (size, *shape), generator=draw) if text else torch.rand(size, *shape, generator=draw)
    pixels = NETWORKS[name].targets == "pixels"
    places = (_TEXT,) if text else shape[1:] if pixels else ()
    y = torch.randint(0, _KINDS if text else 10, (size, *places), generator=draw)
    data = lf.data.from_tensors("random", (x, y), (x, y), val=batch, classes=_KINDS if text else 10)
    model = build(name, shape, data.classes, inputs=data.inputs)
    start = lf.prune(density=density, score=lf.random_scores(0), allocate=lf.uniform())(lf.init(model))
    learns: Any = {"loss": lf.pixel_cross_entropy, "metric": lf.pixel_accuracy} if pixels else {}
    found: list[Record] = []
    ready: dict[str, Any] = {}
    say = saying(name)
    for engine, making in _ENGINES.items():
        say(f"{engine}: first step")
        began = time.perf_counter()
        try:
            trainer = lf.make_trainer(
                model, data, optimizer=lf.sgd(1e-3, 0.9), batch_size=batch, engine=making, **learns
            )
            lf.take_steps(trainer, start, seed=0, until=1)
        except UserError as error:
            found.append({"network": name, "variant": engine, **about, "unit": "steps/s", "reason": str(error)})
            continue
        ready[engine] = trainer
        if engine == "compile":
            seconds = [time.perf_counter() - began]
            found.append(record(seconds, network=name, variant="compiling", unit="s", **about))
    rates: dict[str, list[float]] = {engine: [] for engine in ready}
    for turn in range(_REPEATS):
        say(f"turn {turn + 1} of {_REPEATS}")
        for engine, trainer in ready.items():
            began = time.perf_counter()
            lf.take_steps(trainer, start, seed=0, until=_STEPS)
            rates[engine].append(_STEPS / (time.perf_counter() - began))
    return found + [record(rates[each], network=name, variant=each, unit="steps/s", **about) for each in ready]


def _lines(records: list[Record]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for item in records:
        value = f"{item['median']:,.2f} {item['unit']}" if "median" in item else item["reason"]
        table.add_row(item["network"], item["variant"], value)
    return table


if __name__ == "__main__":
    sys.exit(script(main))
