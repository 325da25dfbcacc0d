"""A meter of this process's energy: codecarbon, offline, read between the phases of a training."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, closing
from itertools import count
from typing import Any, NamedTuple, Protocol

from lthfunc.energy.amounts import Amount, Metered, as_values, nothing_yet
from lthfunc.errors import UserError, invalid

#: The country whose electricity mix is assumed where none is named.
ASSUMED = "USA"


class Source(NamedTuple):
    """Where numbers come from. how: in words. country: ISO 3166-1 alpha-3. assumed: whether it is the default."""

    how: str
    country: str
    assumed: bool

    @property
    def words(self) -> str:
        """One line."""
        assumed = " (assumed; --country names another)" if self.assumed else ""
        return f"{self.how}; CO₂eq for the electricity mix of {self.country}{assumed}"


class Meter(Protocol):
    """source: where its numbers come from. lap: what was drawn since the last lap or the start."""

    source: Source

    def lap(self) -> Amount:
        """Read the meter."""


def check_meter(country: str | None) -> None:
    """Raise UserError where codecarbon is missing or doesn't know the country."""
    try:
        from codecarbon.input import DataSource
    except ImportError as error:
        raise UserError("--energy: needs codecarbon (pip install 'lthfunc[energy]')") from error
    if country is not None and country not in DataSource().get_global_energy_mix_data():
        raise invalid("--country", country, "the three letters of ISO 3166-1 for a country, e.g. FRA, DEU, USA")


def metering(device: str, country: str | None) -> AbstractContextManager[Meter]:
    """A running meter; call `check_meter` first. device: its GPU, if any, is metered as well."""
    return closing(_CodeCarbon(device, country))


class _CodeCarbon:
    """Energy of this process as far as codecarbon can tell; a machine's counters (RAPL) know no processes."""

    def __init__(self, device: str, country: str | None) -> None:
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        from codecarbon import OfflineEmissionsTracker

        from lthfunc.energy.gpus import card_of  # imports torch

        self._gpu = card_of(device) if device.startswith("cuda") else None
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=country or ASSUMED,
            output_methods=[],
            log_level="critical",
            tracking_mode="process",
            measure_power_secs=15,
            allow_multiple_runs=True,
            **({} if self._gpu is None else {"gpu_ids": [self._gpu.number]}),
        )
        self._names = count()
        self._begin()
        self.source = Source(self._how(), country or ASSUMED, country is None)

    def lap(self) -> Amount:
        data = self._tracker.stop_task()
        self._begin()
        gpu = 0.0 if self._gpu is None else float(data.gpu_energy)
        parts = (float(data.cpu_energy), gpu, float(data.ram_energy))
        kwh, whole = sum(parts), float(data.energy_consumed)
        # A GPU that idles beside a training on the CPU counts neither as energy nor as emissions.
        return Amount(kwh, float(data.emissions) * kwh / whole if whole else 0.0, float(data.duration), *parts)

    def close(self) -> None:
        self._tracker.stop_task()
        self._tracker.stop()

    def _begin(self) -> None:
        self._tracker.start_task(f"lap {next(self._names)}")

    def _how(self) -> str:
        hardware: Any = getattr(self._tracker, "_conf", {}).get("hardware", [])
        measured = any(word in str(each) for each in hardware for word in ("Rapl", "Emi", "Power", "Apple"))
        cpu = "CPU metered by its own counters" if measured else "CPU estimated from its TDP and load"
        gpu = "" if self._gpu is None else ", GPU metered by NVML"
        whole = " (the whole GPU, not this part alone)" if self._gpu is not None and self._gpu.shared else ""
        return f"{cpu}{gpu}{whole}, memory estimated"


class Phases:
    """Reads a meter when a training goes over to something else.

    per_epoch: steps of an epoch.
    """

    def __init__(self, meter: Meter, per_epoch: int) -> None:
        self._meter, self._per_epoch = meter, per_epoch
        self._metered = nothing_yet()
        self._now, self._epoch = "preparation", 0
        meter.lap()  # discards what was drawn before this training

    def next(self, phase: str, step: int) -> None:
        """The training enters, or continues, a phase at a step."""
        epoch = step // self._per_epoch
        if phase == self._now and (phase != "training" or epoch == self._epoch):
            return
        self._read()
        self._now, self._epoch = phase, epoch

    def resume(self, earlier: Metered) -> None:
        """Count from what the training had drawn before its checkpoint."""
        self._metered = earlier

    def epoch_end(self, step: int) -> int:
        """The step at which the epoch of a step ends."""
        return step - step % self._per_epoch + self._per_epoch

    def metered(self) -> Metered:
        """What was drawn so far."""
        self._read()
        return self._metered

    def as_values(self, trainings: int) -> dict[str, Any]:
        """Plain values for files: the share of each of the trainings that run as one program, and the source."""
        source = self._meter.source
        about = {"source": source.how, "country": source.country, "assumed": source.assumed}
        return {**about, **as_values(self.metered().over(trainings))}

    def _read(self) -> None:
        self._metered = self._metered.with_lap(self._meter.lap(), self._now, self._epoch)
