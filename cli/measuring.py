"""A benchmark on a node of a cluster: what it prints appears here, and the files that it writes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lthfunc.errors import invalid
from lthfunc.experiments.config import Config
from lthfunc.experiments.resolve import resolved
from lthfunc.scheduling.calls import called
from lthfunc.scheduling.execute import check_ray

from .console import put

#: Options whose value is a file to be written.
_WRITTEN = ("--json", "--plot")


def measured_on(on: str, cores: int, gpus: int, words: Sequence[str]) -> int:
    """Run `lthfunc benchmark` with these words there; returns its exit code. Raises UserError where it cannot be."""
    check_ray(resolved(Config(on=on)))
    for name, number, least in (("--cores", cores, 1), ("--gpus", gpus, 0)):
        if number < least:
            raise invalid(name, number, f"a whole number of at least {least}")
    files = {place: f"result{place}{Path(words[place]).suffix}" for place in _places(words)}
    there = [files.get(place, word) for place, word in enumerate(words)]
    ((_, (code, out, err, written)),) = called(on, _measure, [(there, list(files.values()))], cores=cores, gpus=gpus)
    put(out, end="")
    print(err, end="", file=sys.stderr)
    for place, name in files.items():
        if name in written:
            Path(words[place]).parent.mkdir(parents=True, exist_ok=True)
            Path(words[place]).write_bytes(written[name])
    return int(code)


def _places(words: Sequence[str]) -> list[int]:
    """Where names of files stand that are to be written."""
    return [place + 1 for place, word in enumerate(words[:-1]) if word in _WRITTEN]


def _measure(words: list[str], files: list[str]) -> tuple[int, str, str, dict[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "lthfunc_cli", "benchmark", *words], cwd=folder, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        found = {name: Path(folder, name).read_bytes() for name in files if Path(folder, name).is_file()}
    return done.returncode, done.stdout, done.stderr, found
