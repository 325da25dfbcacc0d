"""How the values of a metric are compared and written."""

from __future__ import annotations

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

    def gain(self, mine: float, theirs: float) -> float:
        """By how much one value is better than another."""
        return theirs - mine if self.lower_is_better else mine - theirs


def metric_scale(name: str) -> MetricScale:
    """The scale of a metric by its name; a user's is a share of which more is better."""
    found = METRICS.find(name)
    entry = MetricEntry("", "") if found is None else found[0]
    word = name.rpartition(":")[2]
    return MetricScale(word, *((100.0, "%") if entry.share else (1.0, "")), entry.lower_is_better)
