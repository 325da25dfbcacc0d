"""Kill a real run at many moments, go on with it, and compare its end with that of an undisturbed run.

    python tests/crash/kill.py --kills 100
    python tests/crash/kill.py --kills 100 --method rigl

Runs are processes of their own, forked from this one once everything is imported, so that a moment costs a second or
two. They are killed with SIGKILL at a random time, in a chosen phase, or at one of the moments at which a file is
written: half written, before the disk has it, before it has its name, or just after; with a line half written, too.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lthfunc_cli import running
from lthfunc_cli.main import main
from outcomes import EVENTS, PHASES, Moment, Outcome, difference, table

from lthfunc.experiments import iterative
from lthfunc.reports import run_pictures
from lthfunc.runs import safe_files
from lthfunc.runs.verification import verified
from lthfunc.scheduling import execute, local

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
#: Two seeds in worker processes; a worker takes seconds to start.
WORKERS = [*RUN, "--replicates", "2", "--jobs", "2"]


class Shared:
    """What a run tells whoever watches it: its phase, and the kind and number of the last event."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def phase(self) -> int:
        return self._memory[0]

    @phase.setter
    def phase(self, value: int) -> None:
        self._memory[0] = value

    @property
    def event(self) -> tuple[int, int]:
        return self._memory[1], int.from_bytes(self._memory[2:4], "little")

    def happens(self, kind: int) -> int:
        number = self.event[1] + 1
        self._memory[1] = kind
        self._memory[2:4] = number.to_bytes(2, "little")
        return number


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


def watch_phases(shared: Shared) -> None:
    """Make this process tell in which phase it is."""

    def told(module: Any, name: str, phase: int) -> None:
        real = getattr(module, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            before, shared.phase = shared.phase, phase
            try:
                return real(*given, **named)
            finally:
                shared.phase = before

        setattr(module, name, wrapped)

    told(local, "train_with_checkpoints", PHASES.index("training"))
    told(iterative, "_next_start", PHASES.index("pruning"))
    told(execute, "save_training", PHASES.index("saving"))
    told(run_pictures, "draw", PHASES.index("reporting"))
    told(running, "show_results", PHASES.index("reporting"))


def kill_at_event(shared: Shared, wanted: int | None) -> None:
    """Make this process count the moments at which it writes, and end itself at one of them."""

    def happens(kind: str) -> bool:
        return shared.happens(EVENTS.index(kind)) == wanted

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    put, sync, replace = safe_files.put, os.fsync, os.replace

    def putting(handle: int, payload: bytes) -> None:
        added = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_APPEND
        if happens("half a line written" if added else "half a file written"):
            put(handle, payload[: 2 * len(payload) // 3])
            end()
        put(handle, payload)

    def syncing(handle: int) -> None:
        if happens("before fsync"):
            end()
        sync(handle)

    def replacing(source: Any, target: Any, **folders: Any) -> None:
        if happens("before rename"):
            end()
        replace(source, target, **folders)
        if happens("after rename"):
            end()

    safe_files.put = putting
    os.fsync, os.replace = syncing, replacing  # type: ignore[assignment]


def killed(arguments: list[str], log: Path, moment: Moment) -> str | None:
    """Start a run and kill it; returns where it was hit, None where it had ended before."""
    shared = Shared()

    def prepare() -> None:
        watch_phases(shared)
        kill_at_event(shared, moment.event)

    child = forked(arguments, log, prepare)
    if moment.event is None:
        begun = time.monotonic()
        while moment.phase is not None and shared.phase != moment.phase and time.monotonic() - begun < 30:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        time.sleep(moment.seconds)
        os.kill(child, signal.SIGKILL)
    code = ended(child)
    where = PHASES[shared.phase] if moment.event is None else EVENTS[shared.event[0]]
    return where if code == -signal.SIGKILL else None


def counted(arguments: list[str], log: Path) -> tuple[int, float]:
    """(events, seconds) of an undisturbed run."""
    shared, begun = Shared(), time.monotonic()
    child = forked(arguments, log, lambda: kill_at_event(shared, None))
    assert ended(child) == 0, log.read_text()
    return shared.event[1], time.monotonic() - begun


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


def chosen(events: int, seconds: float, draw: random.Random) -> Iterator[list[Moment]]:
    """Moments for run after run: a third each by time, by phase and by event; some are killed more than once."""
    kinds = itertools.cycle(range(3))
    while True:
        moments = []
        for kind in itertools.islice(kinds, draw.choice([1, 1, 1, 2, 3])):
            if kind == 0:
                moments.append(Moment("at a random time", seconds=draw.uniform(0, seconds)))
            elif kind == 1:
                phase = draw.randrange(1, len(PHASES))
                moments.append(Moment("in a phase", seconds=draw.uniform(0, 0.05) ** 1.5, phase=phase))
            else:
                moments.append(Moment("at a write", event=draw.randint(1, events)))
        yield moments


def study(kills: int, seed: int, folder: Path, arguments: list[str], tell: Callable[[str], None]) -> list[Outcome]:
    """So many kills; runs lie in the folder while they are looked at."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main([*SMALLEST, "--out", str(folder / "smallest")])  # imports all that a run needs, before forking
    reference = folder / "reference"
    events, seconds = counted([*arguments, "--out", str(reference)], folder / "reference.log")
    outcomes: list[Outcome] = []
    for number, moments in enumerate(chosen(events, seconds, random.Random(seed))):
        if len(outcomes) >= kills:
            break
        run, log = folder / f"run{number}", folder / f"run{number}.log"
        outcomes += outcome_of(run, reference, arguments, moments, log)
        tell(f"{len(outcomes)} of {kills} kills, {sum(not (each.same and each.clean) for each in outcomes)} bad")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(run)
    return outcomes


def _command() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", help="by a published method instead of iterative magnitude pruning")
    parser.add_argument("--engine", default="eager", help="eager, or sparse, whose updates of masks are on survivors")
    parser.add_argument("--workers", action="store_true", help="two seeds in worker processes, which takes longer")
    parser.add_argument("--json", metavar="FILE", help="write every moment and outcome here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lthfunc-crash-") as folder:
        tell = lambda text: print(f"\r{text}", end="", file=sys.stderr, flush=True)  # noqa: E731
        run = WORKERS if given.workers else RUN if given.method is None else [*METHOD, given.method]
        outcomes = study(given.kills, given.seed, Path(folder), [*run, "--engine", given.engine], tell)
    print(file=sys.stderr)
    print(table(outcomes), end="")
    if given.json:
        Path(given.json).write_text(json.dumps([each._asdict() for each in outcomes], indent=1) + "\n")
    bad = [each for each in outcomes if not (each.same and each.clean)]
    for each in bad:
        print(each, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(_command())
