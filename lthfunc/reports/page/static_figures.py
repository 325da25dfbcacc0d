"""Figures for files in place of the page's explorer: some layers, some rounds."""

from __future__ import annotations

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from lthfunc.reports.charts import BLUE, Chart, Series, ordered
from lthfunc.reports.matplotlib_figures import images, panels
from lthfunc.reports.page.explorer import matrix_of
from lthfunc.reports.page.mask_history import Patterns
from lthfunc.reports.spacing import spread_out

_LAYERS, _ROUNDS, _PIXEL_ROUNDS = 6, 4, 6


def mask_figure(patterns: Patterns) -> Figure:
    """Masks of some layers in some pruned rounds, in the page's colours."""
    places = _pruned_rounds(patterns, _ROUNDS)
    rows = []
    for name in spread_out(list(patterns.pruned), _LAYERS):
        matrix = matrix_of(patterns.pruned[name])
        matrix = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix  # rather wide than tall
        rows.append((_short(name), [(matrix > place).float().numpy() for place in places]))
    colours = LinearSegmentedColormap.from_list("masks", ["#eef1f4", BLUE.light])
    heads = [_round(patterns, place) for place in places]
    return images(rows, heads, f"Masks, seed {patterns.seed} (blue: surviving)", size=2.4, cmap=colours)


def weight_figure(patterns: Patterns) -> Figure:
    """Histograms of surviving trained weights, a panel per layer and a line per round."""
    places = spread_out(list(range(len(patterns.rounds))), _ROUNDS)
    charts = []
    for name in spread_out(list(patterns.histograms), _LAYERS):
        counts, reach = patterns.histograms[name]
        middles = [reach * (2 * (at + 0.5) / len(counts[0]) - 1) for at in range(len(counts[0]))]
        lines = [
            Series(_round(patterns, place), middles, [count or None for count in counts[place]], None,
                   *ordered(number, len(places)), marker=None)
            for number, place in enumerate(places)
        ]  # fmt: skip
        charts.append(Chart(name, _short(name), "weight", "number of weights", lines, log_y=True))
    title = f"Surviving weights after training, seed {patterns.seed}"
    return panels(charts, title, columns=2 if len(charts) in (2, 4) else 3)


def pixel_figure(name: str, shares: Tensor, patterns: Patterns) -> Figure:
    """The share of each pixel's weights into the first layer that survives, in some pruned rounds."""
    places = _pruned_rounds(patterns, _PIXEL_ROUNDS)
    heads = [
        f"{patterns.densities[place]:.3g} % left\nup to {100 * float(shares[place].max()):.3g} %" for place in places
    ]
    title = f"Share of each pixel's weights into {_short(name)} that survives"
    return images([("", [shares[place].numpy() for place in places])], heads, title, size=1.4)


def _pruned_rounds(patterns: Patterns, most: int) -> list[int]:
    """Indices of some rounds, without the dense one, whose masks are all the same."""
    return spread_out([place for place, number in enumerate(patterns.rounds) if number] or [0], most)


def _round(patterns: Patterns, place: int) -> str:
    return f"round {patterns.rounds[place]}: {patterns.densities[place]:.3g} %"


def _short(name: str) -> str:
    return name.removesuffix(".weight")
