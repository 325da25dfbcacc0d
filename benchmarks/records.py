"""Records of measurements: medians, with versions and hardware."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lthfunc.errors import UserError, invalid, unknown
from lthfunc.runs.environment import machine
from lthfunc.training.precision import Precision

Record = dict[str, Any]
_SPARSE_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
#: Keys of a record about a training step of one network: FLOPs of its products, and the least bytes that it moves.
FLOPS, MOVED = "FLOPs of a step", "bytes of a step"


def chosen(networks: Sequence[str], default: Sequence[str], every: Sequence[str], threads: int) -> list[str]:
    """The networks to measure. Raises UserError for a name that is not in `every`, and for less than one thread."""
    for name in networks:
        if name not in every:
            raise unknown("--network", name, every)
    if threads < 1:
        raise invalid("--threads", threads, "a whole number of at least 1")
    return list(networks or default)


def checked_sparse_precision(given: str) -> Precision:
    """The precision that was asked for. Raises UserError for one that the sparse engine does not have."""
    for each in _SPARSE_PRECISIONS:
        if given == each:
            return each
    raise invalid("--precision", given, " or ".join(_SPARSE_PRECISIONS))


def checked_densities(given: Sequence[float] | None, default: Sequence[float]) -> Sequence[float]:
    """The densities to measure at. Raises UserError for one that no network has."""
    for density in given or ():
        if not 0 < density <= 1:
            raise invalid("--density", density, "a number in (0, 1]")
    return given or default


class Options(argparse.ArgumentParser):
    """A benchmark's options; a mistake in them raises UserError."""

    def __init__(self, name: str, about: str | None) -> None:
        description = (about or "").partition("\n")[0]
        super().__init__(prog=f"lthfunc benchmark {name}", description=description, allow_abbrev=False)
        self.add = self.add_argument

    def networks(self, about: str) -> None:
        """Add `--network`."""
        self.add("--network", dest="networks", metavar="NAME", action="append", default=[], help=f"{about}; repeatable")

    def device(self) -> None:
        """Add `--device`, the CPU by default."""
        self.add("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")

    def threads(self) -> None:
        """Add `--threads`, one by default."""
        self.add("--threads", type=int, default=1, help="CPU threads (1)")

    def timings(self, seconds: float | None = None, repeats: int | None = None) -> None:
        """Add `--seconds` and `--repeats`, with these defaults; None: the benchmark decides."""
        shown = ["" if default is None else f" ({default})" for default in (seconds, repeats)]
        self.add("--seconds", type=float, default=seconds, help=f"seconds of a timing{shown[0]}")
        self.add("--repeats", type=int, default=repeats, help=f"timings of each{shown[1]}")

    def sparse_precision(self) -> None:
        """Add `--precision` of the sparse engine; `checked_sparse_precision` is for what it gets."""
        self.add("--precision", default="fp32", help=f"of the sparse engine: {' or '.join(_SPARSE_PRECISIONS)} (fp32)")

    def densities(self, default: str) -> None:
        """Add `--density`; `checked_densities` is for what it gets."""
        self.add(
            "--density", dest="densities", metavar="D", type=float, action="append", help=f"repeatable ({default})"
        )

    def turns(self) -> None:
        """Add what loops that are timed in turns take: `--device`, `--threads`, `--seconds`, `--repeats`, `--json`."""
        self.device()
        self.threads()
        self.timings(0.5, 15)
        self.json()

    def json(self) -> None:
        """Add `--json`."""
        self.add("--json", metavar="FILE", help="write the records here")

    def parsed(self, arguments: Sequence[str] | None) -> dict[str, Any]:
        """The options' values by name; of this process's arguments where none are given.

        Raises UserError for records that could not be written in the end.
        """
        found = vars(self.parse_args(arguments))
        path = found.get("json")
        if path is not None and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            raise invalid("--json", path, "a file in a folder that exists")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        wrong = re.fullmatch(r"argument (.+): invalid (int|float) value: '(.*)'", message, re.DOTALL)
        if wrong is None:
            raise UserError(message.removeprefix("argument "))
        raise invalid(wrong[1], wrong[3], "a whole number" if wrong[2] == "int" else "a number")


def environment() -> dict[str, str]:
    """Of a process that runs a benchmark as a module."""
    here = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}


def script(main: Callable[[], None]) -> int:
    """A benchmark as a script of its own: a mistake is one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def saying(title: str) -> Callable[[str], None]:
    """Says on stderr how far a measurement is, each time after its title."""

    def say(line: str) -> None:
        print(f"{title}: {line}", file=sys.stderr, flush=True)

    return say


def speedup(rates: Sequence[float], base: Sequence[float]) -> float:
    """The median, over turns, of a loop's rate divided by another's in the same turn."""
    return statistics.median(each / other for each, other in zip(rates, base, strict=True))


def cost(rates: Sequence[float], base: Sequence[float]) -> float:
    """By how many per cent a step takes longer than one of the base's."""
    return 100 * (speedup(base, rates) - 1)


def record(rates: list[float], **about: Any) -> Record:
    """One line of results: what was measured, and the spread of its rates."""
    spread = {"min": min(rates), "median": statistics.median(rates), "max": max(rates), "repeats": len(rates)}
    return {**about, **{name: round(value, 3) for name, value in spread.items()}}


def header(benchmark: str, command: str, device: str, threads: int | None = None) -> dict[str, Any]:
    """The machine and versions of a file's measurements."""
    peers: dict[str, str | None] = {}
    for name in ("jax", "jaxlib", "optax", "sparseprop", "nerva", "torch-pruning", "scipy", "onnxruntime"):
        try:
            peers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            peers[name] = None
    return {"benchmark": benchmark, "command": command, "machine": machine(device, threads), "peers": peers}


def write(path: str | Path, head: dict[str, Any], records: list[Record]) -> None:
    """The header and the records as one JSON file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({**head, "records": records}, indent=1) + "\n", encoding="utf-8")
