"""``lthfunc benchmark``: measurements of this library, which a clone has and the installed package doesn't."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import UserError, unknown

from . import options as o

#: What is measured; `benchmarks/NAME.py` has its options (with _ for -).
BENCHMARKS = {
    "training": "masked training steps per second, with peers and lower bounds",
    "sparse": "training on surviving weights against density",
    "instructions": "where a step on the sparse engine takes its time",
    "dynamic": "whole trainings whose masks change: SET and RigL against density",
    "groups": "networks without whole heads and channels, with Torch-Pruning: FLOPs, latency, accuracy",
    "execution": "inference of tickets against density, in every format",
    "generate": "text from tickets, token by token, against density",
    "sequences": "few sequences of tokens: inference, training",
    "architectures": "every architecture on every engine",
    "families": "which of torchvision's networks the sparse engine trains, and why it refuses others",
    "attach": "what lf.attach costs a step of a plain PyTorch loop",
    "optimizers": "what clipping, averages and other parts of an optimiser cost a step",
    "sparse-module": "what lf.sparse_module gains in a plain PyTorch loop",
    "checkpoints": "what checkpoints cost a training",
    "memory": "resident memory over many rounds",
    "scale": "one training on several ranks, with a cost model",
    "gpu": "everything that is measured on a GPU, within a time limit",
    "kernels": "Triton kernels on a GPU, compared with compiled PyTorch",
}

app = typer.Typer(add_completion=False)


@app.command(no_args_is_help=True, context_settings={"allow_interspersed_args": False})
def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            help="; ".join(f"{name}: {about}" for name, about in BENCHMARKS.items()),
            autocompletion=o.names(*BENCHMARKS),
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="OPTION", help="Its own options; `lthfunc benchmark NAME --help` lists them."),
    ] = None,
) -> None:
    """Measure this library, its peers and the hardware's limits on this machine. Needs a clone of the repository."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    # The clone that this command runs from, or else the working directory.
    for place in (Path(__file__).resolve().parents[1], Path.cwd()):
        if (place / "benchmarks" / "records.py").is_file():
            break
    else:
        raise UserError("benchmark: the measurements are not installed; run this command in a clone of the repository")
    if str(place) not in sys.path:
        sys.path.append(str(place))
    importlib.import_module(f"benchmarks.{name.replace('-', '_')}").main(words or [])
