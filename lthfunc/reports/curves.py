"""Charts of a run's records: over density, and over the steps of trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record, Row, Spread, search_energy, spread, summarize, word_of
from lthfunc.reports.charts import AMBER, BLUE, GREEN, ORANGE, PALETTE, PINK, SKY, Chart, Dash, Series, ramp
from lthfunc.reports.spacing import spread_out


class Look(NamedTuple):
    """How a variant is drawn. word: its name in legends."""

    word: str
    colour: str
    dash: Dash
    marker: str


_LOOKS = {
    TICKET: Look("ticket", BLUE, "solid", "circle"),
    "reinit": Look("random reinitialisation", ORANGE, "dash", "square"),
    "random-mask": Look("random mask", GREEN, "dot", "triangle-up"),
    "shuffled-mask": Look("shuffled mask", PINK, "dashdot", "diamond"),
    "inverted-mask": Look("inverted mask", AMBER, "dash", "triangle-down"),
    "layer-random-mask": Look("random mask in each layer", SKY, "dot", "cross"),
}


def look_of(variant: str) -> Look:
    """How a variant is drawn. Controls without a look, such as an installed package's, get one by name."""
    colour = PALETTE[sum(map(ord, variant)) % len(PALETTE)]
    return _LOOKS.get(variant) or Look(variant, colour, "dashdot", "cross")


#: Records of several runs, by their names.
Runs = Mapping[str, Sequence[Record]]
Value = Callable[[Record], float]


def pooled_title(records: Sequence[Record], title: str) -> str:
    """A title with the number of replicates per point."""
    replicates = max(row.replicates for row in summarize(records))
    return title + (f" (mean ± std of {replicates} seeds)" if replicates > 1 else "")


def accuracy_chart(runs: Runs) -> Chart:
    """Test accuracy at the early-stopping step against density, dense as a line, as in the paper's figures."""
    word = word_of(next(iter(runs.values()))[0].get("metric", "accuracy"))
    return _over_density(
        runs, "accuracy_vs_density", f"Test {word}", f"test {word} at early stopping (%)",
        lambda item: 100 * item["test_accuracy"],
    )  # fmt: skip


def loss_chart(runs: Runs) -> Chart:
    """Test loss at the early-stopping step against density."""
    return _over_density(
        runs, "loss_vs_density", "Test loss", "test loss at early stopping", lambda item: item["test_loss"]
    )


def stop_chart(runs: Runs) -> Chart:
    """The early-stopping step against density: how fast a network learns."""
    return _over_density(
        runs, "early_stop_vs_density", "Early-stopping step", "step of the least validation loss",
        lambda item: item["early_stop_step"],
    )._replace(zero=True)  # fmt: skip


def time_chart(runs: Runs) -> Chart:
    """Seconds per training against density: what sparse rounds save. The line is the dense network's time."""
    chart = _over_density(
        runs, "training_time", "Seconds of a training", "seconds per training", lambda item: item["seconds"],
        deviations=False,
    )  # fmt: skip
    notes, caption = [], ""
    if len(runs) == 1:
        ticket = next(series for series in chart.series if series.name == look_of(TICKET).word)
        dense, last = ticket.y[0], ticket.y[-1]
        if dense and last and len(ticket.y) > 1:
            notes = [(ticket.x[-1], last, f"{dense / last:.1f} times as fast")]
            caption = f"At {ticket.x[-1]:.3g} % of the weights {dense / last:.1f} times as fast as the dense network."
    return chart._replace(zero=True, notes=notes, caption=caption)


def energy_chart(runs: Runs) -> Chart:
    """Energy per training against density, without evaluation."""
    return _over_density(
        runs, "training_energy", "Energy of a training", "Wh per training",
        lambda item: 1000 * search_energy(item),
    )._replace(zero=True)  # fmt: skip


def curve_charts(records: Sequence[Record], most: int = 8) -> list[Chart]:
    """Validation loss and accuracy over the trainings of one seed's tickets, with early-stopping steps marked.

    most: how many rounds to draw; legends list at most eight of them.
    """
    mine = [item for item in records if item["variant"] == TICKET and item["seed"] == records[0]["seed"]]
    shown = spread_out(mine, most)
    listed = [item["round"] for item in spread_out(shown)]
    word = word_of(records[0].get("metric", "accuracy"))

    def lines(column: int, scale: float) -> list[Series]:
        return [
            Series(
                f"{100 * item['density']:.3g} %",
                [point[0] for point in item["curve"]],
                [scale * point[column] for point in item["curve"]],
                colour=ramp(position / max(1, len(shown) - 1)),
                marker=None,
                marked=[point[0] for point in item["curve"]].index(item["early_stop_step"]),
                listed=item["round"] in listed,
            )
            for position, item in enumerate(shown)
        ]

    seed = records[0]["seed"]
    finals = [100 * point[3] for item in shown for point in item["curve"][1:]] or [0.0]
    low = min(finals) - 0.5 if max(finals) < 0 else max(0.0, min(finals) - 0.5)
    low = max(low, max(finals) - 4 * (max(finals) - sorted(finals)[len(finals) // 2]) - 4)
    steps = "training step (● early stopping)"
    caption = "A line for each of the rounds, by the weights that remain."
    return [
        Chart(
            "training_loss", f"Validation loss, seed {seed}", steps, "validation loss", lines(2, 1), log_y=True,
            legend_title="weights remaining", caption=caption,
        ),
        Chart(
            "training_accuracy", f"Validation {word}, seed {seed}", steps, f"validation {word} (%)", lines(3, 100),
            y_range=(low, max(finals) + 0.3), legend_title="weights remaining", caption=caption,
        ),
    ]  # fmt: skip


def layer_chart(records: Sequence[Record]) -> Chart:
    """Density of each layer against the network's, mean over seeds."""
    rows = [row for row in summarize(records) if row.variant == TICKET]
    names = list(rows[0].layers)
    series = [
        Series(
            name.removesuffix(".weight"),
            [100 * row.density for row in rows],
            [100 * row.layers[name] or None for row in rows],  # an empty layer has no place on a logarithmic axis
            colour=ramp(position / max(1, len(names) - 1)),
            listed=len(names) <= 12 or position in (0, len(names) - 1),
        )
        for position, name in enumerate(names)
    ]
    return Chart(
        "layer_densities", "Density of each layer", "weights remaining (%)", "weights remaining in the layer (%)",
        series, log_x=True, log_y=True, falling=True, ticks=_ticks([100 * row.density for row in rows]),
        caption="Darker lines are nearer to the input.",
    )  # fmt: skip


def _over_density(runs: Runs, key: str, title: str, y: str, value: Value, *, deviations: bool = True) -> Chart:
    """A line per variant, or per run and variant; dense networks as horizontal lines."""
    series, densities, across = [], [], []
    for number, (name, records) in enumerate(runs.items()):
        rows = summarize(records)
        for variant in dict.fromkeys(row.variant for row in rows):
            line = [row for row in rows if row.variant == variant]
            values = [_spread(records, row, value) for row in line]
            look = look_of(variant)
            alone = len(runs) == 1
            series.append(
                Series(
                    look.word if alone else name if variant == TICKET else f"{name}: {look.word}",
                    [100 * row.density for row in line],
                    [each.mean for each in values],
                    [each.std for each in values] if deviations else None,
                    look.colour if alone else PALETTE[number % len(PALETTE)],
                    look.dash if alone or variant != TICKET or number < len(PALETTE) else "dashdot",
                    look.marker,
                )
            )
            densities += [100 * row.density for row in line]
            if variant == TICKET and line[0].round == 0:
                across.append((values[0].mean, "dense" if alone else f"{name}: dense"))
    return Chart(
        key, title, "weights remaining (%)", y, series, log_x=True, falling=True, ticks=_ticks(densities),
        across=across if len(runs) == 1 else (),
    )  # fmt: skip


def _spread(records: Sequence[Record], row: Row, value: Value) -> Spread:
    return spread(value(item) for item in records if (item["round"], item["variant"]) == (row.round, row.variant))


def _ticks(densities: Sequence[float]) -> list[float]:
    return spread_out(sorted(set(densities), reverse=True))  # few enough that labels never touch
