"""Verification of a whole run: what is damaged, and which rounds are intact."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.printable import counted
from lthfunc.runs import safe_files
from lthfunc.runs.folder import ENVIRONMENT, METRICS, Run, scan_run
from lthfunc.runs.integrity import Problem, checkpoint_problems, good_rounds, wrong
from lthfunc.runs.json_lines import whole_lines
from lthfunc.runs.measurements import MEASURED
from lthfunc.runs.side_file_schemas import measurement_problem, session_problem
from lthfunc.runs.unfinished import is_finished

#: Attempts to read a run that is being written at the same time.
_LOOKS = 5


class VerificationReport(NamedTuple):
    """The result. good: the rounds of each seed whose trainings are all intact."""

    folder: Path
    run: Run
    problems: list[Problem]
    good: dict[int, list[int]]

    def lines(self) -> list[str]:
        """The report in words."""
        run, count = self.run, len(self.run.records)
        lines = [
            f"{self.folder}: lthfunc {run.about['command']}, format {run.format}, {counted(count, 'finished training')}"
        ]
        lines += [f"damaged: {problem}" for problem in self.problems]
        lines += [f"seed {seed}: intact rounds: {_ranges(rounds) or 'none'}" for seed, rounds in self.good.items()]
        if self.problems:
            return [*lines, f"lthfunc resume {self.folder} continues from the last good point"]
        return [*lines, "no damage found" + ("" if is_finished(run) else "; unfinished")]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        problems = [{"where": each.where, "what": each.what} for each in self.problems]
        about = {"run": str(self.folder), "format": self.run.format, "trainings": len(self.run.records)}
        return {**about, "finished": is_finished(self.run), "problems": problems, "good_rounds": self.good}


def verified(folder: Path) -> VerificationReport:
    """Check everything. Raises UserError if this is not a run, DamagedError if its description can't be read.

    If a live run replaces a file that was about to be read, everything is read again.
    """
    for _ in range(_LOOKS):
        before = safe_files.status(folder, folder / METRICS)
        report = _looked_at(folder)
        after = safe_files.status(folder, folder / METRICS)
        if not report.problems or before is None or after is None or before.st_size == after.st_size:
            break
    return report


def _looked_at(folder: Path) -> VerificationReport:
    run = scan_run(folder)
    others = ((ENVIRONMENT, session_problem), (MEASURED, measurement_problem))
    lines = [*run.damage, *(line for name, problem in others for line in whole_lines(folder / name, problem)[1])]
    damage = [Problem(where, what) for where, _, what in (line.partition(": ") for line in lines)]
    problems = wrong(folder, run)
    bad = {each.name for each in problems if each.name is not None}
    return VerificationReport(
        folder, run, [*damage, *problems, *checkpoint_problems(folder)], good_rounds(run.records, bad)
    )


def _ranges(rounds: list[int]) -> str:
    """0, 1, 2, 5 as "0 to 2, 5"."""
    parts: list[list[int]] = []
    for number in rounds:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
