"""Training on surviving weights against density: our engines, their peers, single layers, a lower bound.

    python -m benchmarks.sparse --network lenet5 --threads 1 --json FILE --plot FILE

or, installed, `lthfunc benchmark sparse`. Everything is measured alternately in one process. The sparse
engine runs on CPUs; benchmarks/execution.py measures what tickets gain on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn
from lthfunc.errors import invalid
from lthfunc.experiments.devices import choose_device
from lthfunc.sparse.functional import conv_pattern, to_tiles
from lthfunc.training.batches import batches
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.precision import Precision
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import TrainState

from . import peers, peers_jax, sparse_peers
from .floors import PEAK, peak_rate, products
from .loops import user_loop
from .networks import Case, cases, images
from .records import (
    Options,
    Record,
    checked_densities,
    checked_sparse_precision,
    chosen,
    header,
    record,
    saying,
    script,
    write,
)
from .sparse_chart import draw, table

DENSE, SPARSE, AUTO = "lthfunc, compile", "lthfunc, sparse", "lthfunc, auto"
NETWORKS = ("lenet300", "lenet5", "conv4", "resnet20")
_LARGE = ("resnet18", "lenet5-wide", "vit-tiny", "unet", "char-transformer", "gpt", "lstm")
#: Single convolutions 3×3: channels in and out, and the side of the image.
LAYERS = {"conv 16-16 on 32²": (16, 32), "conv 64-64 on 32²": (64, 32), "conv 256-256 on 8²": (256, 8)}
DENSITIES = (1.0, 0.8, 0.512, 0.33, 0.2, 0.1, 0.05, 0.036, 0.01, 0.005)
_QUICK_DENSITIES = (1.0, 0.2, 0.05)
_LAYER_DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
_SECONDS, _REPEATS = 0.4, 7
_QUICK_SECONDS, _QUICK_REPEATS = 0.1, 3
_BATCH = 64


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("sparse", __doc__)
    options.networks(f"one of {', '.join((*NETWORKS, *_LARGE))}")
    options.densities(" … ".join(f"{DENSITIES[end]:g}" for end in (0, -1)))
    options.threads()
    options.sparse_precision()
    options.add("--device", default="cpu", help="cpu")
    options.add("--ticket", metavar="FILE", help="also measure this ticket of the (one) network")
    options.add("--quick", action="store_true", help="LeNet-300-100 at 1, 0.2 and 0.05: under a minute")
    options.json()
    options.add("--plot", metavar="FILE", help="draw speed against density here")
    run(**options.parsed(arguments))


def run(
    *,
    networks: Sequence[str],
    densities: Sequence[float] | None,
    threads: int,
    precision: str,
    device: str,
    ticket: str | None,
    quick: bool,
    json: str | None,
    plot: str | None,
) -> list[Record]:
    """Measure, print tables, and on request write JSON and a picture."""
    names = chosen(networks, ["lenet300"] if quick else NETWORKS, (*NETWORKS, *_LARGE), threads)
    if ticket is not None and len(names) != 1:
        raise invalid("--ticket", ticket, "one --network with it")
    if choose_device(device) != "cpu":
        raise invalid("--device", device, "cpu; `lthfunc benchmark execution` measures tickets on a GPU")
    masks = lf.load_ticket(ticket)[0].masks if ticket is not None else None
    peers_jax.use_threads(threads)
    lf.keep_freed_memory()
    timing = (
        {"seconds": _QUICK_SECONDS, "repeats": _QUICK_REPEATS} if quick else {"seconds": _SECONDS, "repeats": _REPEATS}
    )
    chosen_densities = checked_densities(densities, _QUICK_DENSITIES if quick else DENSITIES)
    asked = checked_sparse_precision(precision)
    about = {"device": device, "threads": threads, "precision": "fp32"}
    records: list[Record] = []
    with using_threads(threads):
        every = cases()
        for name in names:
            found = _training(every[name], chosen_densities, masks, timing, asked, about)
            table(found)
            records += found
        if not quick and not networks:
            found = _layers(timing, about)
            table(found)
            records += found
    head = header("sparse", f"lthfunc benchmark sparse --threads {threads}", device, threads)
    if json:
        write(json, head, records)
    if plot:
        draw(plot, records, f"{head['machine']['processor']}, {threads} thread{'s' if threads > 1 else ''}")
    return records


def _measured(variants: dict[tuple[str, float], TimedFunction], timing: dict[str, Any], **about: Any) -> list[Record]:
    """Records of variants, each with the density that it was measured at."""
    names = {f"{variant} at {density:g}": (variant, density) for variant, density in variants}
    runs = {name: variants[key] for name, key in names.items()}
    found = in_turn(runs, device=about["device"], say=saying(about["network"]), **timing)
    return [record(rates, variant=names[name][0], density=names[name][1], **about) for name, rates in found.items()]


def _training(
    case: Case, densities: Sequence[float], masks: lf.Masks | None, timing: dict[str, Any], precision: Precision,
    about: dict[str, Any],
) -> list[Record]:  # fmt: skip
    data, optimizer = images(case, "cpu"), lf.adam(peers.LR)
    ready = [(scaled(x, data.scale), y) for x, y in batches(data.train, case.batch, 0, 0, peers_jax.SCANNED)]
    simple = case.kind == "images" and case.name != "vit-tiny"  # of layers that peers and the lower bound know
    flops = products(case.model, ready[0][0])[1] if simple else None

    def loop(engine: Any, state: TrainState, precision: Precision = "fp32") -> TimedFunction:
        trainer = make_trainer(
            case.model, data, optimizer=optimizer, batch_size=case.batch, engine=engine, precision=precision,
            **case.learns,
        )  # fmt: skip
        return user_loop(trainer, state)

    sparse = lf.sparse_or("compile")
    variants: dict[tuple[str, float], TimedFunction] = {(DENSE, 1.0): loop("compile", _ticket(case, 1.0))}
    if precision != "fp32":
        variants[f"{DENSE}, {precision}", 1.0] = loop("compile", _ticket(case, 1.0), precision)
    if simple:
        variants["nn.utils.prune, fused Adam", 0.2] = peers.nn_utils_prune(case.model, _ticket(case, 0.2), ready)
    if peers_jax.why_not(case) is None:
        jitted = peers_jax.jitted(case, lf.with_optimizer(_ticket(case, 0.2), optimizer), ready)
        variants[peers_jax.JIT, 0.2] = jitted[peers_jax.JIT]
    for density in densities:
        state = _ticket(case, density)
        variants[SPARSE, density] = loop(lf.sparse_engine, state)
        if precision != "fp32":
            variants[f"{SPARSE}, {precision}", density] = loop(lf.sparse_engine, state, precision)
        if density > 0.3:
            variants[AUTO, density] = loop(sparse, state)
        low, high = sparse_peers.SPARSEPROP_DENSITIES
        if low <= density <= high and sparse_peers.why_no_sparseprop() is None and case.layers:
            variants["SparseProp", density] = sparse_peers.sparseprop(case.model, state, ready)
    if masks is not None:
        state = lf.init(case.model)
        state = state._replace(masks=masks, params=lf.apply_masks(state.params, masks))
        kept = round(lf.density(masks), 4)
        variants[f"{SPARSE}, ticket", kept] = loop(lf.sparse_engine, state)
        variants[f"{DENSE}, ticket", kept] = loop("compile", state)
        variants[f"{DENSE}, ticket, compact", kept] = loop(lf.compact_engine("compile"), state)
    given = {**about, "network": case.name, "batch": case.batch, "unit": "steps/s"}
    records = _measured(variants, timing, **given)
    for each in records:
        each["precision"] = precision if each["variant"].endswith(f", {precision}") else each["precision"]
    if flops is not None:
        peak = peak_rate("cpu")
        records += [record([peak / flops / density], variant=PEAK, density=density, **given) for density in densities]
    return records


def _ticket(case: Case, density: float) -> TrainState:
    state = lf.init(case.model)
    return lf.prune(density=density, score=lf.random_scores(0))(state) if density < 1 else state


def _layers(timing: dict[str, Any], about: dict[str, Any]) -> list[Record]:
    """Single convolutions, forward and both gradients: dense by oneDNN, ours, SparseProp's."""
    records = []
    for name, (channels, side) in LAYERS.items():
        x, grad = torch.randn(2, _BATCH, channels, side, side)
        weight = torch.randn(channels, channels, 3, 3)
        variants: dict[tuple[str, float], TimedFunction] = {("oneDNN", 1.0): _dense_layer(x, weight, grad)}
        for density in _LAYER_DENSITIES:
            mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < density
            variants[SPARSE, density] = _sparse_layer(x, weight, grad, mask)
            if density <= 0.2 and sparse_peers.why_no_sparseprop() is None:
                variants["SparseProp", density] = _sparseprop_layer(x, weight, grad, mask)
        given = {**about, "network": name, "batch": _BATCH, "unit": "calls/s"}
        records += _measured(variants, timing, **given)
    return records


def _dense_layer(x: Tensor, weight: Tensor, grad: Tensor) -> TimedFunction:
    backward = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, (True, True, False))

    def run(n: int) -> None:
        for _ in range(n):
            F.conv2d(x, weight, padding=1)
            torch.ops.aten.convolution_backward(grad, x, weight, None, *backward)

    return run


def _sparse_layer(x: Tensor, weight: Tensor, grad: Tensor, mask: Tensor) -> TimedFunction:
    pattern, values = conv_pattern(mask, (x.shape[2], x.shape[3]), padding=(1, 1)), weight[mask]
    channels, side = x.shape[1], x.shape[2]
    padded, inner = (F.pad(to_tiles(each), (0, 0, 1, 1, 1, 1)) for each in (x, grad))
    # The gradient with a border of the kernel's size: what the transposed lists of a pattern read.
    wide, plain = F.pad(inner, (0, 0, 1, 1, 1, 1)), to_tiles(grad)
    ops = torch.ops.lthfunc

    def run(n: int) -> None:
        for _ in range(n):
            ops.products(padded, values, None, pattern.starts, pattern.offsets, None, channels, side, side, 1, 1)
            ops.weight_gradients(padded, plain, pattern.starts, pattern.offsets, 1, 1)
            ops.products(
                wide, values, None, pattern.starts_back, pattern.offsets_back, pattern.which, channels, side + 2,
                side + 2, 1, 1,
            )  # fmt: skip

    return run


def _sparseprop_layer(x: Tensor, weight: Tensor, grad: Tensor, mask: Tensor) -> TimedFunction:
    layer = nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1, bias=False)
    layer.weight.data = weight * mask
    module = sparse_peers.sparse_module(layer, x.shape)
    leaf = x.clone().requires_grad_()

    def run(n: int) -> None:
        with torch.enable_grad():
            for _ in range(n):
                module(leaf).backward(grad)

    return run


if __name__ == "__main__":
    sys.exit(script(main))
