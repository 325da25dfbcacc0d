"""The pictures that a run leaves in its folder, drawn from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lthfunc.experiments.records import Record
from lthfunc.reports.curves import accuracy_chart, curve_charts, pooled_title, time_chart
from lthfunc.reports.matplotlib_figures import printed, save, side_by_side

ACCURACY = "accuracy_vs_density.png"
CURVES = "training_curves.png"
TIME = "training_time.png"


def draw(folder: Path, records: Sequence[Record], title: str) -> list[Path]:
    """Write the pictures of a run; returns their paths. A dense training alone has only its curve."""
    pictures = [(CURVES, training_curves(records, title))]
    if any(item["round"] for item in records):
        pictures = [
            (ACCURACY, accuracy_vs_density(records, title)),
            *pictures,
            (TIME, printed(time_chart({"": records})._replace(title=title))),
        ]
    for name, figure in pictures:
        save(figure, folder / name, folder)
    return [folder / name for name, _ in pictures]


def accuracy_vs_density(records: Sequence[Record], title: str) -> Figure:
    """Test accuracy at the early-stopping step against density."""
    return printed(accuracy_chart({"": records})._replace(title=pooled_title(records, title)))


def training_curves(records: Sequence[Record], title: str) -> Figure:
    """Validation loss and accuracy of each round's ticket over its training."""
    return side_by_side(curve_charts(records), f"{title}, seed {records[0]['seed']}", legends=[False, True])
