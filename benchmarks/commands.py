"""Whole commands: their time, the time to their first step, and the share of steps in the time from there.

    python -m benchmarks.commands --json FILE

A clock around the loop's calls counts steps with their batches, and evaluations. Data are looked for in the same places
as by `lthfunc`; a first command of each engine, which may have to compile, is not counted.
"""

from __future__ import annotations

import json as as_json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError, invalid
from lthfunc.hardware import usable_cores

from .records import Options, Record, environment, header, record, saying, script, write

_COMMAND = ("prune", "--arch", "lenet300", "--dataset", "mnist", "--rounds", "5")
_QUICK = ("prune", "--arch", "lenet300", "--dataset", "digits", "--rounds", "1", "--steps", "200")
#: What is added to the command, and the number of cores (None: all).
_VARIANTS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "auto, one core": ((), 1),
    "auto": ((), None),
    "auto, one thread": (("--threads", "1"), None),
    "auto, one thread, two seeds": (("--threads", "1", "--replicates", "2"), None),
    "compile, one core": (("--engine", "compile"), 1),
    "compile": (("--engine", "compile"), None),
    "compile, two seeds": (("--engine", "compile", "--replicates", "2"), None),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write. Raises UserError for what cannot be measured."""
    options = Options("commands", __doc__)
    options.add("--repeats", type=int, default=3, help="runs of each command (3)")
    options.add("--quick", action="store_true", help="two short commands, once: under a minute")
    options.json()
    run(**options.parsed(arguments))


def run(*, repeats: int = 3, quick: bool = False, json: str | None = None) -> None:
    """Measure, print, write. Raises UserError for fewer than 1 repeat, and if a command fails."""
    if repeats < 1:
        raise invalid("--repeats", repeats, "a whole number of at least 1")
    command = _QUICK if quick else _COMMAND
    variants = ["auto, one core", "auto, one thread, two seeds"] if quick else list(_VARIANTS)
    repeats = 1 if quick else repeats
    say = saying(" ".join(command))
    for name in () if quick else ("auto", "compile"):
        say(f"{name}: once, to warm up")
        _run(command, name)
    taken = []
    for turn in range(repeats):
        for name in variants:
            say(f"{name}: {turn + 1} of {repeats}")
            taken.append((name, _run(command, name)))
    records = []
    for name in variants:
        for unit in taken[variants.index(name)][1]:
            records.append(_record(name, unit, [found[unit] for each, found in taken if each == name]))
            print(f"{name:>28}  {records[-1]['median']:7.3f} {unit}")
    if json:
        write(json, header("commands", f"lthfunc {' '.join(command)}", "cpu"), records)


def _record(variant: str, unit: str, found: list[float]) -> Record:
    cores = _VARIANTS[variant][1] or usable_cores()
    return record(
        found, network="lenet300", variant=variant, device="cpu", threads=cores, batch=60, density=None,
        precision="fp32", unit=unit,
    )  # fmt: skip


def _run(command: Sequence[str], variant: str) -> dict[str, float]:
    """Run a command; returns seconds, and shares of the time from its first step on. Raises UserError if it fails."""
    added, cores = _VARIANTS[variant]
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock.json"
        own = [sys.executable, "-m", "benchmarks.commands", "--clocked", str(clock), str(cores or 0)]
        begun = time.time()
        asked = [*own, *command, *added, "--out", f"{folder}/run"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, env=environment())
        ended = time.time()
        if done.returncode:
            raise UserError(done.stderr.strip().rpartition("\n")[2])
        found = as_json.loads(clock.read_text())
    whole = {"s": ended - begun}
    if "--replicates" in added:  # steps run concurrently, or in other processes
        return whole
    rest = ended - found["first"]
    return whole | {
        "s to the first step": found["first"] - begun,
        "share of steps from there": found["steps"] / rest,
        "share of evaluation from there": found["evaluation"] / rest,
    }


def _clocked(path: str, cores: str, command: list[str]) -> None:
    """Run a command in this process, with a clock around what is counted."""
    if int(cores):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    from lthfunc.experiments import trainings
    from lthfunc.training import loop
    from lthfunc.training.session import TrainingSession

    found = {"first": 0.0, "steps": 0.0, "evaluation": 0.0}

    def counted(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            begun = time.time()
            if kind == "steps":
                found["first"] = found["first"] or begun
            try:
                return function(*given, **named)
            finally:
                if found["first"]:
                    found[kind] += time.time() - begun

        return call

    for place, name, kind in (
        (TrainingSession, "to", "steps"),
        (loop, "measure", "evaluation"),
        (trainings, "measure", "evaluation"),
    ):
        setattr(place, name, counted(kind, getattr(place, name)))
    sys.argv = ["lthfunc", *command]
    try:
        runpy.run_module("lthfunc_cli", run_name="__main__")
    finally:
        Path(path).write_text(as_json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--clocked"]:
        _clocked(sys.argv[2], sys.argv[3], sys.argv[4:])
    sys.exit(script(main))
