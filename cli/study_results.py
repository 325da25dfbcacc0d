"""What ``lthfunc methods`` prints and draws at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lthfunc.errors import invalid
from lthfunc.experiments.config import to_mapping
from lthfunc.experiments.studies import DENSE
from lthfunc.runs.studies import COSTS, PAGE, PICTURE

from .console import put, put_json, put_words, screen
from .remote_runs import named
from .results import show_suggestions

if TYPE_CHECKING:
    from lthfunc.experiments.config import Config
    from lthfunc.experiments.records import Record
    from lthfunc.experiments.studies import StudyPlans, StudyRun


def checked_baseline(asked: str | None, methods: Sequence[str]) -> str | None:
    """The method that others are tested against: the one asked for, or imp; None for the best.

    Raises UserError if the one asked for is none of the methods.
    """
    if asked is not None and asked not in methods:
        raise invalid("--baseline", asked, f"one of the methods compared: {', '.join(dict.fromkeys(methods))}")
    return asked or ("imp" if "imp" in methods else None)


def show_study(
    runs: Sequence[StudyRun], plans: StudyPlans, records: Mapping[str, list[Record]], baseline: str | None,
    folder: Path, plot: Path | None, again: str, *, wants_json: bool,
) -> None:  # fmt: skip
    """Write a study's pictures and its page, and print its results. again: the command that resumes it."""
    from lthfunc.experiments.metrics import in_one_unit
    from lthfunc.reports.matplotlib_figures import panels, printed, save
    from lthfunc.reports.method_tests import compared_to, test_table, tests_as_values
    from lthfunc.reports.methods import (
        as_values,
        at_densities,
        method_cost_charts,
        method_picture,
        method_points,
        method_table,
        most_accurate,
        ranked,
        values_by_seed,
    )
    from lthfunc.reports.page.study_page import write_study_page

    points = [point for each in runs for point in method_points(each, plans[each.name], records[each.name])]
    scales = in_one_unit(point.scale for point in points)
    points = [point._replace(scale=scale) for point, scale in zip(points, scales, strict=True)]
    steps, densities = plans[runs[0].name].steps, at_densities(points)
    baseline = baseline or next((each for each in ranked(points) if each != DENSE), DENSE)
    tests = compared_to(baseline, values_by_seed(points))
    at = f", {100 * densities[0]:g} % of the weights" if len(densities) == 1 else ""
    title = f"{runs[0].config.arch} on {runs[0].config.dataset}{at}, {steps:,} steps"
    picture, costs = method_picture(points, title), method_cost_charts(points)
    drawn = printed(picture)
    save(drawn, folder / PICTURE, folder)
    if plot:
        save(drawn, plot)
    save(panels(costs, title), folder / COSTS, folder)
    write_study_page(folder / PAGE, title, points, baseline, tests, picture, costs)
    if wants_json:
        put_json(
            {
                "config": _shared([each.config for each in runs]), "steps": steps, "folder": named(folder),
                "results": as_values(points), "tests": tests_as_values(tests, baseline),
            }
        )  # fmt: skip
        return
    console = screen()
    console.print(f"{title} each", highlight=False)
    console.print(method_table(points, console.width))
    put_words("trainings: steps of all its trainings / those of one training", style="dim")
    if table := test_table(tests, points[0].scale):
        put()
        put_words(f"differences to {baseline}, and p of paired t-tests, corrected for their number", style="dim")
        console.print(table)
    put()
    for line in most_accurate(points):
        put_words(line)
    _show_files(runs, folder, again)


def _shared(configs: Sequence[Config]) -> dict[str, Any]:
    """The settings in which all runs agree."""
    first, *others = map(to_mapping, configs)
    return {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}


def _show_files(runs: Sequence[StudyRun], folder: Path, again: str) -> None:
    put(f"\nFiles in {named(folder)}:")
    files = {
        PICTURE: "test errors", COSTS: "test errors against FLOPs and time", PAGE: "one page with both and all numbers",
        f"{runs[0].name}/ …": "a run for each method, or each of its densities",
    }  # fmt: skip
    for name, what in files.items():
        put(f"  {name}  {what}")
    report = f"lthfunc report {shlex.quote(named(folder / runs[0].name))}"
    found = [("lthfunc methods --list", "what each of the methods is"), (report, "one page on a run, or on several")]
    if runs[0].config.replicates == 1:
        found.insert(0, (f"{again} --replicates 3", "the same with two more seeds"))
    show_suggestions(found)
