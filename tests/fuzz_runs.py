"""Harm done to the members of a run's files, one at a time, and what the commands that read runs make of it.

    python tests/fuzz_runs.py --tries 5000

Sums are right again after each harm, as a stranger can write them; some harm is done to the bytes instead.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from lthfunc_cli.main import main

from lthfunc.runs.json_lines import append_lines, line_of, value_of
from lthfunc.runs.toml_files import read_toml

RUN = ["prune", "--rounds", "1", "--steps", "6", "--eval-every", "3", "--engine", "eager", "--threads", "1"]
READING = [
    "info run", "info run --json", "verify run", "report run --no-figures", "watch run --once", "compare run",
    "compare run --csv", "breakeven run", "breakeven run --json --evaluation", "config run",
]  # fmt: skip
LINES = ("metrics.jsonl", "environment.jsonl", "measured.jsonl", "seed0/round01/manifest.json")
OBJECTS = (".progress.json", ".holder.json")


class Harm(NamedTuple):
    """Where, and what."""

    file: str
    what: str


class Deep:
    """Stands for brackets that are nested so often."""

    def __init__(self, depth: int) -> None:
        self.text = "[" * depth + "]" * depth


def cruel(draw: random.Random) -> Any:
    """What nobody expects in a place."""
    return draw.choice([
        None, True, -1, 0, 1, 2**31, 2**63, 10**400, -(10**30), 1e308, 1e-320, float("nan"), float("inf"), "", "x",
        "\x1b[31m\x1b]0;t\x07", "a\x00b", "\ud800", "\u202eabc", "[red]x[/red]", "$x_{", "../../..", "x" * 5000, [], {},
        [[]], {"a": {"b": []}}, Deep(500), Deep(100_000), "2026-01-01", [1, "x", None],
    ])  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All members of nested lists and objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*path, key)
        yield from places(each, (*path, key))


def harmed(value: Any, draw: random.Random) -> tuple[Any, str]:
    """A copy with one member gone, renamed or another."""
    value = json.loads(json.dumps(value))
    path = draw.choice(list(places(value)))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    how, last = draw.choice(["other", "other", "other", "gone", "renamed"]), path[-1]
    if how == "gone" or (how == "renamed" and isinstance(holder, list)):
        del holder[last]
        return value, f"{path} is gone"
    if how == "renamed":
        name = draw.choice(["\x1b[2J", "", "x\n", "\ud800", "kind"])
        holder[name] = holder.pop(last)
        return value, f"{path} is called {name!r}"
    found = cruel(draw)
    holder[last] = found
    return value, f"{path} is {found.text[:9] if isinstance(found, Deep) else repr(found)[:60]}"


def dumped(value: Any) -> str:
    """As JSON, with what stands for deep nesting."""
    marks: dict[str, str] = {}

    def mark(each: Any) -> str:
        name = f"<<{len(marks)}>>"
        marks[json.dumps(name)] = each.text
        return name

    text = json.dumps(value, default=mark)
    for name, deep in marks.items():
        text = text.replace(name, deep)
    return text


def with_sum(text: str) -> str:
    """A line of this JSON with its sum."""
    import hashlib

    return f'{text[:-1]}, "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n'


def harm(folder: Path, draw: random.Random) -> Harm:
    """Do some harm to a run."""
    name = draw.choice([*LINES, *LINES, *OBJECTS, *OBJECTS, "config.toml"])
    path = folder / name
    if draw.random() < 0.1:
        content = bytearray(path.read_bytes())
        at = draw.randrange(len(content))
        content[at : at + draw.randrange(3)] = draw.choice([b"", b"\xff", b"\0", b"\xed\xa0\x80", b"\n", b"{"])
        path.write_bytes(content)
        return Harm(name, f"bytes at {at}")
    if name == "config.toml":
        value, what = harmed(read_toml(path), draw)
        with contextlib.suppress(TypeError, ValueError):
            path.write_bytes(tomli_w.dumps(value).encode(errors="replace"))
        return Harm(name, what)
    if name in OBJECTS:
        value, what = harmed(json.loads(path.read_text()), draw)
        path.write_text(dumped(value))
        return Harm(name, what)
    lines = path.read_text().splitlines()
    number = draw.randrange(len(lines))
    value, what = harmed(value_of(lines[number]), draw)
    text = [f"{line}\n" for line in lines]
    text[number] = with_sum(dumped(value))
    path.write_text("".join(text))
    return Harm(name, f"line {number + 1}: {what}")


def problem_of(command: str) -> str | None:
    """What is wrong with what a command does; None for nothing."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(command.split())
    except BaseException:
        return traceback.format_exc()
    if code not in (0, 2, 3):
        return f"exit code {code}: {err.getvalue()}"
    told = out.getvalue() + err.getvalue()
    bad = [each for each in told if not each.isprintable() and each not in "\n\xa0"]
    return f"says {bad[:5]!r}" if bad else None


def prepared(folder: Path) -> Path:
    """A real run, with everything that may lie in one; what a meter takes long to write is set down."""
    assert main([*RUN, "--out", str(folder)]) == 0
    lines = [value_of(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    amounts = dict.fromkeys(("kwh", "kg", "seconds", "cpu", "gpu", "ram"), 0.25)
    for line in lines[1:]:
        line.setdefault("energy", {
            "source": "a meter", "country": "USA", "assumed": True, "preparation": amounts, "training": amounts,
            "evaluation": amounts, "epochs": [[0, *amounts.values()]],
        })  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(f"{line_of(line)}\n" for line in lines))
    spread = {"mean": 1e-9, "std": 1e-10, "values": [1e-9, 2e-9]}
    machine = lines[0]["machine"]
    append_lines(folder / "measured.jsonl", [
        {"kind": "execution", "time": "now", "machine": machine, "round": 1, "seed": 0, "form": "dense",
         "bytes": {"dense": 4000, "program": 2000}, "compression_ratio": 1.2, "theoretical_speedup": 1.3,
         "batch_size": 64, "seconds_a_batch": {"dense": 2e-4, "sparse": 1e-4}, "program": "sparse",
         "turns": {"dense": [2e-4, 2e-4], "sparse": [1e-4, 1e-4]}},
        {"kind": "energy", "time": "now", "machine": machine, "round": 1, "seed": 0, "device": "cpu", "samples": 100,
         "repeats": 2, "batch_size": 50, "form": "dense", "source": "a meter", "country": "USA", "assumed": True,
         "formats": {name: dict.fromkeys(amounts, spread) for name in ("dense", "masked", "specialised")}},
        {"kind": "connectivity", "time": "now", "machine": machine, "steps": 6, "results": [
            {"seed": 0, "k": 0, "barrier": 0.1, "alphas": [0.0, 1.0], "error": [0.2, 0.3], "loss": [1.0, 2.0]}]},
    ])  # fmt: skip
    point = {"step": 3, "loss": 1.5, "accuracy": 0.5}
    under = {"seed": 0, "round": 1, "variant": "ticket", "density": 0.8, "start": 0, "at": 3, "stop": 6, "point": point}
    about = {"time": 1.75e9, "done": 9, "total": 12, "trainings": [under]}
    (folder / ".progress.json").write_text(json.dumps(about))
    (folder / ".holder.json").write_text(
        json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": "2026-01-01T00:00:00+00:00"})
    )
    return folder


def study(base: Path, tries: int, seed: int, commands: int) -> list[str]:
    """Harm so often, with some commands each, in the working directory; returns what went wrong."""
    draw, wrong = random.Random(seed), []
    for number in range(tries):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(base, "run")
        done = harm(Path("run"), draw)
        for command in draw.sample(READING, commands):
            problem = problem_of(command)
            if problem is not None:
                wrong.append(f"try {number}, {done.file}, {done.what}: {command}: {problem}")
    return wrong


def _command() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lthfunc-fuzz-") as folder:
        os.chdir(folder)
        READING.append("report run")  # with its figures, which take longest
        wrong = study(prepared(Path("base")), given.tries, given.seed, len(READING))
        os.chdir("/")
    print("\n".join(wrong[:20]))
    print(f"{len(wrong)} of {given.tries * len(READING)} commands went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(_command())
