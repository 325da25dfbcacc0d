"""Pictures as plain data, which `matplotlib_figures.py` draws for files and `page/plotly_figures.py` for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

from lthfunc.trees.ops import tree_map

Dash = Literal["solid", "dash", "dot", "dashdot", "none"]

#: Okabe & Ito's palette, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, PINK, AMBER, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY)
GREY = "#888888"
#: Viridis without its ends, one of which would be hard to see on a light or a dark page.
_RAMP = ("#443983", "#31688e", "#21918c", "#35b779", "#73c64c")


class Series(NamedTuple):
    """A line. y: None where a value is missing. deviation: of each y. marked: index of a highlighted point.

    listed: whether the legend lists it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    deviation: Sequence[float] | None = None
    colour: str = BLUE
    dash: Dash = "solid"
    marker: str | None = "circle"
    marked: int | None = None
    listed: bool = True


class Chart(NamedTuple):
    """Lines over two axes.

    key: its name in files. ticks: of the horizontal axis; None for automatic ones. across: horizontal lines,
    (value, name). notes: (x, y, text). caption: a sentence below the picture on the page.
    """

    key: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    falling: bool = False
    ticks: Sequence[float] | None = None
    across: Sequence[tuple[float, str]] = ()
    notes: Sequence[tuple[float, float, str]] = ()
    y_range: tuple[float, float] | None = None
    zero: bool = False
    legend_title: str = ""
    caption: str = ""


class Bars(NamedTuple):
    """Horizontal bars, a group for each label. groups: (name, values, deviations) each, stacked or side by side."""

    key: str
    title: str
    x: str
    labels: Sequence[str]
    groups: Sequence[tuple[str, Sequence[float], Sequence[float] | None]]
    stacked: bool = False
    log_x: bool = False
    caption: str = ""


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


def ramp(position: float) -> str:
    """A colour for one of several ordered lines. position: in [0, 1]."""
    place = min(max(position, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    share = place - low
    ends = (bytes.fromhex(colour[1:]) for colour in _RAMP[low : low + 2])
    return "#" + bytes(round((1 - share) * a + share * b) for a, b in zip(*ends, strict=True)).hex()
