"""Pictures as plain data, which `matplotlib_figures.py` draws for files and `page/plotly_figures.py` for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

from lthfunc.reports.spacing import spread_out
from lthfunc.trees.ops import tree_map

Limits = tuple[float, float]
Reaches = tuple[Sequence[float], Sequence[float]]
Dash = Literal["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "none"]
#: Dashes, with a word for each, and markers by which lines on the same axes differ.
DASHES: dict[Dash, str] = {
    "solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "dash-dotted", "longdash": "long dashes",
    "longdashdot": "long dashes and dots",
}  # fmt: skip
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star", "pentagon", "hexagon")

#: What is possible for times, energies and steps.
NOT_NEGATIVE = (0.0, math.inf)


class Colour(NamedTuple):
    """A colour on a light ground and on a dark one."""

    light: str
    dark: str


#: Six colours that colour-blind readers can distinguish: Okabe & Ito's on a dark ground; on a light one three of them
#: and three darker ones, after which they are named. Each has a contrast of at least 3 to its ground.
BLUE, ORANGE, GREEN = Colour("#0072B2", "#56B4E9"), Colour("#D55E00", "#D55E00"), Colour("#009E73", "#009E73")
VIOLET, MAROON, BLACK = Colour("#7A1FE0", "#CC79A7"), Colour("#6B0211", "#F0E442"), Colour("#26262B", "#FFFFFF")
PALETTE = (BLUE, ORANGE, GREEN, VIOLET, MAROON, BLACK)
GREY = Colour("#6B7280", "#9AA4AE")
#: matplotlib's magma for a light ground and plasma for a dark one, without the end that would be hard to see.
_RAMPS = (
    ("#140e36", "#4a1079", "#832681", "#bc3978", "#ed5a5f"),
    ("#b12a90", "#d6556d", "#f2844b", "#feba2c", "#f0f921"),
)


def _reaches(values: Sequence[float | None], deviations: Sequence[float] | None, possible: Limits) -> Reaches | None:
    """How far error bars reach (below, above) each value: a deviation, but not beyond what is possible."""
    if not deviations or not any(deviations):
        return None
    low, high = possible
    known = [(low if value is None else value, each) for value, each in zip(values, deviations, strict=True)]
    return [max(0.0, min(d, y - low)) for y, d in known], [max(0.0, min(d, high - y)) for y, d in known]


class Series(NamedTuple):
    """A line. y: None where a value is missing. deviation: of each y. marked: index of a highlighted point.

    listed: whether the legend lists it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    deviation: Sequence[float] | None = None
    colour: Colour = BLUE
    dash: Dash = "solid"
    marker: str | None = "circle"
    marked: int | None = None
    listed: bool = True


class Chart(NamedTuple):
    """Lines over two axes.

    key: its name in files. falling: the horizontal axis falls, with ticks at the points. across: horizontal lines,
    (value, name). places: names of 0, 1, … on the horizontal axis. possible: the least and the greatest value that can
    occur. y_range: what is shown; None for all, zero: from 0 on. bands: deviations are areas, not bars. caption: a
    sentence below the picture.
    """

    key: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    falling: bool = False
    across: Sequence[tuple[float, str]] = ()
    places: Sequence[str] = ()
    possible: Limits = (-math.inf, math.inf)
    y_range: Limits | None = None
    zero: bool = False
    bands: bool = False
    legend_title: str = ""
    caption: str = ""

    def errors(self, series: Series) -> Reaches | None:
        """How far the error bars of a line reach; None where it has none."""
        return _reaches(series.y, series.deviation, self.possible)

    def x_ticks(self) -> list[float] | None:
        """Ticks of the horizontal axis where it is logarithmic; None for the renderer's own."""
        values = [x for series in self.series for x in series.x]
        return (_apart(values) if self.falling else log_ticks(values)) if self.log_x else None

    def x_range(self) -> Limits | None:
        """The horizontal range where the values of a logarithmic axis are alike: around its ticks, not of decades."""
        values = [x for series in self.series for x in series.x]
        alike = self.log_x and bool(values) and 0 < max(values) < 1.05 * min(values)
        return (min(values) / 1.2, max(values) * 1.2) if alike else None

    def y_ticks(self) -> list[float] | None:
        """Ticks of the vertical axis where it is logarithmic; None for the renderer's own."""
        return log_ticks([y for series in self.series for y in series.y if y]) if self.log_y else None

    def shown(self) -> Limits | None:
        """The vertical range: what is drawn, with a margin; None for a logarithmic axis."""
        if self.log_y or self.y_range is not None:
            return self.y_range
        ends = [value for value, _ in self.across] + [0.0] * self.zero
        for series in self.series:
            below, above = self.errors(series) or ([0.0] * len(series.y),) * 2
            for y, down, up in zip(series.y, below, above, strict=True):
                ends += [] if y is None else [y - down, y + up]
        ends = [end for end in ends if math.isfinite(end)]
        if not ends:
            return None
        low, high = min(ends), max(ends)
        margin = 0.05 * (high - low or abs(high) or 1.0)
        return (low if self.zero and low == 0 else low - margin), high + margin


class Bars(NamedTuple):
    """Horizontal bars, a group for each label. groups: (name, values, deviations) each, stacked or side by side.

    dots: dots in place of bars, on a logarithmic axis. across: vertical lines, (value, name).
    """

    key: str
    title: str
    x: str
    labels: Sequence[str]
    groups: Sequence[tuple[str, Sequence[float], Sequence[float] | None]]
    stacked: bool = False
    dots: bool = False
    across: Sequence[tuple[float, str]] = ()
    caption: str = ""

    def x_ticks(self) -> list[float] | None:
        """Ticks of the horizontal axis where it is logarithmic; None for the renderer's own."""
        values = [*(value for _, values, _ in self.groups for value in values), *(value for value, _ in self.across)]
        return log_ticks(values) if self.dots else None

    def errors(self, values: Sequence[float], deviations: Sequence[float] | None) -> Reaches | None:
        """How far the error bars of a group reach; None where it has none."""
        return _reaches(values, deviations, NOT_NEGATIVE)


class Heat(NamedTuple):
    """A heat map. values: rows from the top; None where a value is missing. unit: title of the colour bar."""

    key: str
    title: str
    x: str
    y: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]
    unit: str = ""
    digits: int = 2
    caption: str = ""


Picture = Chart | Bars | Heat
P = TypeVar("P", bound=Picture)


def with_texts(picture: P, change: Callable[[str], str]) -> P:
    """A picture with every text in it changed."""
    return tree_map(lambda part: change(part) if isinstance(part, str) else part, picture)


def ordered(number: int, count: int) -> tuple[Colour, Dash]:
    """Colour and dash of one of several ordered lines: neighbours differ in both."""
    position = number / max(1, count - 1)
    return Colour(*(_between(ramp, position) for ramp in _RAMPS)), "dash" if number % 2 else "solid"


def _between(ramp: Sequence[str], position: float) -> str:
    place = position * (len(ramp) - 1)
    low = min(int(place), len(ramp) - 2)
    ends = (bytes.fromhex(colour[1:]) for colour in ramp[low : low + 2])
    return "#" + bytes(round((1 - place + low) * a + (place - low) * b) for a, b in zip(*ends, strict=True)).hex()


def tick_text(value: float, most: float = 0.0) -> str:
    """A tick that a reader need not count the digits of. most: on its axis."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if max(most, abs(value)) >= max(size, 1e5):
            return f"{value / size:.6g}{unit}" if value else "0"
    return f"{value:,.6g}"


def linear_tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick on a linear axis, with as many decimals as the longest of the axis's ticks."""
    texts = [tick_text(each, max(map(abs, ticks))) for each in (value, *ticks)]
    if any(not text[-1].isdigit() or "e" in text for text in texts):  # of thousands or millions, or tiny
        return texts[0]
    return f"{value:,.{max(len(text.partition('.')[2]) for text in texts)}f}"


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Texts of ticks on a logarithmic axis: with equally many decimals, or, over many decades, those of a decade."""
    texts = [tick_text(float(f"{value:.3g}")) for value in ticks]
    if not all(0 < value < 1e5 for value in ticks) or any("e" in text for text in texts):
        return texts
    needed = [len(text.partition(".")[2]) for text in texts]
    decades = [math.floor(math.log10(value)) for value in ticks]
    for places in range(min(3 - max(decades, default=0), max(needed, default=0)) + 1):
        alike = [f"{value:,.{places}f}" for value in ticks]
        off = max(abs(round(value, places) / value - 1) for value in ticks)
        if off <= (0.01 if places else 0.0005) and len(set(alike)) == len(alike):
            return alike
    return [
        f"{value:,.{max(each for each, other in zip(needed, decades, strict=True) if other == decade)}f}"
        for value, decade in zip(ticks, decades, strict=True)
    ]


def log_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers for a logarithmic axis: the fewest per decade that give three in the range of the values."""
    values = [value for value in values if value > 0 and math.isfinite(value)]
    if not values:
        return []
    low, high = min(values) / 1.2, max(values) * 1.2
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in (
        (10,), (10, 20, 50), (10, 20, 30, 50), range(10, 100, 10), range(10, 100, 5), range(10, 100, 2), range(10, 100),
    ):  # fmt: skip
        # By way of text, since 5 * 10**-3 is not the 0.005 that a reader expects.
        found = [value for step in steps for each in decades if low <= (value := float(f"{step}e{each - 1}")) <= high]
        if len(found) >= 3:
            break
    return spread_out(sorted(found), 6)


def _apart(values: Sequence[float], most: int = 7) -> list[float]:
    """Ticks of a logarithmic axis at some of the values, falling: the first, the last, and others not too near."""
    positive = sorted({value for value in values if value > 0}, reverse=True)
    if len(positive) < 2:
        return positive
    first, *others, last = positive
    gap, kept = (first / last) ** (1 / most), [first]
    for value in others:
        if kept[-1] / value >= gap * 0.999 and value / last >= gap * 0.999:
            kept.append(value)
    return [*kept, last]
