"""What methods cost: FLOPs of training and of inference, from records; and errors against costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET, Plan
from lthfunc.experiments.records import Record, change_from
from lthfunc.experiments.studies import DENSE
from lthfunc.reports.charts import DASHES, GREY, MARKERS, PALETTE, Chart, Colour, Dash, Series
from lthfunc.trees.flops import flops_by_weight

#: A step computes a forward pass, and two products as large backward.
_STEP = 3


class NetworkFlops(NamedTuple):
    """FLOPs of one example's forward pass: of each prunable layer, and of all other products."""

    layers: dict[str, float]
    others: float

    def at(self, densities: dict[str, float]) -> float:
        """With layers of these densities, counting the remaining weights alone."""
        return self.others + sum(flops * densities[name] for name, flops in self.layers.items())


def network_flops(plan: Plan) -> NetworkFlops:
    """The FLOPs of a plan's dense network."""
    model, params = plan.model, dict(plan.model.evaluating.named_parameters())
    sizes = {name: params[name].numel() for name in model.prunable}
    layers, total = flops_by_weight(model.evaluating, plan.trainer.data.shape, sizes, tokens=model.tokens)
    return NetworkFlops(layers, total - sum(layers.values()))


def inference_flops(flops: NetworkFlops, item: Record) -> float:
    """Of one example through a training's network, its remaining weights alone."""
    return flops.at({name: each["density"] for name, each in item["layers"].items()})


def takes_dense_gradients(config: Config) -> bool:
    """Whether each update of masks takes a dense gradient: to grow by it, or to drop by it as MEST does."""
    return config.growth == "gradient" or bool(config.gradient_weight)


def training_flops(flops: NetworkFlops, plan: Plan, item: Record, *, dense_updates: bool) -> float:
    """Of a training's steps, the remaining weights alone, by the masks of each step.

    Where masks are trained, every step is dense; of several particles, each step is all of theirs. dense_updates:
    whether each update of masks takes a dense gradient on a batch. Dense trainings within the pruning count as part of
    the ticket's training; other pruning beforehand and evaluation are not counted.
    """
    totals = {name: each["total"] for name, each in item["layers"].items()}
    through = plan.masks_through(item["round"])
    if through is not None and through.dense:
        parts = [(item["final_step"] - item["curve"][0][0], dict.fromkeys(totals, 1.0))]
    else:
        parts = _parts(item, totals)
    batches: float = sum(steps * flops.at(densities) for steps, densities in parts)
    if dense_updates:
        batches += len(item.get("updates", ())) * flops.at(dict.fromkeys(totals, 1.0))
    if item["round"] and item.get("variant", TICKET) == TICKET:
        batches += plan.pruning_steps * flops.at(dict.fromkeys(totals, 1.0))
    return _STEP * (plan if through is None else through).trainer.batch_size * batches


def _parts(item: Record, totals: dict[str, int]) -> list[tuple[int, dict[str, float]]]:
    """(steps, the densities of layers in them), one after the other."""
    begun, end = item["curve"][0][0], item["final_step"]
    changes = [change_from(each) for each in item.get("updates", ())]
    if not changes:
        return [(end - begun, {name: each["density"] for name, each in item["layers"].items()})]
    first = {name: (each.kept + each.dropped - each.grown) / totals[name] for name, each in changes[0].layers.items()}
    later = [{name: each.kept / totals[name] for name, each in change.layers.items()} for change in changes]
    steps = [begun, *(change.step for change in changes), end]
    return [
        (until - since, densities) for since, until, densities in zip(steps, steps[1:], [first, *later], strict=False)
    ]


class CostPoint(NamedTuple):
    """A method at a density. costs: by kind; None where unknown. error: as its axis has it."""

    method: str
    density: float
    error: float
    costs: dict[str, float | None]


#: Kinds of costs: (title, axis, factor of what is shown).
KINDS: dict[str, tuple[str, str, float]] = {
    "training_flops": ("Training", "FLOPs of training", 1.0),
    "inference_flops": ("Inference", "FLOPs of one example", 1.0),
    "seconds": ("Time of training", "seconds of training", 1.0),
    "kwh": ("Energy of training", "Wh of training", 1000.0),
}


def cost_charts(points: Sequence[CostPoint], order: Sequence[str], axis: str) -> list[Chart]:
    """Errors against each kind of cost that is known: a line per method over its densities, and the best of all."""
    return [_chart(points, order, axis, kind) for kind in KINDS if _costs(points, kind)]


def looks_of_methods(methods: Sequence[str]) -> dict[str, tuple[Colour, Dash, str]]:
    """How each method is drawn, in all pictures of a study."""
    dashes, pruned = list(DASHES), [each for each in methods if each != DENSE]
    looks = {
        each: (PALETTE[at % len(PALETTE)], dashes[at // len(PALETTE) % len(dashes)], MARKERS[at % len(MARKERS)])
        for at, each in enumerate(pruned)
    }
    return {DENSE: (GREY, "dash", "circle"), **looks}


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, error) that no other one beats in both, by increasing cost."""
    found: list[tuple[float, float]] = []
    for cost, error in sorted(points):
        if not found or error < found[-1][1]:
            found.append((cost, error))
    return found


def _chart(points: Sequence[CostPoint], order: Sequence[str], axis: str, kind: str) -> Chart:
    title, words, factor = KINDS[kind]
    series, looks = [], looks_of_methods(order)
    for method in order:
        mine = [point for point in points if point.method == method and point.costs.get(kind)]
        mine.sort(key=lambda point: -point.density)
        if mine:
            costs = [factor * (point.costs[kind] or 0.0) for point in mine]
            series.append(Series(method, costs, [point.error for point in mine], None, *looks[method]))
    best = front([(factor * cost, error) for cost, error in _costs(points, kind)])
    xs, ys = zip(*best, strict=True)
    series.append(Series("no other is better in both", list(xs), list(ys), None, GREY, "dot", None))
    several = any(len(each.x) > 1 for each in series[:-1])
    each_method = (
        "A line for each of the methods, over its densities." if several else "A point for each of the methods."
    )
    return Chart(
        f"methods_{kind}", f"Error against cost: {title.lower()}", words, axis, series, log_x=True,
        log_y=all(point.error > 0 for point in points),
        caption=each_method,
    )  # fmt: skip


def _costs(points: Sequence[CostPoint], kind: str) -> list[tuple[float, float]]:
    found = [(point.costs.get(kind), point.error) for point in points]
    return [(cost, error) for cost, error in found if cost]
