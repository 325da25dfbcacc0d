"""The settings of an experiment, joined from their declarations, and their plain values."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

from lthfunc.catalog.methods import METHODS
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.settings.data import Data
from lthfunc.experiments.settings.methods import Methods
from lthfunc.experiments.settings.network import Network
from lthfunc.experiments.settings.pruning import Pruning
from lthfunc.experiments.settings.running import Running
from lthfunc.experiments.settings.setting import Setting, settings_in
from lthfunc.experiments.settings.teaching import Teaching
from lthfunc.experiments.settings.training import Training

T = TypeVar("T")


@dataclass(frozen=True)
class Config(Running, Teaching, Training, Methods, Pruning, Data, Network):  # the fields of the last come first
    """Settings; None means "the default of this architecture or data set" until `resolve.resolved` fills it in.

    The types are the schema: `schema.from_mapping` checks values against them.
    """


#: All settings by name, in the order of files.
SETTINGS: dict[str, Setting] = settings_in(Config)
#: Their options, by which a command's messages name what messages of functions call by an argument's name.
OPTIONS = {name: setting.option for name, setting in SETTINGS.items()}
#: Present names by former ones.
FORMER_NAMES = {former: name for name, setting in SETTINGS.items() for former in setting.former_names}
#: Settings that may change within a run: they change no result, or only steps that gave none.
FREE = frozenset(name for name, setting in SETTINGS.items() if not setting.changes_results)


class Decision(NamedTuple):
    """The value of a setting that was left open, and why. notable: whether to report it without being asked."""

    setting: str
    value: Any
    reason: str
    notable: bool = False


def applied(config: Config, decisions: Iterable[Decision]) -> Config:
    """The settings with the decisions applied."""
    return replace(config, **{each.setting: each.value for each in decisions})


def filled(value: T | None) -> T:
    """The value of a setting that `resolve.resolved` fills in where it was left open."""
    assert value is not None
    return value


def first_round(config: Config) -> int:
    """The number of a run's first training: 0, the dense network's, or 1 if only pruned networks are trained."""
    return 1 if config.dense is False else 0  # runs of earlier versions have no such setting


def masks_nest(config: Config) -> bool:
    """Whether every round of a run keeps only weights that the round before kept, as far as its method tells."""
    return config.method in METHODS and not METHODS[config.method].at_init


def trainings_of(config: Config) -> int:
    """How many trainings a run has when it is finished."""
    return config.replicates * (1 - first_round(config) + filled(config.rounds) * (1 + len(config.control)))


def trainings_at_once(config: Config) -> int:
    """How many trainings don't wait for each other: every seed's ticket and its controls."""
    return config.replicates * (1 + (len(config.control) if config.rounds != 0 else 0))


class Interval(NamedTuple):
    """The interval between checkpoints: steps or seconds; neither means no checkpoints."""

    steps: int | None = None
    seconds: float | None = None

    def after(self, step: int) -> int | None:
        """The next step at which a checkpoint is due by the number of steps."""
        return None if self.steps is None else step - step % self.steps + self.steps


def parse_interval(text: str) -> Interval:
    """Parse ``500`` (steps), ``30s`` (seconds) or ``never``. Raises UserError."""
    if text == "never":
        return Interval()
    if re.fullmatch(r"[1-9]\d{0,8}", text):
        return Interval(steps=int(text))
    if found := re.fullmatch(r"(\d{1,7}(?:\.\d{1,3})?)s", text):
        return Interval(seconds=float(found[1]))
    raise invalid("--checkpoint-every", text, "a number of steps (500), of seconds (30s) or never")


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values under the settings' present names, and by present values; unknown ones stay.

    Raises UserError if both names occur.
    """
    for former, name in FORMER_NAMES.items():
        if former in values and name in values:
            raise UserError(f"{former} and {name} are the same setting; keep {name}, its present name")
    return {(present := FORMER_NAMES.get(name, name)): _present_value(present, value) for name, value in values.items()}


def _present_value(name: str, value: Any) -> Any:
    former = SETTINGS[name].former_values if name in SETTINGS else {}
    return former.get(value, value) if isinstance(value, bool) else value


class RenamedSettingWarning(FutureWarning):
    """A setting was given by a former name, which works for one more version."""


def warn_of_former_names(names: Iterable[str]) -> None:
    """Warn of each former name among these, with the present one."""
    for former in names:
        if former in FORMER_NAMES:
            name = FORMER_NAMES[former]
            text = f"--{former} ({former} in files) is now called {SETTINGS[name].option} ({name} in files)"
            warnings.warn(text, RenamedSettingWarning, stacklevel=3)


def check_alternatives(given: Collection[str]) -> None:
    """Raise UserError if two settings are given that replace each other."""
    for name, setting in SETTINGS.items():
        for other in setting.instead_of:
            if {name, other} <= {*given} and name in SETTINGS[other].instead_of:
                raise UserError(f"{setting.option} and {SETTINGS[other].option}: give one of them, not both")


def replaced_by(given: Iterable[str]) -> set[str]:
    """The settings that these replace, as --steps replaces --epochs."""
    return {other for name in given if name in SETTINGS for other in SETTINGS[name].instead_of}


def to_mapping(config: Config) -> dict[str, Any]:
    """The settings that have values, as plain values."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {name: value for name, value in plain.items() if value is not None}
