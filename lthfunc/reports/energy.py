"""Energy of inference: values for files, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lthfunc.energy.amounts import Amount
from lthfunc.experiments.records import spread
from lthfunc.reports.tables import plain_table


def measured_values(amounts: Mapping[str, Sequence[Amount]]) -> dict[str, Any]:
    """Costs of one example, by program: ``{"kwh": {"mean", "std", "values"}, "kg": …, "seconds": …, "cpu": …, …}``."""
    return {
        name: {
            field: {**spread(values)._asdict(), "values": values}
            for field, values in ((field, [getattr(each, field) for each in laps]) for field in Amount._fields)
        }
        for name, laps in amounts.items()
    }


def inference_table(item: Mapping[str, Any]) -> Table:
    """Per million examples, with the standard deviation of the repeats. item: a measurement of kind "energy"."""
    title = (
        f"a million examples, from {item['samples']:,} in batches of {item['batch_size']}, mean ± standard "
        f"deviation of {item['repeats']} repeats"
    )
    table = plain_table("format", "seconds", "Wh", "CPU", "GPU", "RAM", "g CO₂eq", "of dense %", title=title)
    dense = item["formats"]["dense"]["kwh"]["mean"]
    for name, cost in item["formats"].items():
        shown = f"{name} ({item['form']})" if name == "specialised" else name
        table.add_row(
            shown, _per_million(cost["seconds"], 1.0), _per_million(cost["kwh"], 1e3),
            *(f"{1e9 * cost[part]['mean']:.3g}" for part in ("cpu", "gpu", "ram")), _per_million(cost["kg"], 1e3),
            f"{100 * cost['kwh']['mean'] / dense:.1f}" if dense else "",
        )  # fmt: skip
    return table


def _per_million(value: Mapping[str, float], factor: float) -> str:
    return f"{1e6 * factor * value['mean']:.3g} ± {1e6 * factor * value['std']:.2g}"
