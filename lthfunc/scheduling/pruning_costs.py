"""What prunings cost that train networks of their own, as rebasin's does: part of the training that follows."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from lthfunc.energy.amounts import Amount
from lthfunc.energy.meter import Meter
from lthfunc.experiments.iterative import TICKET, Done, Plan, Round, Task, rounds
from lthfunc.experiments.task_schedules import sent
from lthfunc.scheduling.queue import TrainingCost

Schedule = Generator[list[Task], list[Round], None]
#: (seconds, energy if metered) of the pruning before a training, by its key.
PruningCosts = dict[tuple[int, int, str], tuple[float, Amount | None]]


def rounds_noting_costs(
    plan: Plan, seed: int, device: str, done: Done | None, meter: Meter | None, costs: PruningCosts
) -> Schedule:
    """`rounds`, which adds to `costs` what prunings take, where they train networks."""
    schedule = rounds(plan, seed, device, done)
    return _noting(schedule, meter, costs) if plan.pruning_steps else schedule


def _noting(schedule: Schedule, meter: Meter | None, costs: PruningCosts) -> Schedule:
    results: Any = None
    while True:
        if meter is not None:
            meter.lap()  # what was drawn before belongs to the training that has ended
        begun = time.perf_counter()
        tasks = sent(schedule, results)
        if tasks is None:
            return
        cost = time.perf_counter() - begun, None if meter is None else meter.lap()
        costs |= {task.key: cost for task in tasks if task.number and task.variant == TICKET}
        results = yield tasks


def with_pruning(cost: TrainingCost, pruning: tuple[float, Amount | None] | None) -> TrainingCost:
    """A training's cost with that of the pruning before it, which counts as preparation."""
    if pruning is None:
        return cost
    (seconds, amount), energy = pruning, cost.energy
    if energy is not None and amount is not None:
        energy = {**energy, "preparation": Amount(**energy["preparation"]).plus(amount)._asdict()}
    return TrainingCost(cost.seconds + seconds, energy)
