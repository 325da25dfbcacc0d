"""``lthfunc benchmark``: measurements of this library, which a clone has and the installed package doesn't."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import UserError, unknown
from lthfunc.experiments.config import warn_of_former_names

from . import options as o
from .console import put

#: What is measured; `benchmarks/NAME.py` has its options.
BENCHMARKS = {
    "training": "masked training steps per second, with peers and lower bounds",
    "sparse": "training on surviving weights against density",
    "execution": "inference of tickets against density, in every format",
    "architectures": "every architecture on every engine",
    "checkpoints": "what checkpoints cost a training",
    "memory": "resident memory over many rounds",
    "scale": "one training on several ranks, with a cost model",
    "gpu": "everything that is measured on a GPU, within a time limit",
    "kernels": "Triton kernels on a GPU, compared with compiled PyTorch",
}
#: Options whose value is an output file.
_WRITTEN = ("--json", "--plot")


def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="; ".join(f"{name}: {about}" for name, about in BENCHMARKS.items()),
            autocompletion=o.names(*BENCHMARKS),
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="OPTION…", help="Its own options; `lthfunc benchmark NAME --help` lists them."),
    ] = None,
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="WHERE",
            show_default=False,
            help="Measure on a node of a cluster: ray, or ray://HOST:PORT. \\[default: here]",
        ),
    ] = "local",
    cores: Annotated[
        int,
        typer.Option("--cores", parser=o.whole, metavar="N", help="With --executor: its CPU cores."),
    ] = 1,
    gpus: Annotated[int, typer.Option("--gpus", parser=o.whole, metavar="N", help="With --executor: its GPUs.")] = 0,
    on: Annotated[str | None, typer.Option("--on", hidden=True)] = None,
) -> None:
    """Measure this library, its peers and the hardware's limits on this machine. Needs a clone of the repository."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    place = _clone()
    if on is not None:
        warn_of_former_names(["on"])
        executor = on
    if executor != "local":
        raise typer.Exit(_measured_on(executor, cores, gpus, [name, *(words or [])], place))
    if str(place) not in sys.path:
        sys.path.append(str(place))
    importlib.import_module(f"benchmarks.{name}").main(words or [])


def _clone() -> Path:
    """The folder that holds `benchmarks`: the clone that this command runs from, or else the working directory."""
    for place in (Path(__file__).resolve().parents[1], Path.cwd()):
        if (place / "benchmarks" / "records.py").is_file():
            return place
    raise UserError("benchmark: the measurements are not installed; run this command in a clone of the repository")


def _measured_on(executor: str, cores: int, gpus: int, words: Sequence[str], place: Path) -> int:
    """Measure on a node of a cluster, and fetch what it prints and writes; returns its exit code."""
    from lthfunc.experiments.config import Config
    from lthfunc.experiments.resolve import resolved
    from lthfunc.scheduling.execute import check_ray
    from lthfunc.scheduling.ray import call_on

    check_ray(resolved(Config(executor=executor)))
    o.check_least(("--cores", cores, 1), ("--gpus", gpus, 0))
    written = [at + 1 for at, word in enumerate(words[:-1]) if word in _WRITTEN]
    files = {at: f"result{at}{Path(words[at]).suffix}" for at in written}
    call = ([files.get(at, word) for at, word in enumerate(words)], list(files.values()), str(place))
    code, out, err, found = call_on(executor, _measure, call, cores=cores, gpus=gpus)
    put(out, end="")
    print(err, end="", file=sys.stderr)
    for at, file in files.items():
        if file in found:
            Path(words[at]).parent.mkdir(parents=True, exist_ok=True)
            Path(words[at]).write_bytes(found[file])
    return int(code)


def _measure(words: list[str], files: list[str], place: str) -> tuple[int, str, str, dict[str, bytes]]:
    """Runs on the node, in the clone if the node has one at the same path."""
    with tempfile.TemporaryDirectory() as folder:
        words = [str(Path(folder, word)) if word in files else word for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "lthfunc_cli", "benchmark", *words], capture_output=True, text=True, check=False,
            cwd=place if Path(place).is_dir() else folder,
        )  # fmt: skip
        found = {file: Path(folder, file).read_bytes() for file in files if Path(folder, file).is_file()}
    return done.returncode, done.stdout, done.stderr, found
