"""Masked training steps per second: our engines through the loop that users run, their peers, and the floors.

    python -m benchmarks.training --network lenet300 --threads 1 --json FILE --plot FILE

or, installed, `lthfunc benchmark training`. Everything is measured in one process, in turn.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn
from lthfunc.errors import invalid
from lthfunc.experiments.devices import choose_device
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.training.batches import batches
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.engines.compiled import compile_engine
from lthfunc.training.engines.interface import Engine, Work
from lthfunc.training.engines.memory_formats import MemoryFormats
from lthfunc.training.engines.table import Making
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.precision import Precision, check_precision
from lthfunc.training.trainer import Trainer, make_trainer
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Dataset

from . import peers, peers_jax
from .chart import draw, table
from .floors import FLOOR, PEAK, peaks, products, step_bytes
from .graphed import runnable
from .loops import user_loop
from .networks import Case, cases, images
from .records import FLOPS, MOVED, Options, Record, chosen, header, record, saying, script, write

OURS, DENSE, STREAMED = "lthfunc, compile", "lthfunc, compile, dense", "lthfunc, compile, streamed"
#: What `--engine auto` runs in a long training.
AUTO, AUTO_DENSE = "lthfunc, auto", "lthfunc, auto, dense"
TUNED, GRAPHED = "tuned plain loop, dense", "tuned plain loop as one graph, dense"
#: Ours on a GPU without CUDA graphs: each kernel is launched by itself.
LAUNCHED = "lthfunc, compile, launched one by one"
#: Ours on a GPU with other memory formats than those of `engines/memory_formats.py`, to see whether they are best.
MEMORY_FORMATS = {
    "lthfunc, compile, masks as bools": MemoryFormats(floating_masks=False),
    "lthfunc, compile, channels first": MemoryFormats(channels_last=False),
    "lthfunc, compile, masks as bools, channels first": MemoryFormats(floating_masks=False, channels_last=False),
}
#: What is measured in the precision asked for; the others compute in float32.
_IN_PRECISION = (OURS, DENSE, STREAMED, TUNED, GRAPHED, LAUNCHED, *MEMORY_FORMATS, FLOOR, PEAK)
NETWORKS = ("lenet300", "lenet5", "lenet5-wide", "conv4", "resnet20")
_LARGE = ("resnet18",)
_SECONDS, _REPEATS = 0.6, 9
_QUICK_SECONDS, _QUICK_REPEATS = 0.15, 3


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("training", __doc__)
    options.networks(f"one of {', '.join((*NETWORKS, *_LARGE))}")
    options.threads()
    options.add("--density", type=float, default=0.2, help="of the masks (0.2)")
    options.add("--precision", default="fp32", help="of our engines: fp32, tf32 or bf16 (fp32)")
    options.device()
    options.timings()
    options.add("--quick", action="store_true", help="LeNet-300-100 alone, few repeats: under a minute")
    options.json()
    options.add("--plot", metavar="FILE", help="draw bars and floors here")
    run(**options.parsed(arguments))


def run(
    *,
    networks: Sequence[str],
    threads: int,
    density: float,
    precision: Precision,
    device: str,
    quick: bool,
    json: str | None,
    plot: str | None,
    seconds: float | None = None,
    repeats: int | None = None,
) -> list[Record]:
    """Measure the networks (all by default), print tables, and write JSON and a picture where asked to."""
    names = chosen(networks, ["lenet300"] if quick else NETWORKS, (*NETWORKS, *_LARGE), threads)
    if not 0 < density <= 1:
        raise invalid("--density", density, "a number in (0, 1]")
    device = choose_device(device)
    check_precision(precision, device)
    peers_jax.use_threads(threads)
    lf.keep_freed_memory()
    every = cases()
    usual = (_QUICK_SECONDS, _QUICK_REPEATS) if quick else (_SECONDS, _REPEATS)
    seconds, repeats = seconds or usual[0], repeats or usual[1]
    records: list[Record] = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder, using_threads(threads):
            found, cost = _measured(every[name], density, precision, device, seconds, repeats, folder)
        about = {"device": device, "threads": threads, "batch": every[name].batch, "unit": "steps/s", **cost}
        records += [
            record(
                rates,
                network=name,
                variant=variant,
                density=1.0 if variant in (DENSE, AUTO_DENSE, TUNED, GRAPHED) else density,
                precision=precision if variant in _IN_PRECISION else "fp32",
                **about,
            )
            for variant, rates in found.items()
        ]
        table(name, records)
    head = header("training", f"lthfunc benchmark training --threads {threads}", device, threads)
    if json:
        write(json, head, records)
    if plot:
        draw(plot, records, f"{head['machine']['processor']}, {threads} thread{'s' if threads > 1 else ''}")
    return records


def _measured(
    case: Case, density: float, precision: Precision, device: str, seconds: float, repeats: int, folder: str
) -> tuple[dict[str, list[float]], dict[str, int]]:
    data = images(case, device)
    optimizer = lf.adam(peers.LR)
    dense = lf.with_optimizer(lf.init(case.model, 0, device), optimizer)
    ticket = lf.with_optimizer(lf.prune(density=density)(lf.init(case.model, 0, device)), optimizer)
    ready = [(scaled(x, data.scale), y) for x, y in batches(data.train, case.batch, 0, 0, peers_jax.SCANNED)]
    floor, flops = products(case.model, ready[0][0], precision=precision)
    variants: dict[str, TimedFunction] = {
        "argparse script": peers.argparse_script(case.model, ticket, ready),
        "torch.func, eager": peers.pure_step(case.model, ticket, ready),
        "nn.utils.prune, fused Adam": peers.nn_utils_prune(case.model, ticket, ready),
    }
    if why_not(device) is None:
        if not dense.buffers:
            variants["naive torch.compile"] = peers.naive_compile(case.model, ticket, ready)
        compiling = _trainer(case, data, "compile", precision)
        variants[OURS] = user_loop(compiling, ticket)
        variants[DENSE] = user_loop(compiling, dense)
        variants[STREAMED] = user_loop(_trainer(case, _mapped(data, folder), "compile", precision), ticket)
        if device != "cpu":
            variants[TUNED] = peers.tuned_loop(case.model, dense, ready, precision)
            variants[GRAPHED] = _when_called(lambda: peers.graphed_loop(case.model, dense, ready, precision))
            launched = _trainer(case, data, partial(compile_engine, graphs=False), precision)
            variants[LAUNCHED] = user_loop(launched, ticket)
            variants.update(_in_other_formats(case, data, precision, ticket))
    if device == "cpu" and why_no_kernels() is None:
        choosing = _trainer(case, data, lf.sparse_or("compile"), "fp32")
        variants[AUTO], variants[AUTO_DENSE] = user_loop(choosing, ticket), user_loop(choosing, dense)
    variants["lthfunc, eager"] = user_loop(_trainer(case, data, "eager", precision), ticket)
    if device == "cpu" and peers_jax.why_not(case) is None:
        variants.update(peers_jax.jitted(case, ticket, ready))
    variants[FLOOR] = floor
    if device != "cpu":  # where others' ways may meet a version or card that they don't run on
        variants = runnable(variants, lambda name: name.startswith("lthfunc"))
    found = in_turn(variants, seconds=seconds, repeats=repeats, device=device, say=saying(case.name))
    moved = step_bytes(ticket.params, ticket.masks)
    found |= peaks(flops, moved, device, precision)
    return found, {FLOPS: flops, MOVED: moved}


def _when_called(make: Callable[[], TimedFunction]) -> TimedFunction:
    """A variant that is made as it is first called, so that one that can't be made is left out like one that fails."""
    made: list[TimedFunction] = []

    def run(n: int) -> None:
        if not made:
            made.append(make())
        made[0](n)

    return run


def _in_other_formats(
    case: Case, data: Dataset, precision: Precision, ticket: lf.TrainState
) -> dict[str, TimedFunction]:
    """Where a network holds no images, channels lie in one way alone."""
    images = any(leaf.ndim == 4 for leaf in ticket.params.values())
    return {
        name: user_loop(_trainer(case, data, partial(in_formats, forms=forms), precision), ticket)
        for name, forms in MEMORY_FORMATS.items()
        if images or forms.channels_last
    }


def in_formats(work: Work, forms: MemoryFormats) -> Engine:
    """The compiled engine with numbers in memory like this, on whatever device."""
    return compile_engine(work, forms)


def _mapped(data: Dataset, folder: str) -> Dataset:
    """The same data in a memory-mapped file."""
    path = Path(folder) / "images.safetensors"
    lf.data.save_mapped(path, data)
    return lf.data.open_mapped(path)


def _trainer(case: Case, data: Dataset, engine: Making, precision: Precision) -> Trainer:
    return make_trainer(
        case.model, data, optimizer=lf.adam(peers.LR), batch_size=case.batch, engine=engine, precision=precision
    )


if __name__ == "__main__":
    sys.exit(script(main))
