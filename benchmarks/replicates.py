"""Networks side by side as one vmapped program: steps per second of each, against one network alone.

python -m benchmarks.replicates --device cuda --json FILE
"""

from __future__ import annotations

import argparse
import sys

import torch

import lthfunc as lf
from lthfunc.execution.timing import Run, in_turn
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.loop import fit_together
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.types import Split, TrainState

from .networks import cases, images
from .peers import LR
from .records import header, record, write


def main(arguments: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="lenet300")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--density", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    case = cases()[options.network]
    data = images(case, options.device, 45_000 if options.device != "cpu" else 5_000)
    # fit_together looks at the validation split twice; at ten images, that is no part of what is timed.
    data = data._replace(val=Split(data.val.x[:10], data.val.y[:10]))
    trainer = make_trainer(
        case.model,
        data,
        optimizer=lf.adam(LR),
        batch_size=case.batch,
        engine="compile" if why_not(options.device) is None else "eager",
        precision=options.precision,
    )

    def states(width: int) -> list[TrainState]:
        drawn = [lf.init(case.model, seed, options.device) for seed in range(width)]
        return [lf.prune(density=options.density)(state) for state in drawn]

    def together(width: int) -> Run:
        start = states(width)

        def run(n: int) -> None:
            fit_together(trainer, start, seeds=range(width), until=n, eval_every=n)

        return run

    found = in_turn(
        {str(width): together(width) for width in options.widths},
        seconds=options.seconds,
        repeats=options.repeats,
        device=options.device,
    )
    records = [
        record(
            rates,
            network=case.name,
            variant=f"{width} side by side",
            device=options.device,
            threads=torch.get_num_threads(),
            batch=case.batch,
            density=options.density,
            precision=options.precision,
            unit="steps/s of each",
        )
        for width, rates in found.items()
    ]
    for item in records:
        print(f"{item['variant']:>20}  {item['median']:10,.1f} {item['unit']}")
    if options.json:
        write(options.json, header("replicates", "python -m benchmarks.replicates", options.device), records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
