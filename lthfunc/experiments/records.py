"""Results as plain values: a record per training, and a summary over replicates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lthfunc.experiments.iterative import Round
from lthfunc.experiments.metrics import MetricScale, in_one_unit, metric_scale
from lthfunc.training.results import LayerChange, MaskChange
from lthfunc.trees.ops import count, layer_counts

Record = dict[str, Any]


def record(
    result: Round,
    *,
    replicate: int,
    seed: int,
    seconds: float,
    metric: str = "accuracy",
    energy: Mapping[str, Any] | None = None,
) -> Record:
    """One training as JSON values. Accuracies are in [0, 1]; only `seconds` differs between equal runs.

    metric: the metric reported as accuracy, in its own unit. energy: of the training, if measured.

    updates: of masks that changed in the training; counts are of those at its end. val_* and test_* belong to the
    early-stopping step, the one with the least validation loss; final_val_* to the last step.
    """
    masks = result.fit.state.masks
    whole, layers = count(masks), layer_counts(masks)
    chosen, last = result.fit.best.point, result.fit.curve[-1]
    return {
        "replicate": replicate,
        "seed": seed,
        "round": result.number,
        "variant": result.variant,
        "metric": metric,
        "kept": whole.kept,
        "total": whole.total,
        "density": whole.density,
        "layers": {name: {"kept": n.kept, "total": n.total, "density": n.density} for name, n in layers.items()},
        "early_stop_step": chosen.step,
        "val_loss": chosen.val_loss,
        "val_accuracy": chosen.val_accuracy,
        "test_loss": result.test.loss,
        "test_accuracy": result.test.accuracy,
        "final_step": last.step,
        "final_val_loss": last.val_loss,
        "final_val_accuracy": last.val_accuracy,
        "seconds": round(seconds, 3),
        # JSON has no NaN: the first point, before any step, has no training loss.
        "curve": [
            [p.step, None if math.isnan(p.train_loss) else p.train_loss, p.val_loss, p.val_accuracy]
            for p in result.fit.curve
        ],
        **({"updates": [plain_change(each) for each in changes]} if (changes := result.fit.changes) else {}),
        **({} if energy is None else {"energy": energy}),
    }


def plain_change(change: MaskChange) -> Record:
    """An update of masks as JSON values; of each layer [kept, dropped, grown]."""
    layers = {name: [*each] for name, each in change.layers.items()}
    return {"step": change.step, "layers": layers, "masks_sha256": change.digest}


def change_from(values: Mapping[str, Any]) -> MaskChange:
    """`plain_change`, back."""
    layers = {name: LayerChange(*map(int, each)) for name, each in values["layers"].items()}
    return MaskChange(int(values["step"]), layers, str(values["masks_sha256"]))


class Spread(NamedTuple):
    """Mean and sample standard deviation (ddof 1; 0 for a single value)."""

    mean: float
    std: float


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation of some values."""
    numbers = list(values)
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0)


class Row(NamedTuple):
    """A round of one variant, over its replicates. energy: of a training without evaluation [kWh], if metered."""

    round: int
    variant: str
    replicates: int
    kept: float
    total: int
    density: float
    layers: dict[str, float]
    val_accuracy: Spread
    test_accuracy: Spread
    early_stop_step: Spread
    seconds: float
    metric: str = "accuracy"
    energy: Spread | None = None
    scale: MetricScale = metric_scale("accuracy")

    @property
    def measured(self) -> str:
        """The metric reported as accuracy, in a word."""
        return self.scale.word


def summarize(records: Sequence[Record]) -> list[Row]:
    """A row per (round, variant), in the order in which they were run; means over the replicates."""
    groups: dict[tuple[int, str], list[Record]] = {}
    for item in records:
        groups.setdefault((item["round"], item["variant"]), []).append(item)
    order = list(dict.fromkeys(item["variant"] for item in records))
    keys = sorted(groups, key=lambda pair: (pair[0], order.index(pair[1])))
    rows = [_row(groups[pair]) for pair in keys]
    scales = in_one_unit(row.scale for row in rows)
    return [row._replace(scale=scale) for row, scale in zip(rows, scales, strict=True)]


def _row(group: list[Record]) -> Row:

    def of(name: str) -> list[float]:
        return [item[name] for item in group]

    return Row(
        round=group[0]["round"],
        variant=group[0]["variant"],
        replicates=len(group),
        kept=statistics.fmean(of("kept")),
        total=group[0]["total"],
        density=statistics.fmean(of("density")),
        layers={
            name: statistics.fmean(item["layers"][name]["density"] for item in group) for name in group[0]["layers"]
        },
        val_accuracy=spread(of("val_accuracy")),
        test_accuracy=spread(of("test_accuracy")),
        early_stop_step=spread(of("early_stop_step")),
        seconds=statistics.fmean(of("seconds")),
        metric=group[0].get("metric", "accuracy"),
        energy=spread(map(search_energy, group)) if all("energy" in item for item in group) else None,
        scale=scale_of_records(group),
    )


def search_energy(item: Record) -> float:
    """The energy of a metered training without evaluation [kWh]."""
    energy: dict[str, dict[str, float]] = item["energy"]
    return energy["preparation"]["kwh"] + energy["training"]["kwh"]


def scale_of_records(records: Sequence[Record]) -> MetricScale:
    """How values of the metric of some records of a run are compared and written."""
    return metric_scale(
        records[0].get("metric", "accuracy"), (value for item in records for value in _values_of_metric(item))
    )


def _values_of_metric(item: Record) -> Iterator[float]:
    """What a record of a training, or of a line between two networks, has of the metric."""
    yield from (item[name] for name in ("val_accuracy", "test_accuracy") if name in item)
    yield from (point[3] for point in item.get("curve", ()))
    yield from item.get("error", ())  # which is 1 - the metric, or a share as well
