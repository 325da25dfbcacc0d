"""Inference of tickets against density: every format, the tuned program, peers, and lower bounds.

    python -m benchmarks.execution --network lenet5 --batch 64 --threads 1 --json FILE --plot FILE
    python -m benchmarks.execution runs/RUN

or, installed, `lthfunc benchmark execution`. Everything is measured alternately in one process: rates of successive
calls, and latencies of single calls. With a run, its trained tickets are measured instead of random masks.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

import lthfunc as lf
from lthfunc.deployment.candidates import masked_module
from lthfunc.deployment.compiled import Compiled
from lthfunc.deployment.export.exportable import exportable_of
from lthfunc.deployment.export.graphs import onnx
from lthfunc.deployment.timing import TimedFunction, in_turn, repeated, synchronize
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.devices import choose_device
from lthfunc.experiments.iterative import TICKET
from lthfunc.reports.spacing import spread_out
from lthfunc.runs.folder import read_run
from lthfunc.runs.tickets import tickets_of_run
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.precision import check_precision, matmul_precision
from lthfunc.trees.types import Ticket

from . import peers_jax, sparse_peers
from .floors import BYTES, PEAK, peak_rate, reading_rate
from .networks import Case, cases, layer_cases
from .records import Options, Record, chosen, header, record, script, write
from .sparse_chart import draw, table

NETWORKS = ("lenet300", "lenet5", "conv4", "resnet20")
_MORE = ("resnet18", "vgg16", "linear1024", "linear4096", "conv64", "conv256")
BATCHES = (1, 64, 1024)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)
#: Densities of masks of whole units, and of blocks.
_STRUCTURED = (0.5, 0.1)
#: FLOPs of a batch from which a call takes too long to be repeated on a CPU.
_MOST_FLOPS = 1e11
_SECONDS, _REPEATS, _CALLS = 0.15, 7, 40
#: Seconds per repeat for single calls of all variants together, and the minimum number of calls.
_LATENCY_SECONDS, _FEWEST_CALLS = 3.0, 5
_QUICK_SECONDS, _QUICK_REPEATS, _QUICK_CALLS = 0.05, 3, 10
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


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
    if precision not in _DTYPES:
        raise invalid("--precision", precision, f"one of {', '.join(_DTYPES)}")
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
        tried = _of_run(Path(run_folder), trust) if run_folder else [
            (case, _random(case, (0.5, 0.05) if quick else DENSITIES)) for case in _cases(names)
        ]  # fmt: skip
        for case, tickets in tried:
            for batch in batches or ((64,) if quick else BATCHES):
                found = _measured(case, tickets, batch, setting)
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


class Masked(NamedTuple):
    """A ticket and the kind of its mask: "" for single weights anywhere."""

    density: float
    kind: str
    ticket: Ticket


def _of_run(folder: Path, trust: bool) -> list[tuple[Case, list[Masked]]]:
    """The run's trained tickets of at most half the weights, at most six of them."""
    _, _, records = read_run(folder)
    mine = [item for item in records if item["variant"] == TICKET and item["seed"] == records[0]["seed"]]
    rounds = [item["round"] for item in mine if item["density"] <= 0.55]
    if not rounds:
        raise UserError(f"{folder}: has no ticket of at most half the weights")
    found = tickets_of_run(folder, spread_out(rounds, 6), None, None, trusted=trust)
    case = Case(f"{found[0].model.name}, trained", found[0].model, found[0].data.shape, 64)
    return [(case, [Masked(lf.density(each.ticket.masks), "", each.ticket) for each in found])]


def _random(case: Case, densities: Sequence[float]) -> list[Masked]:
    """Random masks: single weights, whole units, and for single linear layers blocks and 2 of 4."""
    kinds: dict[str, Any] = {"": lf.unstructured}
    if len(case.model.prunable) > 1:
        kinds["units"] = lf.units(exempt=case.model.prunable[-1:])  # classes can't be removed
    elif case.name.startswith("linear"):
        kinds["blocks"] = lf.blocks(64, 64)
    found = [
        Masked(density, kind, _pruned(case, density, select))
        for kind, select in kinds.items()
        for density in (_STRUCTURED if kind else densities)
    ]
    if "blocks" in kinds:
        found.append(Masked(0.5, "2:4", _pruned(case, 0.5, lf.n_of_m(2, 4))))
    return found


def _pruned(case: Case, density: float, select: Any) -> Ticket:
    allocate = lf.globally if select is lf.unstructured else lf.uniform()
    pruning = lf.prune(density=density, score=lf.random_scores(0), select=select, allocate=allocate)
    return lf.ticket(pruning(lf.init(case.model)))


def _measured(case: Case, tickets: Sequence[Masked], batch: int, setting: Setting) -> list[Record]:
    dtype, device = _DTYPES[setting.about["precision"]], setting.device
    x = torch.randn(batch, *case.shape, device=device, dtype=dtype)
    dense = lf.ticket(lf.init(case.model))
    flops = lf.cost(case.model, dense.params, {}, case.shape).flops * batch
    given = {**setting.about, "network": case.name, "batch": batch}
    if device == "cpu" and flops > _MOST_FLOPS:
        print(f"{case.name}, batch {batch}: {flops:.1e} FLOPs a call, left out", file=sys.stderr)
        return []
    whole = masked_module(case.model, dense, device).to(dtype)
    calls: dict[tuple[str, float], Callable[[], Any]] = {
        ("dense, eager", 1.0): functools.partial(whole, x),
        ("dense", 1.0): functools.partial(Compiled(whole, case.name), x),
    }
    floors = []
    for item in tickets:
        calls |= _programs(case, item, x)
        floors += _floors(case, item, batch, setting, given)
    runs: dict[tuple[str, float], TimedFunction] = {key: repeated(call) for key, call in calls.items()}
    if device == "cpu":
        runs |= _peers(case, tickets, dense, x, setting.about["threads"])
    rates = in_turn(runs, seconds=setting.seconds, repeats=setting.repeats, device=device)
    found = [
        _times(record(rate, variant=name, density=round(density, 4), **given, unit="samples/s"), batch)
        for (name, density), rate in rates.items()
    ]
    return found + floors + _latencies(calls, setting, given)


def _programs(case: Case, item: Masked, x: Tensor) -> dict[tuple[str, float], Callable[[], Any]]:
    """The masked network, each possible format, and the tuned program, by the ticket's density."""
    kind = f", {item.kind}" if item.kind else ""
    found: dict[tuple[str, float], Callable[[], Any]] = {}
    ticket = _like(item.ticket, x)
    if not item.kind:
        found["masked, eager", item.density] = _masked(case, ticket, x)
    forms = {"": ("compact", "sparse", "csr"), "units": ("compact",), "blocks": ("block",), "2:4": ("2:4",)}[item.kind]
    for form in forms:
        try:
            program = lf.specialize(ticket, case.model, x, x.device, format=form)
        except UserError as error:
            print(f"{case.name}{kind}: {error}", file=sys.stderr)
            continue
        found[f"{form}{kind if form == 'compact' else ''}", item.density] = functools.partial(program, x)
    tuned = lf.specialize(ticket, case.model, x, x.device)
    found[f"tuned{kind}", item.density] = functools.partial(tuned, x)
    return found


def _like(ticket: Ticket, x: Tensor) -> Ticket:
    """The ticket on the inputs' device, in their dtype."""

    def moved(leaf: Tensor) -> Tensor:
        return leaf.to(x.device, x.dtype) if leaf.is_floating_point() else leaf.to(x.device)

    return Ticket(*({name: moved(leaf) for name, leaf in tree.items()} for tree in ticket))


def _masked(case: Case, ticket: Ticket, x: Tensor) -> Callable[[], Any]:
    """As most libraries run a ticket: masks multiplied in at every call."""
    module = masked_module(case.model, ticket, x.device).to(x.dtype)
    params: dict[str, Tensor] = dict(module.named_parameters())
    masks = {name: mask.to(x.dtype) for name, mask in ticket.masks.items()}

    def call() -> Any:
        masked = {name: leaf * masks[name] if name in masks else leaf for name, leaf in params.items()}
        return functional_call(module, masked, (x,))

    return call


def _peers(
    case: Case, tickets: Sequence[Masked], dense: Ticket, x: Tensor, threads: int
) -> dict[tuple[str, float], TimedFunction]:
    found: dict[tuple[str, float], TimedFunction] = {}
    if all(mask.ndim == 2 for mask in dense.masks.values()) and len(dense.masks) > 1:
        for item in tickets:
            if not item.kind:
                state = lf.init(case.model)._replace(params=item.ticket.params, masks=item.ticket.masks)
                found["scipy.sparse CSR", item.density] = sparse_peers.scipy_csr(state, x)
    with tempfile.TemporaryDirectory() as folder:
        for density, ticket in ((1.0, dense), *((item.density, item.ticket) for item in tickets if not item.kind)):
            path = Path(folder) / "network.onnx"
            try:
                onnx(exportable_of(case.model, ticket, case.shape), path)
            except UserError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
                break
            found["ONNX Runtime", density] = sparse_peers.onnx_runtime(path, x, threads)
    return found


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


def _latencies(
    calls: dict[tuple[str, float], Callable[[], Any]], setting: Setting, given: dict[str, Any]
) -> list[Record]:
    """Milliseconds of single calls, alternating the variants: the median and the 95th percentile of each repeat."""
    found: dict[tuple[str, float], list[list[float]]] = {key: [] for key in calls}
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


if __name__ == "__main__":
    sys.exit(script(main))
