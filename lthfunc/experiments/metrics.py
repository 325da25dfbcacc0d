"""How the values of a metric are compared and written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lthfunc.catalog.training import METRICS, MetricEntry


class MetricScale(NamedTuple):
    """A metric in tables, sentences and charts.

    word: its name in short; for a user's, that of the function. factor: what values are multiplied by to be shown, and
    unit: "%", or "" for none. lower_is_better: whether a smaller value is better.
    """

    word: str
    factor: float = 100.0
    unit: str = "%"
    lower_is_better: bool = False

    @property
    def head(self) -> str:
        """Its name and unit, for heads of tables."""
        return f"{self.word} {self.unit}".rstrip()

    @property
    def axis(self) -> str:
        """Its name and unit, for axes."""
        return f"{self.word} ({self.unit})" if self.unit else self.word

    def number(self, value: float, signed: bool = False) -> str:
        """A value or difference without its unit."""
        return f"{self.factor * value:{'+' if signed else ''}.2f}"

    def text(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def difference(self, value: float, signed: bool = False) -> str:
        """A difference of two values, in points where they are per cents."""
        return f"{self.number(value, signed)}{' points' if self.unit else ''}"

    def error(self, value: float) -> float:
        """A value as an error, of which less is better: itself where that holds, or what a share leaves.

        A count, of which more is better, has no error and stays what it is.
        """
        return value if self.lower_is_better or self.counts else 1 - value

    @property
    def counts(self) -> bool:
        """Whether it is a number of which more is better, but no share."""
        return not (self.unit or self.lower_is_better)

    @property
    def in_own_unit(self) -> MetricScale:
        """The same metric, not in per cent."""
        return self._replace(factor=1.0, unit="")

    def gain(self, mine: float, theirs: float) -> float:
        """By how much one value is better than another."""
        return theirs - mine if self.lower_is_better else mine - theirs


def metric_scale(name: str, values: Iterable[float] = ()) -> MetricScale:
    """The scale of a metric by its name; a user's is a number of which more is better, and a share if all `values` are.

    values: that are to be shown.
    """
    found = METRICS.find(name)
    entry = MetricEntry("", "") if found is None else found[0]
    word = name.rpartition(":")[2]
    is_share = entry.share and (found is not None or not any(value < 0 or value > 1 for value in values))
    return MetricScale(word, *((100.0, "%") if is_share else (1.0, "")), entry.lower_is_better)


def in_one_unit(scales: Iterable[MetricScale]) -> list[MetricScale]:
    """Scales of values that stand side by side: one metric is in per cent everywhere or nowhere."""
    found = list(scales)
    plain = {each.word for each in found if not each.unit}
    return [each.in_own_unit if each.word in plain else each for each in found]
