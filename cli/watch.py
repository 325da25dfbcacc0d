"""``lthfunc watch``: the progress of a run in another process."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.errors import invalid
from lthfunc.printable import counted

from . import options as o
from .console import printable, put, put_words, screen


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
        self._rate: tuple[float, float] | None = None

    def _stamp(self) -> int:
        about = self._status(self._folder, self._path)
        return 0 if about is None else about.st_mtime_ns

    def now(self, width: int, height: int) -> Any:
        from rich.console import Group

        from lthfunc.experiments.config import trainings_of
        from lthfunc.experiments.records import summarize
        from lthfunc.reports.tables import result_table
        from lthfunc.runs.lock import at_work
        from lthfunc.scheduling.progress import progress

        seen = self._stamp()
        if seen != self._seen:
            self._run, self._seen = self._scan(self._folder), seen
        run = self._run
        config = run.config
        finished = f"{len(run.records)} of {counted(trainings_of(config), 'training')}"
        head = f"{self._folder}: {config.arch} on {config.dataset}, {finished}"
        parts: list[Any] = [printable(head)]
        about = progress(self._folder) if at_work(self._folder) else None
        if about is not None:
            parts += self._under_way(about)
        rows = summarize(run.records)
        room = height - len(parts) - len((about or {}).get("trainings", ())) - 4
        if rows:
            shown = rows[-max(1, room) :]
            if len(shown) < len(rows):
                parts.append(f"… {len(rows) - len(shown)} rows above")
            parts += ["", result_table(shown, width)]
        return Group(*parts)

    def _under_way(self, about: dict[str, Any]) -> list[Any]:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        from .progress import who

        table = Table.grid(padding=(0, 2))
        for each in about["trainings"]:
            done, of = each["at"] - each["start"], max(1, each["stop"] - each["start"])
            point = each["point"]
            figures = "" if point is None else f"loss {point['loss']:.3f}  acc {100 * point['accuracy']:.2f} %"
            name = who(each["seed"], each["round"], each["variant"])
            bar, share = ProgressBar(of, done, width=24), f"{100 * done / of:.0f} %"
            table.add_row(name, f"{100 * each['density']:.1f} %", bar, share, figures)
        return [self._ahead(about), table]

    def _ahead(self, about: dict[str, Any]) -> str:
        """The steps, their rate, and the remaining time at that rate."""
        done, total, when = about["done"], about["total"], about["time"]
        first = self._rate = self._rate or (when, done)
        rate = (done - first[1]) / (when - first[0]) if when > first[0] else 0.0
        text = f"{done:,} of {total:,} steps"
        if rate <= 0:
            return text
        left = (total - done) / rate
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{text}, {rate:,.0f} per second, {hours}:{minutes:02}:{seconds:02} left"
