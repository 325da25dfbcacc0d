"""Amounts of energy, and those of a training by what it was doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: What a training does: compile and load, take steps, measure splits.
PHASES = ("preparation", "training", "evaluation")


class Amount(NamedTuple):
    """Energy over some time.

    kwh: all of it [kWh]; cpu, gpu, ram: its parts [kWh]. kg: emissions [kg CO₂eq]. seconds: how long.
    """

    kwh: float = 0.0
    kg: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0
    gpu: float = 0.0
    ram: float = 0.0

    def plus(self, other: Amount) -> Amount:
        """Both together."""
        return Amount(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def over(self, count: float) -> Amount:
        """A share of it."""
        return Amount(*(each / count for each in self))


class Metered(NamedTuple):
    """Of a training. phases: by name; epochs: of the steps of each epoch, by its number, from 0."""

    phases: dict[str, Amount]
    epochs: dict[int, Amount]

    def with_lap(self, amount: Amount, phase: str, epoch: int) -> Metered:
        """An amount added to what it was spent on."""
        phases = {**self.phases, phase: self.phases[phase].plus(amount)}
        epochs = self.epochs
        if phase == "training":
            epochs = {**epochs, epoch: epochs.get(epoch, Amount()).plus(amount)}
        return Metered(phases, epochs)

    def over(self, count: float) -> Metered:
        """A share of it, for trainings that ran as one program."""
        return Metered(
            {name: each.over(count) for name, each in self.phases.items()},
            {epoch: each.over(count) for epoch, each in self.epochs.items()},
        )


def nothing_yet() -> Metered:
    """Before anything was metered."""
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
