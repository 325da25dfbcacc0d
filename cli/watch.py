"""``lthfunc watch``: the progress of a run in another process."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.errors import invalid

from . import options as o
from .console import put, put_words, screen


def watch(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    every: Annotated[
        float, typer.Option("--every", parser=o.number, metavar="SECONDS", help="Seconds between two updates.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show the progress once, and end.")] = False,
) -> None:
    """Watch a run in another terminal until it ends; Ctrl-C stops watching, not the run."""
    if not 0.1 <= every <= 3600:
        raise invalid("--every", every, "a number of seconds from 0.1 to 3600")
    _watch(Path(run), every, once)


def _watch(folder: Path, every: float, once: bool) -> None:
    from rich.live import Live

    from lthfunc.reports.verdict import verdict
    from lthfunc.runs.folder import scan_run
    from lthfunc.runs.lock import at_work
    from lthfunc.runs.unfinished import is_finished

    console = screen()
    view = _View(folder)
    if once or not console.is_terminal:  # a pipe gets only the last update
        while not once and at_work(folder):
            time.sleep(every)
        console.print(view.now(*console.size))
    else:
        with Live(view.now(*console.size), console=console, auto_refresh=False) as live:
            while at_work(folder):
                time.sleep(every)
                live.update(view.now(*console.size), refresh=True)
            live.update(view.now(console.width, 10_000), refresh=True)
    if at_work(folder):
        return
    found = scan_run(folder)
    if not is_finished(found):
        put(f"no process is working on it; resume with: lthfunc resume {shlex.quote(str(folder))}")
    else:
        put_words(verdict(found.choice))


class _View:
    """What is drawn at each update; the run's lines are read again when they have changed."""

    def __init__(self, folder: Path) -> None:
        from lthfunc.runs.folder import METRICS, scan_run
        from lthfunc.runs.safe_files import status

        self._folder, self._path = folder, folder / METRICS
        self._status = status
        self._scan = scan_run
        self._run = scan_run(folder)
        self._seen = self._stamp()

    def _stamp(self) -> int:
        about = self._status(self._folder, self._path)
        return 0 if about is None else about.st_mtime_ns

    def now(self, width: int, height: int) -> Any:
        from lthfunc.experiments.config import trainings_of
        from lthfunc.experiments.records import summarize
        from lthfunc.runs.lock import at_work
        from lthfunc.scheduling.progress import progress

        from .progress import progress_view

        seen = self._stamp()
        if seen != self._seen:
            self._run, self._seen = self._scan(self._folder), seen
        config, records = self._run.config, self._run.records
        title = f"{self._folder}: {config.arch} on {config.dataset}"
        about = progress(self._folder) if at_work(self._folder) else None
        return progress_view(title, len(records), trainings_of(config), about, summarize(records), (width, height))
