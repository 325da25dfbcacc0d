"""The pictures of a page: of all runs together, and of each run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from lthfunc.experiments.config import masks_nest
from lthfunc.experiments.iterative import TICKET
from lthfunc.reports.charts import GREY, Chart, Heat, Picture, Series
from lthfunc.reports.curves import (
    accuracy_chart,
    curve_charts,
    energy_chart,
    layer_chart,
    loss_chart,
    stop_chart,
    time_chart,
)
from lthfunc.reports.mask_updates import mask_update_charts
from lthfunc.reports.page.explorer import pixels_of
from lthfunc.reports.page.mask_history import Overlap, Patterns, overlap_of, read_patterns
from lthfunc.reports.page.measurement_pictures import energy_pictures, measured_pictures
from lthfunc.reports.page.run_view import RunView

#: Rounds whose training curves are drawn.
_MOST_CURVES = 30


class RunPictures(NamedTuple):
    """Of one run. pictures: by heading. masks: of one seed, for the page's explorer, or None; pixels: as `pixels_of`

    gives them. missing: what could not be read.
    """

    pictures: dict[str, list[Picture]]
    masks: Patterns | None
    pixels: tuple[str, Tensor] | None
    missing: list[str]


def together(runs: Sequence[RunView]) -> dict[str, list[Picture]]:
    """Pictures with all runs on the same axes, by heading."""
    with_rounds = {run.name: run.records for run in runs if any(item["round"] for item in run.records)}
    points = {(name, item["round"]) for name, records in with_rounds.items() for item in records}
    if len(points) < 2:  # one point is no chart
        return {}
    found: dict[str, list[Picture]] = {
        "Accuracy and loss": [accuracy_chart(with_rounds), loss_chart(with_rounds)],
        "Speed of learning and of training": [stop_chart(with_rounds), time_chart(with_rounds)],
    }
    metered = {name: [item for item in records if "energy" in item] for name, records in with_rounds.items()}
    metered = {name: records for name, records in metered.items() if records}
    if len(metered) > 1:
        found["Energy"] = [energy_chart(metered)]
    return found


def reads_of(run: RunView) -> int:
    """How many rounds `pictures_of` reads, for a progress bar."""
    return sum(item["variant"] == TICKET for item in run.records)


def pictures_of(run: RunView, on_read: Callable[[], None]) -> RunPictures:
    """A run's own pictures. on_read: called after each round is read."""
    if not run.records:
        return RunPictures({}, None, None, [])
    missing: list[str] = []
    seeds = sorted({item["seed"] for item in run.records})
    records = run.records
    if run.config is not None and not masks_nest(run.config):  # so that they don't fit into one picture
        last = max(item["round"] for item in records)
        records = [item for item in records if item["round"] == last]
    patterns: list[Patterns] = []
    for number, seed in enumerate(seeds):
        pattern, lines = read_patterns(run.folder, records, seed, weights=number == 0, on_read=on_read)
        missing += lines
        patterns += [] if pattern is None else [pattern]
    pruned = any(item["round"] for item in run.records)
    overlap = overlap_of(patterns) if pruned else None
    found: dict[str, list[Picture]] = {
        "Training curves": [*curve_charts(run.records, most=_MOST_CURVES)],
        "Masks while training": [*mask_update_charts(run.records)],
        "Layers": [
            *([layer_chart(run.records)] if pruned else []),
            *(overlap_pictures(overlap) if overlap is not None and len(overlap.rounds) > 1 else []),
        ],
        "Energy of the search": energy_pictures(run.records),
        "Measured": measured_pictures(run.name, run.records, run.measured),
    }
    found = {heading: pictures for heading, pictures in found.items() if pictures}
    if not (patterns and pruned):
        return RunPictures(found, None, None, missing)
    shape = (run.about.get("data") or {}).get("shape")
    return RunPictures(found, patterns[0], pixels_of(patterns[0], shape), missing)


def overlap_pictures(overlap: Overlap) -> list[Picture]:
    """How similar the tickets of different seeds are."""
    lines = [  # dots on a line, since both are often nearly the same
        Series("by chance, with the same layer densities", overlap.densities, overlap.chance, colour=GREY, marker=None),
        Series("tickets of two seeds", overlap.densities, overlap.same, dash="none"),
    ]
    names = [f"{number}" for number in overlap.shown]
    return [
        Chart(
            "mask_overlap", "Overlap of masks between seeds", "weights remaining (%)",
            "weights in both / weights in either", lines, log_x=True, falling=True, zero=True, possible=(0.0, 1.0),
        ),
        Heat(
            "mask_overlap_rounds", "Overlap of masks between seeds and rounds", "round of one seed",
            "round of another", names, names, overlap.between, "Jaccard index",
        ),
    ]  # fmt: skip
