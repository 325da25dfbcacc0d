"""Charts of a run's records: over density, and over the steps of trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.metrics import MetricScale, in_one_unit, metric_scale
from lthfunc.experiments.records import Record, Row, Spread, scale_of_records, search_energy, spread, summarize
from lthfunc.reports.charts import DASHES, MARKERS, NOT_NEGATIVE, PALETTE, Chart, Colour, Dash, Series, ordered
from lthfunc.reports.spacing import spread_out
from lthfunc.reports.tables import ACCURACY


class Look(NamedTuple):
    """How a variant is drawn. word: its name in legends."""

    word: str
    colour: Colour
    dash: Dash
    marker: str


_WORDS = {
    TICKET: "ticket", "reinit": "random reinitialisation", "random-mask": "random mask",
    "shuffled-mask": "shuffled mask", "inverted-mask": "inverted mask",
    "layer-random-mask": "random mask in each layer",
}  # fmt: skip
_LOOKS = {
    variant: Look(word, colour, dash, marker)
    for (variant, word), colour, dash, marker in zip(_WORDS.items(), PALETTE, DASHES, MARKERS, strict=False)
}


def look_of(variant: str) -> Look:
    """How a variant is drawn. Controls without a look, such as an installed package's, get one by name."""
    colour = PALETTE[sum(map(ord, variant)) % len(PALETTE)]
    return _LOOKS.get(variant) or Look(variant, colour, "longdashdot", "star")


#: Up to how many runs on the same axes have error bars.
_FEW_RUNS = 3

#: Records of several runs, by their names.
Runs = Mapping[str, Sequence[Record]]
Value = Callable[[Record], float]


def accuracy_chart(runs: Runs) -> Chart:
    """Test accuracy at the early-stopping step against density, dense as a line, as in the paper's figures."""
    scales = set(in_one_unit(map(scale_of_records, runs.values())))
    factors = {each.word: each.factor for each in scales}
    alike = {(each.factor, each.unit) for each in scales}
    if len(scales) == 1:
        scale = scales.pop()
    else:  # each in its own unit
        scale = MetricScale("accuracy or the run's own metric", *alike.pop() if len(alike) == 1 else (1.0, ""))
    unit = f" ({scale.unit})" if scale.unit else ""
    better = " Lower is better." if scale.lower_is_better else ""
    chart = _over_density(
        runs, "accuracy_vs_density", f"Test {scale.word}", f"test {scale.word} at early stopping{unit}",
        lambda item: factors[metric_scale(item.get("metric", "accuracy")).word] * item["test_accuracy"],
    )  # fmt: skip
    chart = chart._replace(caption=f"{chart.caption}{better}".strip())
    return chart._replace(possible=(0.0, 100.0)) if scale == ACCURACY else chart


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
    )._replace(zero=True, possible=NOT_NEGATIVE)  # fmt: skip


def time_chart(runs: Runs) -> Chart:
    """Seconds per training against density: what sparse rounds save. The line is the dense network's time."""
    chart = _over_density(
        runs, "training_time", "Seconds of a training", "seconds per training", lambda item: item["seconds"]
    )
    ticket = chart.series[0]
    last = ticket.y[-1]
    if chart.across and last and len(ticket.y) > 1:
        dense = chart.across[0][0]
        pace = f"At {ticket.x[-1]:.3g} % of the weights {dense / last:.1f} times as fast as the dense network."
        chart = chart._replace(caption=" ".join(filter(None, (chart.caption, pace))))
    return chart._replace(zero=True, possible=NOT_NEGATIVE)


def energy_chart(runs: Runs) -> Chart:
    """Energy per training against density, without evaluation."""
    return _over_density(
        runs, "training_energy", "Energy of a training", "Wh per training",
        lambda item: 1000 * search_energy(item),
    )._replace(zero=True, possible=NOT_NEGATIVE)  # fmt: skip


def curve_charts(records: Sequence[Record], most: int = 8) -> list[Chart]:
    """Validation loss and accuracy over the trainings of one seed's tickets, with early-stopping steps marked.

    most: how many rounds to draw; legends list at most eight of them.
    """
    seed = records[0]["seed"]
    shown = spread_out([item for item in records if item["variant"] == TICKET and item["seed"] == seed], most)
    listed = [item["round"] for item in spread_out(shown)]
    measured = scale_of_records(records)

    def lines(column: int, scale: float) -> list[Series]:
        return [
            Series(
                f"{100 * item['density']:.3g} %",
                [point[0] for point in item["curve"]],
                [scale * point[column] for point in item["curve"]],
                None,
                *ordered(position, len(shown)),
                marker=None,
                marked=[point[0] for point in item["curve"]].index(item["early_stop_step"]),
                listed=item["round"] in listed,
            )
            for position, item in enumerate(shown)
        ]

    finals = [measured.factor * point[3] for item in shown for point in item["curve"][1:]] or [0.0]
    low, high = _range_of(finals, measured)
    chart = Chart(
        "training_loss", f"Validation loss, seed {seed}", "training step (● early stopping)", "validation loss",
        lines(2, 1), log_y=True, legend_title="weights remaining",
        caption="A line for each of the rounds, by the weights that remain." if len(shown) > 1 else "",
    )  # fmt: skip
    accuracy = chart._replace(
        key="training_accuracy", title=f"Validation {measured.word}, seed {seed}", y=f"validation {measured.axis}",
        series=lines(3, measured.factor), log_y=False, y_range=(low, high),
    )  # fmt: skip
    return [chart, accuracy]


def _range_of(values: Sequence[float], scale: MetricScale) -> tuple[float, float]:
    """What to show of a metric's values: the good ones whole, without the outliers of a training's first steps."""
    worst_first = sorted(values, reverse=scale.lower_is_better)
    if not scale.unit:  # values of any size
        worst, middle, best = worst_first[0], worst_first[len(values) // 2], worst_first[-1]
        reach = min(abs(worst - best), 4 * abs(middle - best) + abs(best))
        worst = best + reach if scale.lower_is_better else best - reach
        margin = abs(best - worst) / 10 or 1.0
        return min(best, worst) - margin, max(best, worst) + margin
    low = min(values) - 0.5 if max(values) < 0 else max(0.0, min(values) - 0.5)
    return max(low, max(values) - 4 * (max(values) - worst_first[len(values) // 2]) - 4), max(values) + 0.3


def layer_chart(records: Sequence[Record]) -> Chart:
    """Density of each layer against the network's, mean over seeds."""
    rows = [row for row in summarize(records) if row.variant == TICKET]
    names = list(rows[0].layers)
    densities = [100 * row.density for row in rows]
    series = [
        Series(
            name.removesuffix(".weight"),
            densities,
            [100 * row.layers[name] or None for row in rows],  # an empty layer has no place on a logarithmic axis
            None,
            *ordered(position, len(names)),
            marker=MARKERS[position % len(MARKERS)],
            listed=len(names) <= 12 or position in (0, len(names) - 1),
        )
        for position, name in enumerate(names)
    ]
    return Chart(
        "layer_densities", "Density of each layer", "weights remaining (%)", "weights remaining in the layer (%)",
        series, log_x=True, log_y=True, falling=True,
        caption="The legend's order is that from input to output.",
    )  # fmt: skip


def _over_density(runs: Runs, key: str, title: str, y: str, value: Value) -> Chart:
    """A line per variant, or per run and variant; the dense network of a single run as a horizontal line.

    Of several runs, a legend lists the tickets alone, and of many, their deviations are left out.
    """
    series: list[Series] = []
    across, replicates, variants = [], 1, dict[str, None]()
    alone, few = len(runs) == 1, len(runs) <= _FEW_RUNS
    for number, (name, records) in enumerate(runs.items()):
        rows = summarize(records)
        replicates = max(replicates, *(row.replicates for row in rows))
        for variant in dict.fromkeys(row.variant for row in rows):
            line = [row for row in rows if row.variant == variant]
            values = [_spread(records, row, value) for row in line]
            look = look_of(variant)
            variants[variant] = None
            series.append(
                Series(
                    look.word if alone else name if variant == TICKET else f"{name}: {look.word}",
                    [100 * row.density for row in line],
                    [each.mean for each in values],
                    [each.std for each in values] if few else None,
                    look.colour if alone else PALETTE[number % len(PALETTE)],
                    look.dash,
                    look.marker if alone else MARKERS[number % len(MARKERS)],
                    listed=alone or variant == TICKET,
                )
            )
            if alone and variant == TICKET and line[0].round == 0:
                across.append((values[0].mean, "dense"))
    averaged = f"Mean{' ± standard deviation' if few else 's'} of {replicates} seeds." if replicates > 1 else ""
    dashes = [f"{DASHES[look.dash]}: {look.word}" for look in map(look_of, variants) if not alone]
    return Chart(
        key, title, "weights remaining (%)", y, series, log_x=True, falling=True, across=across,
        caption=" ".join(filter(None, (averaged, f"{', '.join(dashes).capitalize()}." if len(dashes) > 1 else ""))),
    )  # fmt: skip


def _spread(records: Sequence[Record], row: Row, value: Value) -> Spread:
    return spread(value(item) for item in records if (item["round"], item["variant"]) == (row.round, row.variant))
