"""Charts of masks that changed during a training: densities, and exchanged weights, over its steps."""

from __future__ import annotations

from collections.abc import Sequence

from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record
from lthfunc.reports.charts import GREY, NOT_NEGATIVE, Chart, Series, ordered

#: Layers that a legend lists at most; of more, the first and the last.
_LISTED = 8


def mask_update_charts(records: Sequence[Record]) -> list[Chart]:
    """The last training of a ticket, of the first seed, whose masks changed; no charts if there is none."""
    changed = [item for item in records if item["variant"] == TICKET and item.get("updates")]
    if not changed:
        return []
    item = max((each for each in changed if each["seed"] == changed[0]["seed"]), key=lambda each: each["round"])
    names, updates = list(item["layers"]), item["updates"]
    begun, end = item["curve"][0][0], item["final_step"]
    steps = [each["step"] for each in updates]
    # A density lasts from one update to the next, so each is drawn at both ends.
    across = [begun, *(step for step in steps for _ in range(2)), end]
    densities = [
        Series(
            name.removesuffix(".weight"), across, _lasting(_densities(item, name)), None,
            *ordered(place, len(names)), marker=None, listed=_is_listed(place, names),
        )
        for place, name in enumerate(names)
    ]  # fmt: skip
    whole = [
        100 * sum(kept) / item["total"] for kept in zip(*(_kept(item, name) for name in names), strict=True)
    ]  # fmt: skip
    densities.append(Series("whole network", across, _lasting(whole), None, GREY, "dot", marker=None))
    exchanged = [
        Series(
            name.removesuffix(".weight"), steps,
            [100 * (each["layers"][name][1] + each["layers"][name][2]) / item["layers"][name]["total"]
             for each in updates],
            None, *ordered(place, len(names)), marker=None, listed=_is_listed(place, names),
        )
        for place, name in enumerate(names)
    ]  # fmt: skip
    which = f"seed {item['seed']}" + (f", round {item['round']}" if item["round"] > 1 else "")
    return [
        Chart(
            "mask_densities", f"Density while training, {which}", "training step", "weights remaining (%)", densities,
            log_y=True, possible=NOT_NEGATIVE,
        ),
        Chart(
            "mask_updates", f"Weights that an update changes, {which}", "training step",
            "dropped or grown (% of the layer)", exchanged, zero=True, possible=NOT_NEGATIVE,
        ),
    ]  # fmt: skip


def _kept(item: Record, name: str) -> list[int]:
    """A layer's weights before the first update, and after each."""
    updates = [each["layers"][name] for each in item["updates"]]
    kept, dropped, grown = updates[0]
    return [kept + dropped - grown, *(each[0] for each in updates)]


def _densities(item: Record, name: str) -> list[float]:
    return [100 * kept / item["layers"][name]["total"] for kept in _kept(item, name)]


def _lasting(values: Sequence[float]) -> list[float | None]:
    """Each value twice, and None for zero, which has no place on a logarithmic axis."""
    return [value or None for value in values for _ in range(2)]


def _is_listed(place: int, names: Sequence[str]) -> bool:
    return len(names) <= _LISTED or place in (0, len(names) - 1)
