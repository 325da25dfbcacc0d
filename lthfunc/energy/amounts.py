"""Amounts of energy, and those of a training by phase and epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lthfunc.trees.ops import tree_map

#: Phases of a training: compiling and loading, taking steps, evaluating.
PHASES = ("preparation", "training", "evaluation")


class Amount(NamedTuple):
    """Energy over some time.

    kwh: in total [kWh]; cpu, gpu, ram: its parts [kWh]. kg: emissions [kg CO₂eq]. seconds: duration.
    """

    kwh: float = 0.0
    kg: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0
    gpu: float = 0.0
    ram: float = 0.0

    def plus(self, other: Amount) -> Amount:
        """The sum of both."""
        return Amount(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def over(self, count: float) -> Amount:
        """An equal share of it."""
        return Amount(*(each / count for each in self))


class Metered(NamedTuple):
    """Energy of a training. phases: by name. epochs: of the steps of each epoch, numbered from 0."""

    phases: dict[str, Amount]
    epochs: dict[int, Amount]

    def with_lap(self, amount: Amount, phase: str, epoch: int) -> Metered:
        """Add an amount to its phase and epoch."""
        phases = {**self.phases, phase: self.phases[phase].plus(amount)}
        epochs = self.epochs
        if phase == "training":
            epochs = {**epochs, epoch: epochs.get(epoch, Amount()).plus(amount)}
        return Metered(phases, epochs)

    def over(self, count: float) -> Metered:
        """An equal share of it, for trainings that run as one program."""
        return tree_map(lambda each: each / count, self)


def nothing_yet() -> Metered:
    """Nothing metered yet."""
    return Metered(dict.fromkeys(PHASES, Amount()), {})


def as_values(metered: Metered) -> dict[str, Any]:
    """``{phase: {"kwh": …, …}, …, "epochs": [[epoch, kwh, kg, seconds, cpu, gpu, ram], …]}``."""
    return {
        **{name: each._asdict() for name, each in metered.phases.items()},
        "epochs": [[epoch, *each] for epoch, each in metered.epochs.items()],
    }


def from_values(values: Mapping[str, Any]) -> Metered:
    """What `as_values` wrote. Raises KeyError or TypeError for something else."""
    phases = {name: Amount(**values[name]) for name in PHASES}
    return Metered(phases, {int(epoch): Amount(*numbers) for epoch, *numbers in values["epochs"]})
