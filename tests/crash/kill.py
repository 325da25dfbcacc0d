"""Kill a real run at many moments, go on with it, and compare its end with that of an undisturbed run.

    python tests/crash/kill.py --kills 100
    python tests/crash/kill.py --kills 100 --method rigl
    python tests/crash/kill.py --kills 2 --method all

Runs are processes of their own, forked from this one once everything is imported, so that a moment costs a second or
two. They are killed with SIGKILL at a random time, in a chosen phase, in the course of a training, or at one of the
moments at which a file is written: half written, before the disk has it, before it has its name, or just after; with a
line half written, too. Of all methods, each is killed so many times in the course of its trainings.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lthfunc_cli.main import main
from outcomes import EVENTS, PHASES, Moment, Outcome, difference, is_bad, of_methods, table
from watching import Shared, kill_at_event, watch

from lthfunc.catalog.methods import METHODS
from lthfunc.runs.verification import verified

RUN = [
    "prune", "--rounds", "2", "--steps", "60", "--eval-every", "20", "--batch-size", "50", "--control", "reinit",
    "--rewind", "step:10", "--checkpoint-every", "7", "--threads", "1",
]  # fmt: skip
SMALLEST = [*RUN, "--engine", "eager", "--rounds", "1", "--steps", "11"]
#: A method that trains once, with its updates of masks.
METHOD = [
    "prune", "--steps", "60", "--eval-every", "20", "--batch-size", "50", "--density", "0.2", "--checkpoint-every", "7",
    "--threads", "1", "--method",
]  # fmt: skip
#: What else a method is given, so that what it remembers from step to step lies in checkpoints.
GIVEN = {"early-bird": ["--update-every", "5"]}  # its masks settle with the fifth look
#: Kinds of moments: of one command's kills in turn, and of all methods'.
KINDS, WITHIN = ("time", "phase", "event", "training"), ("training",)
#: Two seeds in worker processes; a worker takes seconds to start.
WORKERS = [*RUN, "--replicates", "2", "--jobs", "2"]


def forked(arguments: list[str], log: Path, prepare: Callable[[], None]) -> int:
    """A run as a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        prepare()
        code = main(arguments)
    except BaseException as error:  # the log has it
        print(f"crashed: {error!r}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(arguments: list[str], log: Path, moment: Moment) -> str | None:
    """Start a run and kill it; returns where it was hit, None where it had ended before."""
    shared = Shared()

    def prepare() -> None:
        watch(shared)
        kill_at_event(shared, moment.event)

    def is_awaited() -> bool:
        return (moment.phase is not None and shared.phase != moment.phase) or shared.progress < moment.progress

    child = forked(arguments, log, prepare)
    if moment.event is None:
        begun = time.monotonic()
        while is_awaited() and time.monotonic() - begun < 30:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        time.sleep(moment.seconds)
        os.kill(child, signal.SIGKILL)
    code = ended(child)
    where = PHASES[shared.phase] if moment.event is None else EVENTS[shared.event[0]]
    return where if code == -signal.SIGKILL else None


class Counted(NamedTuple):
    """What there is in an undisturbed run."""

    events: int
    progress: int
    seconds: float


def counted(arguments: list[str], log: Path) -> Counted:
    """Run it undisturbed."""
    shared, begun = Shared(), time.monotonic()

    def prepare() -> None:
        watch(shared)
        kill_at_event(shared, None)

    assert ended(forked(arguments, log, prepare)) == 0, log.read_text()
    return Counted(shared.event[1], shared.progress, time.monotonic() - begun)


def outcome_of(folder: Path, reference: Path, arguments: list[str], moments: list[Moment], log: Path) -> list[Outcome]:
    """Kill a run at each of the moments in turn, going on in between; then go on to its end."""
    begin = [*arguments, "--out", str(folder)]
    hit: list[tuple[Moment, str]] = []
    for moment in moments:
        started = (folder / "metrics.jsonl").exists()
        where = killed(["resume", str(folder)] if started else begin, log, moment)
        if where is not None:
            hit.append((moment, where))
    started = (folder / "metrics.jsonl").exists()
    code = ended(forked(["resume", str(folder)] if started else begin, log, lambda: None))
    problem = f"exit code {code}: {log.read_text()[-300:]}" if code else difference(folder, reference)
    clean = not code and not verified(folder).problems
    return [Outcome(moment.how, where, not problem, clean, problem) for moment, where in hit]


def chosen(run: Counted, kinds: Sequence[str], draw: random.Random) -> Iterator[list[Moment]]:
    """Moments for run after run, of each kind in turn; some are killed more than once."""
    turn = itertools.cycle(kinds)
    while True:
        moments = []
        for kind in itertools.islice(turn, draw.choice([1, 1, 1, 2, 3])):
            if kind == "time":
                moments.append(Moment("at a random time", seconds=draw.uniform(0, run.seconds)))
            elif kind == "phase":
                phase = draw.randrange(1, len(PHASES))
                moments.append(Moment("in a phase", seconds=draw.uniform(0, 0.05) ** 1.5, phase=phase))
            elif kind == "event":
                moments.append(Moment("at a write", event=draw.randint(1, run.events)))
            else:
                within = draw.uniform(0, run.seconds / run.progress)
                moments.append(Moment("within a training", seconds=within, progress=draw.randrange(1, run.progress)))
        yield moments


def prepare_forks(folder: Path) -> None:
    """Import all that a run needs."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main([*SMALLEST, "--out", str(folder / "smallest")])


def study(
    kills: int, seed: int, folder: Path, arguments: list[str], kinds: Sequence[str], tell: Callable[[str], None]
) -> list[Outcome]:
    """So many kills; runs lie in the folder while they are looked at."""
    folder.mkdir()
    reference = folder / "reference"
    run = counted([*arguments, "--out", str(reference)], folder / "reference.log")
    outcomes: list[Outcome] = []
    for number, moments in enumerate(chosen(run, kinds, random.Random(seed))):
        if len(outcomes) >= kills:
            break
        place, log = folder / f"run{number}", folder / f"run{number}.log"
        outcomes += outcome_of(place, reference, arguments, moments, log)
        tell(f"{len(outcomes)} of {kills} kills, {sum(map(is_bad, outcomes))} bad")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place)
    return outcomes


def study_all(kills: int, seed: int, folder: Path, engine: list[str]) -> dict[str, list[Outcome]]:
    """So many kills of each method within its trainings, with a line for each as it ends."""
    found: dict[str, list[Outcome]] = {}
    for number, name in enumerate(METHODS):
        try:
            run = [*METHOD, name, *GIVEN.get(name, []), *engine]
            found[name] = study(kills, seed + number, folder / name, run, WITHIN, lambda text: None)
        except AssertionError as error:
            found[name] = [Outcome("undisturbed", "beginning", False, False, str(error)[-300:])]
        shutil.rmtree(folder / name)
        bad = sum(map(is_bad, found[name]))
        print(f"{name}: {len(found[name])} kills, {bad} bad", file=sys.stderr, flush=True)
    return found


def command(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--method", help="by a published method instead of iterative magnitude pruning; all: by each, one after another"
    )
    parser.add_argument("--engine", default="eager", help="eager, or sparse, whose updates of masks are on survivors")
    parser.add_argument("--workers", action="store_true", help="two seeds in worker processes, which takes longer")
    parser.add_argument("--json", metavar="FILE", help="write every moment and outcome here")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lthfunc-crash-") as name:
        folder, engine = Path(name), ["--engine", given.engine]
        prepare_forks(folder)
        if given.method == "all":
            found = study_all(given.kills, given.seed, folder, engine)
            print(of_methods(found), end="")
        else:
            tell = lambda text: print(f"\r{text}", end="", file=sys.stderr, flush=True)  # noqa: E731
            run = (
                WORKERS
                if given.workers
                else RUN
                if given.method is None
                else [*METHOD, given.method, *GIVEN.get(given.method, [])]
            )
            outcomes = study(given.kills, given.seed, folder / "runs", [*run, *engine], KINDS, tell)
            found = {given.method or "imp": outcomes}
            print(file=sys.stderr)
            print(table(outcomes), end="")
    lines = [{"method": name, **each._asdict()} for name, outcomes in found.items() for each in outcomes]
    if given.json:
        Path(given.json).write_text(json.dumps(lines, indent=1) + "\n")
    bad = [f"{name}: {each}" for name, outcomes in found.items() for each in outcomes if is_bad(each)]
    for each in bad:
        print(each, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(command())
