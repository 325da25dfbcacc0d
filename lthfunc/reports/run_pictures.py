"""The pictures that a run leaves in its folder, drawn from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lthfunc.experiments.records import Record
from lthfunc.reports.curves import accuracy_chart, curve_charts, time_chart
from lthfunc.reports.mask_updates import mask_update_charts
from lthfunc.reports.matplotlib_figures import panels, printed, save

ACCURACY = "accuracy_vs_density.png"
CURVES = "training_curves.png"
TIME = "training_time.png"
UPDATES = "mask_updates.png"


def draw(folder: Path, records: Sequence[Record], title: str) -> list[Path]:
    """Write the pictures of a run; returns their paths. A run of one round has only its curve, and updates of masks."""
    figures = {CURVES: panels(curve_charts(records), title)}
    if changes := mask_update_charts(records):
        figures[UPDATES] = panels(changes, title)
    if len({item["round"] for item in records}) > 1:
        charts = {ACCURACY: accuracy_chart({"": records}), TIME: time_chart({"": records})}
        figures |= {name: printed(chart._replace(title=f"{chart.title}, {title}")) for name, chart in charts.items()}
    for name, figure in figures.items():
        save(figure, folder / name, folder)
    return [folder / name for name in sorted(figures)]
