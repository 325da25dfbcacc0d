"""What the benchmark of execution measures: a run's trained tickets, or random masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.iterative import TICKET
from lthfunc.reports.spacing import spread_out
from lthfunc.runs.folder import read_run
from lthfunc.runs.tickets import tickets_of_run
from lthfunc.trees.types import Ticket

from .networks import Case

#: Densities of masks of whole units, and of blocks.
_STRUCTURED = (0.5, 0.1)


class Masked(NamedTuple):
    """A ticket and the kind of its mask: "" for single weights anywhere."""

    density: float
    kind: str
    ticket: Ticket


def of_run(folder: Path, trust: bool) -> list[tuple[Case, list[Masked]]]:
    """The run's trained tickets of at most half the weights, at most six of them."""
    _, _, records = read_run(folder)
    mine = [item for item in records if item["variant"] == TICKET and item["seed"] == records[0]["seed"]]
    rounds = [item["round"] for item in mine if item["density"] <= 0.55]
    if not rounds:
        raise UserError(f"{folder}: has no ticket of at most half the weights")
    found = tickets_of_run(folder, spread_out(rounds, 6), None, None, trusted=trust)
    case = Case(f"{found[0].model.name}, trained", lambda: found[0].model, found[0].data.shape, 64)
    return [(case, [Masked(lf.density(each.ticket.masks), "", each.ticket) for each in found])]


def random_masks(case: Case, densities: Sequence[float]) -> list[Masked]:
    """Random masks: single weights, whole units, and for single linear layers blocks and 2 of 4."""
    kinds: dict[str, Any] = {"": lf.unstructured}
    if len(case.model.prunable) > 1:
        kinds["units"] = lf.units(exempt=case.model.prunable[-1:])  # classes can't be removed
    elif case.name.startswith("linear"):
        kinds["blocks"] = lf.blocks(64, 64)
    found = [
        Masked(density, kind, _pruned(case, density, select))
        for kind, select in kinds.items()
        for density in (_STRUCTURED if kind else densities)
    ]
    if "blocks" in kinds:
        found.append(Masked(0.5, "2:4", _pruned(case, 0.5, lf.n_of_m(2, 4))))
    return found


def _pruned(case: Case, density: float, select: Any) -> Ticket:
    allocate = lf.globally if select is lf.unstructured else lf.uniform()
    pruning = lf.prune(density=density, score=lf.random_scores(0), select=select, allocate=allocate)
    return lf.ticket(pruning(lf.init(case.model)))
