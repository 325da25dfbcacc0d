"""Search for settings: a grid, or Optuna's suggestions within ranges."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lthfunc.errors import DamagedError, DivergedError, UnavailableError, UserError, invalid, unknown
from lthfunc.experiments.config import FORMER_NAMES, SETTINGS, Config, replaced_by, to_mapping, warn_of_former_names
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping, setting_value

#: A trial's settings, in addition to the shared ones.
Values = dict[str, Any]
#: Networks whose validation accuracy is a trial's worth: the last ticket, the winning one, or the dense network.
OBJECTIVES = ("last", "winning", "dense")


class Range(NamedTuple):
    """A range of numbers, both ends included. log: sampled on a log scale, if it spans a decade."""

    low: float
    high: float
    whole: bool

    @property
    def log(self) -> bool:
        """Whether it is sampled on a log scale."""
        return self.low > 0 and self.high >= 10 * self.low


Space = dict[str, Range | list[Any]]


def space_of(option: str, texts: Sequence[str], *, ranges: bool) -> Space:
    """Parse ``lr=0.1,0.01`` and, with ranges, ``lr=1e-4..1e-1``. Raises UserError."""
    example = "lr=1e-4..1e-1 or optimizer=sgd,adam" if ranges else "lr=0.01,0.001"
    found: Space = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        name = name.replace("-", "_")
        warn_of_former_names([name])
        name = FORMER_NAMES.get(name, name)
        if not equals or not listed:
            raise invalid(option, text, f"SETTING=VALUES, e.g. {example}")
        if name not in SETTINGS:
            raise unknown(option, name, SETTINGS)
        if name in found:
            raise invalid(option, text, "each setting once")
        low, dots, high = listed.partition("..")
        if dots and ranges:
            found[name] = _range(option, text, name, low, high)
        else:
            found[name] = [setting_value(name, each) for each in listed.split(",")]
            if any(each in found[name][:place] for place, each in enumerate(found[name])):
                raise invalid(option, text, "each value once")
    return found


def trials_of(grid: Mapping[str, Sequence[Any]]) -> list[Values]:
    """All combinations; the last setting varies fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def config_of(config: Config, values: Values) -> Config:
    """A trial's settings, checked, with defaults. config: shared settings, without defaults. Raises UserError."""
    plain = {name: value for name, value in to_mapping(config).items() if name not in replaced_by(values)}
    return resolved(from_mapping({**plain, **values}))


def corners(space: Space) -> Iterator[Values]:
    """The ends of all ranges and every listed value, for checks before the first trial."""
    for place in range(max([2, *(len(values) for values in space.values() if isinstance(values, list))])):
        yield {
            name: values[place % len(values)] if isinstance(values, list) else _number(values, values[place % 2])
            for name, values in space.items()
        }


def is_of_trial(error: UserError, space: Space, others: int, ready: Callable[[], object] | None = None) -> bool:
    """Whether an error that a trial ends with may be its own, so that another trial may do better.

    It is, where it names a setting that differs and there are `others`. Else it is that of all trials, unless an
    earlier one has succeeded and could be run again: `ready` prepares that, and raises UserError where it cannot.
    """
    if isinstance(error, DivergedError):
        return True
    if isinstance(error, (DamagedError, UnavailableError)):
        return False
    if any(SETTINGS[name].option in re.findall(r"--[\w-]+", str(error)) for name in space):
        return others > 0
    if ready is None:
        return False
    try:
        ready()
    except UserError:
        return False
    return True


def suggested(space: Space, seed: int, known: Sequence[tuple[Values, float | None]]) -> Values:
    """The next trial by Optuna's tree-structured Parzen estimator, which depends only on the seed and earlier trials.

    known: these, and their worth; None for failed ones. Raises UserError without optuna.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("--search: needs optuna (pip install 'lthfunc[sweep]')") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds, states = optuna.distributions, optuna.trial.TrialState

    def distribution(values: Range | list[Any]) -> Any:
        if isinstance(values, list):
            return kinds.CategoricalDistribution(values)
        if values.whole:
            return kinds.IntDistribution(int(values.low), int(values.high), log=values.log)
        return kinds.FloatDistribution(values.low, values.high, log=values.log)

    spaces = {name: distribution(values) for name, values in space.items()}
    # Made again for each trial, so that a resumed sweep makes the same suggestions.
    sampler = optuna.samplers.TPESampler(seed=(seed + 1_000_003 * len(known)) % 2**32)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, worth in known:
        state = states.FAIL if worth is None else states.COMPLETE
        study.add_trial(optuna.trial.create_trial(params=values, distributions=spaces, value=worth, state=state))
    found: Values = study.ask(spaces).params
    return found


def _range(option: str, text: str, name: str, low: str, high: str) -> Range:
    ends = [setting_value(name, each) for each in (low, high)]
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in ends):
        raise invalid(option, text, f"values, since {name} is not a number, e.g. {name}=A,B")
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise invalid(option, text, "a range whose second number is larger")
    return Range(float(ends[0]), float(ends[1]), isinstance(ends[0], int))


def _number(values: Range, end: float | bool) -> float:
    return int(end) if values.whole else float(end)
