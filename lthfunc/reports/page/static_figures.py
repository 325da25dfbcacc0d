"""Figures for files in place of the page's explorer: some layers, some rounds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from lthfunc.reports.charts import ramp
from lthfunc.reports.matplotlib_figures import clean, figure, words
from lthfunc.reports.page.explorer import matrix_of
from lthfunc.reports.page.mask_history import Patterns
from lthfunc.reports.spacing import spread_out

_LAYERS, _ROUNDS, _PIXEL_ROUNDS = 6, 4, 8


def mask_figure(patterns: Patterns, densities: Sequence[float]) -> Figure:
    """Masks of some layers in some rounds; surviving weights are dark."""
    names = spread_out(list(patterns.pruned), _LAYERS)
    places = spread_out(list(range(len(patterns.rounds))), _ROUNDS)
    made = figure(2.6 * len(places), 2.2 * len(names) + 0.4)
    grid = made.subplots(len(names), len(places), squeeze=False)
    for row, name in zip(grid, names, strict=True):
        matrix = matrix_of(patterns.pruned[name])
        for axes, place in zip(row, places, strict=True):
            axes.imshow((matrix > place).numpy(), cmap="Greys", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(words(name.removesuffix(".weight")), fontsize=9)
    for axes, place in zip(grid[0], places, strict=True):
        axes.set_title(_round(patterns, densities, place), fontsize=9)
    made.suptitle(f"Masks, seed {patterns.seed} (dark: surviving)", fontsize=11)
    return made


def weight_figure(patterns: Patterns, densities: Sequence[float]) -> Figure:
    """Histograms of surviving trained weights, a panel per layer and a line per round."""
    names = spread_out(list(patterns.histograms), _LAYERS) or [""]
    made = figure(3.6 * min(3, len(names)), 3 * -(-len(names) // 3) + 0.3)
    grid = made.subplots(-(-len(names) // 3), min(3, len(names)), squeeze=False).flatten()
    places = spread_out(list(range(len(patterns.rounds))), _ROUNDS)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid, names, strict=False):
        clean(axes)
        histogram = patterns.histograms.get(name)
        if histogram is None:
            continue
        bins = len(histogram.counts[0])
        middles = [histogram.reach * (2 * (at + 0.5) / bins - 1) for at in range(bins)]
        for place in places:
            colour = ramp(place / max(1, len(patterns.rounds) - 1))
            axes.step(middles, histogram.counts[place], where="mid", color=colour, linewidth=1.2,
                      label=_round(patterns, densities, place))  # fmt: skip
        axes.set_title(words(name.removesuffix(".weight")), fontsize=9)
        axes.set_yscale("symlog")
    grid[0].legend(frameon=False, fontsize=7)
    made.suptitle(f"Surviving weights after training, seed {patterns.seed}", fontsize=11)
    return made


def pixel_figure(name: str, shares: Tensor, densities: Sequence[float]) -> Figure:
    """The share of each pixel's weights into the first layer that survives, in some rounds."""
    places = spread_out(list(range(len(shares))), _PIXEL_ROUNDS)
    made = figure(1.5 * len(places) + 0.8, 2.1)
    grid = made.subplots(1, len(places), squeeze=False)[0]
    for axes, place in zip(grid, places, strict=True):
        axes.imshow(shares[place].numpy(), cmap="viridis", vmin=0)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{densities[place]:.3g} %", fontsize=9)
        axes.set_xlabel(f"≤ {100 * float(shares[place].max()):.3g} %", fontsize=8)
    layer = words(name.removesuffix(".weight"))
    made.suptitle(f"Share of each pixel's weights into {layer} that survives", fontsize=11)
    return made


def _round(patterns: Patterns, densities: Sequence[float], place: int) -> str:
    return f"round {patterns.rounds[place]}: {densities[place]:.3g} %"
