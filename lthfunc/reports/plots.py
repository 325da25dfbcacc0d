"""Pictures of a run, drawn from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record, Row, Spread, summarize, word_of
from lthfunc.reports.figures import clean, figure as empty_figure, save
from lthfunc.reports.spacing import spread_out

ACCURACY = "accuracy_vs_density.png"
CURVES = "training_curves.png"
TIME = "training_time.png"

_LABELS = {
    TICKET: "ticket",
    "reinit": "random reinitialisation",
    "random-mask": "random mask",
    "layer-random-mask": "random mask in each layer",
    "shuffled-mask": "shuffled mask",
    "inverted-mask": "inverted mask",
}
# Okabe & Ito's palette: told apart by colour-blind readers too.
_COLOURS = {
    TICKET: "#0072B2", "reinit": "#D55E00", "random-mask": "#009E73", "shuffled-mask": "#CC79A7",
    "inverted-mask": "#E69F00", "layer-random-mask": "#56B4E9",
}  # fmt: skip
_MARKERS = {
    TICKET: "o",
    "reinit": "s",
    "random-mask": "^",
    "shuffled-mask": "D",
    "inverted-mask": "v",
    "layer-random-mask": "P",
}


def draw(folder: Path, records: Sequence[Record], title: str) -> list[Path]:
    """Write the pictures of a run; returns their paths. A dense training alone has only its curve."""
    pictures = [(CURVES, training_curves(records, title))]
    if any(item["round"] for item in records):
        pictures = [
            (ACCURACY, accuracy_vs_density(records, title)),
            *pictures,
            (TIME, training_time(records, title)),
        ]
    for name, figure in pictures:
        save(figure, folder / name)
    return [folder / name for name, _ in pictures]


def accuracy_vs_density(records: Sequence[Record], title: str) -> Figure:
    """Test accuracy at the early-stopping step against density, dense at the left, as in the paper's figures."""
    rows = summarize(records)
    replicates = max(row.replicates for row in rows)
    title += f" (mean ± std of {replicates} seeds)" if replicates > 1 else ""
    figure, _ = _against_density(rows, lambda row: Spread(*(100 * part for part in row.test_accuracy)), title)
    figure.axes[0].set_ylabel(f"test {rows[0].measured} at early stopping (%)")
    return figure


def training_curves(records: Sequence[Record], title: str) -> Figure:
    """Validation loss and accuracy of each round's ticket over its training; the early-stopping step is marked."""
    figure = empty_figure(10, 4.2)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    mine = [item for item in records if item["variant"] == TICKET and item["seed"] == records[0]["seed"]]
    colours = mpl.colormaps["viridis"]
    shown = spread_out(mine)
    for position, item in enumerate(shown):
        colour = colours(0.9 * position / max(1, len(shown) - 1))
        label = f"round {item['round']}: {100 * item['density']:.3g} %"
        steps = [point[0] for point in item["curve"]]
        for axes, column, scale in ((loss_axes, 2, 1), (accuracy_axes, 3, 100)):
            values = [scale * point[column] for point in item["curve"]]
            axes.plot(steps, values, color=colour, linewidth=1.4, label=label)
            at = steps.index(item["early_stop_step"])
            axes.plot(steps[at], values[at], marker="o", markersize=5, color=colour)
    loss_axes.set_yscale("log")
    loss_axes.yaxis.set_minor_formatter(NullFormatter())
    loss_axes.set_ylabel("validation loss")
    accuracy_axes.set_ylabel(f"validation {word_of(records[0].get('metric', 'accuracy'))} (%)")
    finals = [100 * point[3] for item in shown for point in item["curve"][1:]]
    low = min(finals) - 0.5 if max(finals) < 0 else max(0.0, min(finals) - 0.5)
    accuracy_axes.set_ylim(max(low, max(finals) - 4 * (max(finals) - _median(finals)) - 4), max(finals) + 0.3)
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("training step (● early stopping)")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        clean(axes)
    accuracy_axes.legend(frameon=False, fontsize=8, title="weights remaining", title_fontsize=8)
    figure.suptitle(f"{title}, seed {records[0]['seed']}", fontsize=11)
    return figure


def training_time(records: Sequence[Record], title: str) -> Figure:
    """Seconds of each training against density: what sparse rounds save. The dense network's time is the line."""
    figure, tickets = _against_density(summarize(records), lambda row: Spread(row.seconds, 0.0), title)
    axes, dense, last = figure.axes[0], tickets[0].seconds, tickets[-1]
    if last.seconds > 0:
        axes.annotate(
            f"{dense / last.seconds:.1f} times as fast",
            (100 * last.density, last.seconds),
            xytext=(0, -9),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds per training")
    return figure


def _against_density(rows: Sequence[Row], value: Callable[[Row], Spread], title: str) -> tuple[Figure, list[Row]]:
    """A line for each variant, the dense network's value as a line across; and the tickets' rows."""
    figure, axes = _figure()
    tickets = [row for row in rows if row.variant == TICKET]
    axes.axhline(value(tickets[0]).mean, color="#888888", linewidth=1, linestyle="--", label="dense")
    for variant in dict.fromkeys(row.variant for row in rows):
        line = [row for row in rows if row.variant == variant]
        deviations = [value(row).std for row in line]
        axes.errorbar(
            [100 * row.density for row in line],
            [value(row).mean for row in line],
            yerr=deviations if any(deviations) else None,
            color=_COLOURS[variant],
            marker=_MARKERS[variant],
            markersize=5,
            linewidth=1.5,
            capsize=2,
            label=_LABELS[variant],
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    _density_ticks(axes, tickets)
    axes.set_xlabel("weights remaining (%)")
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False)
    return figure, tickets


def _density_ticks(axes: Any, tickets: list[Row]) -> None:
    values = spread_out([100 * row.density for row in tickets])  # few enough that labels never touch
    axes.set_xticks(values, [f"{value:.3g}" for value in values])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([], minor=True)


def _figure() -> tuple[Figure, Any]:
    figure = empty_figure(7, 4.5)
    axes = figure.subplots()
    clean(axes)
    return figure, axes


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
