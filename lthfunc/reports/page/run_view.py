"""Runs as the page shows them, with what is missing of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.errors import DamagedError
from lthfunc.experiments.config import Config, trainings_of
from lthfunc.experiments.records import Record, Row, summarize
from lthfunc.experiments.winner import Choice
from lthfunc.runs.folder import ENVIRONMENT, scan_run
from lthfunc.runs.integrity import sum_problems
from lthfunc.runs.json_lines import whole_lines
from lthfunc.runs.measurements import measurements
from lthfunc.runs.names_of_runs import distinct_names
from lthfunc.runs.side_file_schemas import session_problem


class RunView(NamedTuple):
    """A run. name: short and unique among those shown. config: None where the run cannot be read.

    missing: lines about what is missing. measured: measurements of speed, energy and the like. sessions: commands that
    worked on it.
    """

    folder: Path
    name: str
    about: dict[str, Any]
    config: Config | None
    records: list[Record]
    rows: list[Row]
    choice: Choice
    missing: list[str]
    measured: list[dict[str, Any]]
    sessions: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """What was trained on what."""
        return self.name if self.config is None else f"{self.config.arch} on {self.config.dataset}"


def run_views(folders: Sequence[Path]) -> list[RunView]:
    """Read runs, whole or not. Raises UserError where one is no run at all."""
    names = distinct_names(folders)
    return [_run_view(folder, name) for folder, name in zip(folders, names, strict=True)]


def _run_view(folder: Path, name: str) -> RunView:
    try:
        run = scan_run(folder)
    except DamagedError as error:
        return RunView(folder, name, {}, None, [], [], Choice(), [f"this run cannot be shown: {error}"], [], [])
    missing = [*run.damage, *map(str, sum_problems(folder, run, sizes=True))]
    wanted, found = trainings_of(run.config), len(run.records)
    if found < wanted:
        missing.insert(0, f"{found} of {wanted} trainings are finished; lthfunc resume {folder} continues")
    measured, wrong = measurements(folder)
    sessions, other = whole_lines(folder / ENVIRONMENT, session_problem)
    missing += [*wrong, *other]
    return RunView(
        folder, name, run.about, run.config, run.records, summarize(run.records), run.choice, missing, measured,
        sessions,
    )  # fmt: skip
