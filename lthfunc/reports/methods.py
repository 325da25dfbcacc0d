"""Methods compared at one density or several: a table, sentences, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rich.table import Table

from lthfunc.catalog.methods import METHODS
from lthfunc.experiments.iterative import TICKET, Plan
from lthfunc.experiments.metrics import MetricScale
from lthfunc.experiments.records import Record, Spread, scale_of_records, search_energy, spread
from lthfunc.experiments.studies import DENSE, StudyRun
from lthfunc.reports.charts import Bars, Chart, Picture, Series
from lthfunc.reports.method_costs import (
    CostPoint,
    NetworkFlops,
    cost_charts,
    inference_flops,
    looks_of_methods,
    network_flops,
    takes_dense_gradients,
    training_flops,
)
from lthfunc.reports.tables import ACCURACY, in_short, measured, with_unit

#: Columns of a screen from which on the table says what each method is.
_EXPLAINED = 110


class MethodPoint(NamedTuple):
    """A method at a density, over its seeds.

    asked: the density that was asked for; density: that was reached. by_seed: test accuracies. steps: of all trainings
    that led to it, as multiples of one training; seconds, flops, kwh: of these, the last where metered. inference:
    FLOPs of one example. collapsed: layers of which nothing is left.
    """

    method: str
    asked: float
    kept: float
    density: float
    by_seed: Mapping[int, float]
    val_accuracy: Spread
    steps: float
    seconds: float
    collapsed: tuple[str, ...] = ()
    kwh: float | None = None
    scale: MetricScale = ACCURACY
    flops: float = 0.0
    inference: float = 0.0

    @property
    def test_accuracy(self) -> Spread:
        """Mean and deviation over the seeds."""
        return spread(self.by_seed.values())

    @property
    def replicates(self) -> int:
        """The number of seeds."""
        return len(self.by_seed)


def method_points(run: StudyRun, plan: Plan, records: Sequence[Record]) -> list[MethodPoint]:
    """A point for each density of a run of a study."""
    flops = network_flops(plan)
    points = [_point(run, plan, records, asked, number, flops) for asked, number in run.rounds.items()]
    return [point for point in points if point is not None]


def _point(
    run: StudyRun, plan: Plan, records: Sequence[Record], asked: float, number: int, flops: NetworkFlops
) -> MethodPoint | None:
    mine = [item for item in records if item["variant"] == TICKET]
    group = [item for item in mine if item["round"] == number]
    if not group:
        return None
    # Rounds of a method that prunes an untrained network don't follow from each other.
    led = [item for item in mine if item["round"] == number or (item["round"] < number and not plan.at_init)]
    seeds = [[item for item in led if item["seed"] == each["seed"]] for each in group]
    of_training = partial(training_flops, flops, plan, dense_updates=takes_dense_gradients(run.config))
    empty = [layer for item in group for layer, counts in item["layers"].items() if not counts["kept"]]
    return MethodPoint(
        run.method,
        asked,
        statistics.fmean(item["kept"] for item in group),
        statistics.fmean(item["density"] for item in group),
        {item["seed"]: item["test_accuracy"] for item in group},
        spread(item["val_accuracy"] for item in group),
        statistics.fmean(sum(map(_steps, each)) for each in seeds) / plan.steps,
        statistics.fmean(sum(item["seconds"] for item in each) for each in seeds),
        tuple(dict.fromkeys(empty)),
        statistics.fmean(sum(map(search_energy, each)) for each in seeds)
        if all("energy" in item for item in led)
        else None,
        scale_of_records(group),
        statistics.fmean(sum(map(of_training, each)) for each in seeds),
        statistics.fmean(inference_flops(flops, item) for item in group),
    )


def _steps(item: Record) -> int:
    steps: int = item["final_step"] - item["curve"][0][0]
    return steps


def at_densities(points: Sequence[MethodPoint]) -> list[float]:
    """The densities at which methods are compared, falling; the dense network's own is none of them."""
    return sorted({point.asked for point in points if point.method != DENSE}, reverse=True) or [1.0]


def ranked(points: Sequence[MethodPoint]) -> list[str]:
    """The methods, the best at the lowest density first; those without a result there at the end."""
    last = at_densities(points)[-1]
    at_last = [point for point in points if point.asked == last or point.method == DENSE]
    at_last.sort(key=lambda each: each.scale.gain(0, each.test_accuracy.mean))
    return list(dict.fromkeys(each.method for each in (*at_last, *points)))


def method_table(points: Sequence[MethodPoint], width: int) -> Table:
    """A line per method, the best first: accuracies at each density, and what its training to the lowest one cost."""
    densities = at_densities(points)
    replicates, metered = max(each.replicates for each in points), any(each.kwh is not None for each in points)
    title = f"mean ± standard deviation of {replicates} seeds" if replicates > 1 else None
    table = Table(title=title, title_style="dim", title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    head = f"test {in_short(points[0].scale).head}"
    several = len(densities) > 1
    heads = [f"at {100 * each:g} %" for each in densities] if several else ["density %", head]
    for each in (*heads, "trainings", "seconds", *(["Wh"] if metered else [])):
        table.add_column(each, justify="right", no_wrap=True)
    if several:
        table.caption = f"{head} at each density, the share of the weights that remain"
    explained = width >= _EXPLAINED
    if explained:
        table.add_column("what it is", style="dim")
    for method in ranked(points):
        mine = {each.asked: each for each in points if each.method == method}
        last = mine[min(mine)]
        cells = [
            measured(point.test_accuracy, point.replicates, point.scale) if (point := mine.get(each)) else "–"
            for each in densities
        ]
        if method == DENSE:
            cells = [measured(last.test_accuracy, last.replicates, last.scale)] * len(densities)
        what = METHODS.about(method) + (f"; empty: {', '.join(last.collapsed)}" if last.collapsed else "")
        table.add_row(
            method,
            *(cells if several else [f"{100 * last.density:.2f}", *cells]),
            f"{last.steps:.1f}",
            f"{last.seconds:.1f}",
            *(["–" if last.kwh is None else f"{1000 * last.kwh:.2f}"] if metered else []),
            *([what] if explained else []),
        )
    return table


def most_accurate(points: Sequence[MethodPoint]) -> Iterator[str]:
    """The best method beside the dense network at each density, in a sentence; none where nothing was pruned."""
    dense = next((point for point in points if point.method == DENSE), None)
    for density in at_densities(points):
        pruned = [point for point in points if point.asked == density and point.method != DENSE]
        if not pruned:
            continue
        best = min(pruned, key=lambda point: point.scale.gain(0, point.test_accuracy.mean))
        reached = with_unit(best.test_accuracy, best.replicates, best.scale)
        other = "" if dense is None else "; the dense network has " + with_unit(
            dense.test_accuracy, dense.replicates, dense.scale
        )  # fmt: skip
        seeds = f"over {best.replicates} seeds"
        seeds = seeds if best.replicates > 1 else "with one seed: how much seeds differ is not known"
        most = "Most accurate" if best.scale.unit else f"The best {best.scale.word}"
        at = f" at {100 * density:g} %" if len(at_densities(points)) > 1 else ""
        yield f"{most}{at} on the test set: {best.method}, {reached}{other}, {seeds}."


def method_picture(points: Sequence[MethodPoint], title: str) -> Picture:
    """Test errors: a dot per method at one density, a line with a band per method over several."""
    return _curves(points, title) if len(at_densities(points)) > 1 else _dots(points, title)


def _error(point: MethodPoint) -> float:
    return point.scale.factor * point.scale.error(point.test_accuracy.mean)


def _deviation(point: MethodPoint) -> float:
    return point.scale.factor * point.test_accuracy.std


def _error_axis(scale: MetricScale) -> str:
    return f"test {scale.axis}" if scale.lower_is_better or scale.counts else "test error (%)"


def _dots(points: Sequence[MethodPoint], title: str) -> Bars:
    order = [method for method in ranked(points) if method != DENSE] or [DENSE]
    shown = [next(point for point in points if point.method == method) for method in order]
    scale = points[0].scale
    name = "mean ± standard deviation" if max(point.replicates for point in points) > 1 else "one seed"
    group = (name, list(map(_error, shown)), list(map(_deviation, shown)))
    dense = [(_error(point), DENSE) for point in points if point.method == DENSE]
    return Bars("methods", title, _error_axis(scale), order, [group], dots=True, across=dense)


def _curves(points: Sequence[MethodPoint], title: str) -> Chart:
    order, series = ranked(points), []
    looks = looks_of_methods(order)
    for method in (each for each in order if each != DENSE):
        mine = sorted((point for point in points if point.method == method), key=lambda point: -point.density)
        xs, ys = [100 * point.density for point in mine], list(map(_error, mine))
        series.append(Series(method, xs, ys, list(map(_deviation, mine)), *looks[method]))
    dense = [(_error(point), DENSE) for point in points if point.method == DENSE]
    lowest = min(_error(point) - (point.method != DENSE) * _deviation(point) for point in points)
    replicates = max(point.replicates for point in points)
    caption = f"Mean ± standard deviation of {replicates} seeds." if replicates > 1 else ""
    return Chart(
        "methods", title, "weights remaining (%)", _error_axis(points[0].scale), series, log_x=True,
        log_y=lowest > 0, falling=True, across=dense, bands=True, caption=caption,
    )  # fmt: skip


def method_cost_charts(points: Sequence[MethodPoint]) -> list[Chart]:
    """Errors against the FLOPs of training and of inference, the time, and the energy where metered."""
    found = [
        CostPoint(point.method, point.density, _error(point),
                  {"training_flops": point.flops, "inference_flops": point.inference, "seconds": point.seconds,
                   "kwh": point.kwh})
        for point in points
    ]  # fmt: skip
    return cost_charts(found, ranked(points), _error_axis(points[0].scale))


def values_by_seed(points: Sequence[MethodPoint]) -> dict[tuple[str, float], Mapping[int, float]]:
    """Test accuracies by seed, of each method at each density; the dense network's at all densities."""
    pruned = {(point.method, point.asked): point.by_seed for point in points if point.method != DENSE}
    dense = [point.by_seed for point in points if point.method == DENSE]
    return pruned | {(DENSE, density): each for density in at_densities(points) for each in dense}


def as_values(points: Sequence[MethodPoint]) -> list[dict[str, Any]]:
    """For machines: accuracies in [0, 1], a line per method and density."""
    return [
        {
            "method": point.method, "at": point.asked, "density": point.density, "kept": point.kept,
            "test_accuracy": point.test_accuracy.mean, "test_accuracy_std": point.test_accuracy.std,
            "val_accuracy": point.val_accuracy.mean,
            "by_seed": {str(seed): value for seed, value in point.by_seed.items()},
            "trainings": point.steps, "seconds": point.seconds, "collapsed": list(point.collapsed),
            "training_flops": point.flops, "inference_flops": point.inference,
            **({} if point.kwh is None else {"kwh": point.kwh}),
        }
        for point in points
    ]  # fmt: skip
