"""A study's page: errors over densities and against costs, a table, and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lthfunc.catalog.methods import METHODS
from lthfunc.experiments.studies import DENSE
from lthfunc.reports.charts import Picture
from lthfunc.reports.method_tests import Comparison, difference_in_words
from lthfunc.reports.methods import MethodPoint, ranked
from lthfunc.reports.page import html_parts
from lthfunc.reports.page.document import pictures_page
from lthfunc.reports.tables import in_short, measured
from lthfunc.runs import safe_files


def write_study_page(
    path: Path, title: str, points: Sequence[MethodPoint], baseline: str, tests: Sequence[Comparison],
    errors: Picture, costs: Sequence[Picture],
) -> None:  # fmt: skip
    """Write the page, whole or not at all."""
    numbers = html_parts.section("numbers", "Numbers", _table(points, baseline, tests))
    text = pictures_page(title, {"Errors": [errors], "Costs": costs}, numbers)
    safe_files.write(path.parent, path, text.encode(errors="backslashreplace"))


def _table(points: Sequence[MethodPoint], baseline: str, tests: Sequence[Comparison]) -> str:
    scale = points[0].scale
    metered = any(point.kwh is not None for point in points)
    compared = {(test.method, test.density): difference_in_words(test, scale) for test in tests}
    head = ["method", "density %", f"test {in_short(scale).head}", "seeds", "trainings", "seconds", "training FLOPs",
            "inference FLOPs", *(["Wh"] if metered else []), f"difference to {baseline}", "what it is"]  # fmt: skip
    order = ranked(points)
    shown = sorted(points, key=lambda point: (-point.asked, order.index(point.method)))
    body = [
        [
            point.method, f"{100 * point.density:.2f}", measured(point.test_accuracy, point.replicates, scale),
            str(point.replicates), f"{point.steps:.1f}", f"{point.seconds:.1f}", f"{point.flops:.3g}",
            f"{point.inference:.3g}",
            *(["–" if point.kwh is None else f"{1000 * point.kwh:.2f}"] if metered else []),
            compared.get((point.method, point.asked), "–"), METHODS.about(point.method),
        ]
        for point in shown
    ]  # fmt: skip
    marks = ["quiet" if point.method == DENSE else "" for point in shown]
    return html_parts.table(head, body, marks, kind="numbers")
