"""Inference of tickets against density: every format, the tuned program, peers, and lower bounds.

    python -m benchmarks.execution --network lenet5 --batch 64 --threads 1 --json FILE --plot FILE
    python -m benchmarks.execution runs/RUN

or, installed, `lthfunc benchmark execution`. Everything is measured alternately in one process: rates of successive
calls, and latencies of single calls. With a run, its trained tickets are measured instead of random masks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import lthfunc as lf
from lthfunc.errors import invalid
from lthfunc.experiments.devices import choose_device
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.precision import check_precision, matmul_precision

from . import peers_jax
from .execution_rates import DTYPES, Setting, measured
from .execution_tickets import of_run, random_masks
from .floors import peak_rate
from .networks import Case, cases, layer_cases
from .records import Options, Record, chosen, header, script, write
from .sparse_chart import draw, table

NETWORKS = ("lenet300", "lenet5", "conv4", "resnet20")
_MORE = ("resnet18", "vgg16", "linear1024", "linear4096", "conv64", "conv256")
BATCHES = (1, 64, 1024)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)
_SECONDS, _REPEATS, _CALLS = 0.15, 7, 40
_QUICK_SECONDS, _QUICK_REPEATS, _QUICK_CALLS = 0.05, 3, 10


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("execution", __doc__)
    options.add("run_folder", nargs="?", metavar="RUN", help="measure this run's tickets instead of random masks")
    options.add("--trust", action="store_true", help="import code that the run's settings name")
    options.networks(f"one of {', '.join((*NETWORKS, *_MORE))}")
    options.add(
        "--batch", dest="batches", action="append", default=[], type=int, help="batch size; repeatable (1, 64 and 1024)"
    )
    options.threads()
    options.device()
    options.add("--precision", default="fp32", help="fp32; on a GPU also tf32 or bf16 (fp32)")
    options.timings()
    options.add("--quick", action="store_true", help="LeNet-300-100 at two densities: under a minute")
    options.json()
    options.add("--plot", metavar="FILE", help="draw speed against density here")
    run(**options.parsed(arguments))


def run(
    *,
    run_folder: str | None,
    trust: bool,
    networks: Sequence[str],
    batches: Sequence[int],
    threads: int,
    device: str,
    precision: str,
    quick: bool,
    json: str | None,
    plot: str | None,
    seconds: float | None = None,
    repeats: int | None = None,
) -> list[Record]:
    """Measure, print tables, and on request write JSON and a picture."""
    names = chosen(networks, ["lenet300"] if quick else NETWORKS, (*NETWORKS, *_MORE), threads)
    for batch in batches:
        if batch < 1:
            raise invalid("--batch", batch, "a whole number of at least 1")
    if precision not in DTYPES:
        raise invalid("--precision", precision, f"one of {', '.join(DTYPES)}")
    device = choose_device(device)
    check_precision(precision, device)
    if precision == "bf16" and device == "cpu":
        raise invalid("--precision", precision, "fp32 on a CPU, where the sparse engine computes in it")
    peers_jax.use_threads(threads)
    lf.keep_freed_memory()
    about = {"device": device, "threads": threads, "precision": precision}
    usual = (_QUICK_SECONDS, _QUICK_REPEATS, _QUICK_CALLS) if quick else (_SECONDS, _REPEATS, _CALLS)
    timing = (seconds or usual[0], repeats or usual[1], usual[2])
    records: list[Record] = []
    with using_threads(threads), torch.no_grad(), matmul_precision(precision):  # type: ignore[arg-type]
        setting = Setting(about, peak_rate(device), *timing)
        tried = of_run(Path(run_folder), trust) if run_folder else [
            (case, random_masks(case, (0.5, 0.05) if quick else DENSITIES)) for case in _cases(names)
        ]  # fmt: skip
        for case, tickets in tried:
            for batch in batches or ((64,) if quick else BATCHES):
                found = measured(case, tickets, batch, setting)
                table(found)
                records += found
    head = header("execution", f"lthfunc benchmark execution --threads {threads}", device, threads)
    if json:
        write(json, head, records)
    if plot:
        where = (
            head["machine"]["gpu"] or f"{head['machine']['processor']}, {threads} thread{'s' if threads > 1 else ''}"
        )
        draw(plot, records, f"{where}, {precision}")
    return records


def _cases(names: Sequence[str]) -> list[Case]:
    every = {**cases(), **layer_cases()}
    return [every[name] for name in names]


if __name__ == "__main__":
    sys.exit(script(main))
