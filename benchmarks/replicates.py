"""Several networks as one vmapped program: steps per second of each, compared with a single network.

python -m benchmarks.replicates --device cuda --json FILE

On a GPU it also measures PyTorch's own tools (a vmapped, compiled ensemble) and the batched products alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import torch

import lthfunc as lf
from lthfunc.deployment.timing import TimedFunction, in_turn
from lthfunc.experiments.devices import choose_device
from lthfunc.training.batches import batches
from lthfunc.training.engines.compiled import compile_engine
from lthfunc.training.engines.table import Making
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.loop import fit_together
from lthfunc.training.precision import PRECISIONS, Precision
from lthfunc.training.trainer import Trainer, make_trainer
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Split, TrainState

from . import peers
from .floors import FLOOR, peaks, products, step_bytes
from .graphed import runnable
from .networks import cases, images
from .records import FLOPS, MOVED, Options, Record, header, record, saying, script, write

#: Names in records: ours, and its peer.
OURS, PEER = "side by side", "side by side, torch.func compiled"
BESIDE = f"side by side, {FLOOR}"
#: Ours on a GPU without CUDA graphs: each kernel is launched by itself.
LAUNCHED = "side by side, launched one by one"
#: Batches that peers cycle through.
_READY = 20


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("replicates", __doc__)
    options.add("--network", default="lenet300", help="(lenet300)")
    options.device()
    options.add("--widths", type=int, nargs="+", default=[1, 8, 64, 256], help="networks side by side (1 8 64 256)")
    options.add("--precision", default="fp32", choices=PRECISIONS, help="(fp32)")
    options.add("--density", type=float, default=0.2, help="of the masks (0.2)")
    options.timings(0.5, 5)
    options.json()
    run(**options.parsed(arguments))


def run(
    *, network: str, device: str, widths: Sequence[int], precision: Precision, density: float, seconds: float,
    repeats: int, json: str | None,
) -> list[Record]:  # fmt: skip
    """Measure, print, and write JSON where asked to."""
    device, case = choose_device(device), cases()[network]
    data = images(case, device, 45_000 if device != "cpu" else 5_000)
    # fit_together evaluates the validation split twice; with ten images this takes no time to speak of.
    data = data._replace(val=Split(data.val.x[:10], data.val.y[:10]))

    def trainer(engine: Making) -> Trainer:
        return make_trainer(
            case.model, data, optimizer=lf.adam(peers.LR), batch_size=case.batch, engine=engine, precision=precision
        )

    ours = trainer("compile" if why_not(device) is None else "eager")
    ready = [(scaled(x, data.scale), y) for x, y in batches(data.train, case.batch, 0, 0, _READY)]

    def states(width: int) -> list[TrainState]:
        drawn = [lf.init(case.model, seed, device) for seed in range(width)]
        return [lf.prune(density=density)(state) for state in drawn]

    def together(trainer: Trainer, width: int) -> TimedFunction:
        start = states(width)

        def run(n: int) -> None:
            fit_together(trainer, start, seeds=range(width), until=n, eval_every=n)

        return run

    variants: dict[tuple[int, str], TimedFunction] = {(width, OURS): together(ours, width) for width in widths}
    if device != "cpu":
        if why_not(device) is None:
            launched = trainer(partial(compile_engine, graphs=False))
            variants |= {(width, LAUNCHED): together(launched, width) for width in widths}
        linear = all(leaf.ndim < 4 for leaf in case.model.init(0)[0].values())
        for width in widths:
            if why_not(device) is None and not case.model.init(0)[1]:
                variants[width, PEER] = peers.ensemble(case.model, states(width), ready, precision)
            if linear:
                variants[width, BESIDE] = products(case.model, ready[0][0], width, precision)[0]
        variants = runnable(variants, lambda key: key[1] in (OURS, LAUNCHED))
    found = in_turn(variants, seconds=seconds, repeats=repeats, device=device, say=saying(case.name))
    (one,) = states(1)
    cost = {FLOPS: products(case.model, ready[0][0])[1], MOVED: step_bytes(one.params, one.masks)}
    if device != "cpu":
        for width in widths:
            least = peaks(width * cost[FLOPS], width * cost[MOVED], device, precision)
            found |= {(width, f"side by side, {name}"): rates for name, rates in least.items()}
    records = [
        record(
            rates,
            network=case.name,
            variant=f"{width} {variant}",
            device=device,
            threads=torch.get_num_threads(),
            batch=case.batch,
            density=density,
            precision=precision,
            unit="steps/s of each",
            **cost,
        )
        for (width, variant), rates in found.items()
    ]
    for item in records:
        print(f"{item['variant']:>40}  {item['median']:10,.1f} {item['unit']}")
    if json:
        write(json, header("replicates", "python -m benchmarks.replicates", device), records)
    return records


if __name__ == "__main__":
    sys.exit(script(main))
