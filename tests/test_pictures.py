"""Pictures can be read: by colour-blind readers, on light and dark ground, with any number of runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lthfunc.reports.charts import (
    GREY,
    PALETTE,
    Bars,
    Chart,
    Colour,
    Heat,
    Series,
    linear_tick_text,
    log_ticks,
    ordered,
    tick_texts,
)
from lthfunc.reports.curves import accuracy_chart, curve_charts, layer_chart, time_chart
from lthfunc.reports.matplotlib_figures import panels, printed
from lthfunc.reports.page.mask_history import Histogram, Patterns
from lthfunc.reports.page.plotly_figures import figure_of
from lthfunc.reports.page.static_figures import mask_figure, pixel_figure, weight_figure

PAPER = Colour("#ffffff", "#14171a")
#: Machado, Oliveira & Fernandes (2009), severity 1: linear RGB as a colour-blind reader sees it.
SIMULATED = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour: str) -> Any:
    values = np.array([*bytes.fromhex(colour[1:])]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(colour: str, ground: str) -> float:
    """Of WCAG 2."""
    low, high = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (colour, ground))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: Any) -> Any:
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    x, y, z = np.cbrt(np.array(matrix) @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("ground", ["light", "dark"])
def test_colours_are_seen_and_told_apart_by_colour_blind_readers(ground: str) -> None:
    lines = [ordered(number, 8)[0] for number in range(8)]
    for colour in (*PALETTE, *lines, GREY):
        assert contrast(getattr(colour, ground), getattr(PAPER, ground)) >= 3, colour
    for matrix in SIMULATED.values():
        seen = [[lab(np.array(matrix) @ linear(getattr(each, ground))) for each in of] for of in (PALETTE, lines)]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen[0], 2)) >= 15
        # Lines with the same dash are two apart.
        assert min(np.linalg.norm(a - b) for a, b in zip(seen[1], seen[1][2:], strict=False)) >= 12
    dashes = [ordered(number, 8)[1] for number in range(8)]
    assert all(a != b for a, b in pairwise(dashes))


def records(rate: float = 0.8, rounds: int = 12, seeds: int = 3, controls: Sequence[str] = ()) -> list[dict[str, Any]]:
    """As of a run whose accuracies are near the best possible and whose times are near zero."""
    generator = np.random.default_rng(0)
    found = []
    for seed in range(seeds):
        for number in range(rounds + 1):
            for variant in ("ticket", *(controls if number else ())):
                density, accuracy = rate**number, 0.99 + 0.01 * float(generator.random())
                layers = {f"fc{at}.weight": {"density": density ** (at / 2)} for at in (1, 2, 3)}
                found.append({
                    "seed": seed, "round": number, "variant": variant, "kept": 1000 * density, "total": 1000,
                    "density": density, "layers": layers, "early_stop_step": 20, "val_accuracy": accuracy,
                    "test_accuracy": accuracy, "test_loss": 0.01, "seconds": 0.1 * float(generator.random()) ** 4,
                    "curve": [[0, None, 2.3, 0.1], [20, 0.1, 0.1, accuracy], [40, 0.1, 0.2, accuracy]],
                })  # fmt: skip
    return found


def texts(made: Any) -> Iterator[Any]:
    """The figure's visible texts."""
    for axes in made.axes:
        yield from (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            yield from (tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)
    yield made._suptitle
    for legend in made.legends:
        yield from legend.get_texts()


def crossing(made: Figure) -> list[str]:
    """What is wrong with the texts of a figure: those that lie on another, on data, or beyond the edge."""
    made.set_dpi(100)  # as many pixels as the check needs
    renderer = FigureCanvasAgg(made).get_renderer()
    made.draw(renderer)
    boxes = [(each.get_text(), each.get_window_extent(renderer)) for each in texts(made) if each and each.get_text()]
    inner = [(axes.get_title(loc="left"), axes.get_window_extent(renderer)) for axes in made.axes if axes.get_visible()]
    width, height = made.canvas.get_width_height()
    wrong = [f"{text!r} is cut" for text, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1
             or box.y1 > height + 1]  # fmt: skip

    def over(a: Any, b: Any) -> bool:
        return bool(min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1)

    wrong += [f"{a!r} is on {b!r}" for (a, one), (b, other) in combinations(boxes, 2) if over(one, other)]
    return wrong + [f"{a!r} is on the data" for a, one in boxes for _, other in inner if over(one, other)]


MANY = {f"a run with a long name {number}": records(0.8 - 0.001 * number, 9 + number % 3) for number in range(10)}
CONTROLS = ("reinit", "random-mask", "shuffled-mask", "inverted-mask", "layer-random-mask", "of-a-package")


def test_texts_are_whole_and_lie_on_nothing() -> None:
    alone: dict[str, Any] = {"": records(controls=CONTROLS)}
    labels = [f"a program with a long name {number}" for number in range(12)]
    values = [float(10**number) for number in range(-6, 6)]
    growing = [Series("dense", [0, 400_000, 800_000], [1e-6, 6e-6, 1.2e-5]), Series("ticket", [0, 8e5], [4e-6, 1e-5])]
    charts = [
        Chart("g", "Costs", "inferences", "emissions of training and inference (kg CO₂eq)", growing, zero=True),
        accuracy_chart(alone), time_chart(alone), accuracy_chart(MANY), layer_chart(alone[""]),
        *curve_charts(records(rounds=20), most=30),
    ]  # fmt: skip
    others: list[Any] = [
        Bars("b", "Bars", "x", labels, [("one", values, values), ("two", values, None)], stacked=True),
        Bars("d", "Dots on a logarithmic axis, with a title that is much too long for a single line of it", "x",
             labels, [("one", values, values)], dots=True, across=[(3.0, "dense")]),
        Heat("h", "Heat", "x", "y", ["0.001", "0.003", "0.01"], labels, [values[:3]] * 12, "a unit"),
    ]  # fmt: skip
    for made in (*map(printed, [*charts, *others]), panels(charts[:4], "Four of them")):
        assert crossing(made) == []
        for axes in made.axes:
            assert axes.get_ylabel() or [tick.get_text() for tick in axes.get_yticklabels()]


@pytest.mark.parametrize("runs", [{"": records()}, {"": records(rounds=40)}, MANY])
def test_ticks_of_any_number_of_runs_are_distinct(runs: dict[str, Any]) -> None:
    ticks = accuracy_chart(runs).x_ticks()
    assert ticks is not None
    assert 2 <= len(ticks) <= 8
    assert len(set(tick_texts(ticks))) == len(ticks)
    steps = np.diff(np.log(ticks))
    assert (steps <= -0.999 * (np.log(ticks[0]) - np.log(ticks[-1])) / 7).all()


def test_equal_values_on_a_logarithmic_axis_have_ticks_apart() -> None:
    """Of methods that cost the same at inference: renderers show decades around one value."""

    def drawn(*xs: float) -> tuple[list[float], tuple[float, float]]:
        chart = Chart("costs", "Costs", "FLOPs", "error", [Series("a", list(xs), [1.0] * len(xs))], log_x=True)
        (axes,) = panels([chart], "").axes
        ticks, shown = axes.get_xticks(), axes.get_xlim()
        layout = figure_of(chart)["layout"]["xaxis"]
        assert ("range" in layout) == (xs[0] == xs[-1])
        if xs[0] == xs[-1]:
            assert [10**end for end in layout["range"]] == pytest.approx(shown)
        return list(ticks), shown

    for ticks, (low, high) in (drawn(10_000, 10_000), drawn(10_000, 90_000)):
        assert low <= ticks[0] < ticks[-1] <= high
        assert math.log(ticks[-1] / ticks[0]) > 0.3 * math.log(high / low)


@pytest.mark.parametrize(("low", "high"), [(55, 100), (0.062, 0.069), (1e-9, 1), (3, 3), (0.9, 1.1), (1000, 1e7)])
def test_a_logarithmic_axis_has_several_ticks(low: float, high: float) -> None:
    ticks = log_ticks([low, high])
    assert 3 <= len(ticks) <= 6
    assert len(set(tick_texts(ticks))) == len(ticks)
    assert all(low / 1.21 <= tick <= high * 1.21 for tick in ticks)


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([100, 80, 64, 51.2, 40.96, 32.768], "100.0 80.0 64.0 51.2 41.0 32.8"),
        ([100, 51.2, 26.21, 13.42, 6.872, 3.518], "100.0 51.2 26.2 13.4 6.9 3.5"),
        ([100, 64, 40.96, 16.77, 6.872, 1.153], "100 64.0 41.0 16.8 6.87 1.15"),  # one decimal would give 1.2
        ([100, 10, 0.5, 0.012], "100 10 0.5 0.012"),
        ([0.9, 1.0, 1.1], "0.9 1.0 1.1"),
        ([50, 100], "50 100"),
        ([1000, 1e4, 1e5, 1e6], "1,000 10,000 100k 1M"),
    ],
)
def test_ticks_of_a_logarithmic_axis_have_equally_many_decimals(ticks: list[float], texts: str) -> None:
    assert tick_texts(ticks) == texts.split()


def test_ticks_of_a_linear_axis_have_equally_many_decimals_and_captions_start_at_the_title() -> None:
    assert [linear_tick_text(value, [98.5, 99.0, 99.5]) for value in (99.0, 99.5)] == ["99.0", "99.5"]
    assert [linear_tick_text(value, [0, 5e4, 1e5]) for value in (0, 5e4)] == ["0", "50k"]
    assert tick_texts([2e8, 2e9, 5e12]) == ["200M", "2G", "5T"]
    made: Any = printed(accuracy_chart({"": records()}))
    made.draw_without_rendering()
    under, title = made.axes[0]._left_title, made._suptitle
    assert under.get_text().startswith("Mean ± standard deviation")
    assert under.get_window_extent().x0 == pytest.approx(title.get_window_extent().x0, abs=2)


def test_error_bars_and_axes_end_where_the_possible_does() -> None:
    for chart, (low, high) in ((accuracy_chart({"": records()}), (0, 100)), (time_chart({"": records()}), (0, np.inf))):
        (series,) = chart.series
        ends = np.array(series.y) + [[-1.0], [1.0]] * np.array(series.deviation)
        assert ends.min() < low or ends.max() > high  # what a deviation would give
        bars = printed(chart).axes[0].collections[0].get_segments()  # type: ignore[attr-defined]
        (band, *_) = figure_of(chart)["data"]
        expected = np.clip(ends, low, high)
        np.testing.assert_allclose(np.array(bars)[:, :, 1].T, expected)
        np.testing.assert_allclose(band["y"], [*expected[1], *expected[0][::-1]])
        limits = chart.shown()
        assert limits is not None
        assert list(limits) == pytest.approx(printed(chart).axes[0].get_ylim())
        shown = [tick for tick in printed(chart).axes[0].get_yticks() if limits[0] <= tick <= limits[1]]
        assert low <= min(shown) < max(shown) <= high + 1e-9


def test_masks_keep_their_proportions_and_the_pages_colours() -> None:
    generator = torch.Generator().manual_seed(0)
    pruned = {
        name: torch.randint(1, 4, shape, dtype=torch.uint8, generator=generator)
        for name, shape in (("wide.weight", (30, 100)), ("tall.weight", (400, 25)), ("conv.weight", (6, 3, 5, 5)))
    }
    counts = [[1, 0, 3], [0, 2, 1], [1, 1, 1], [2, 0, 2]]
    patterns = Patterns(0, [0, 1, 2, 3], [100, 67, 33, 10], pruned, {name: Histogram(counts, 0.5) for name in pruned})
    made = mask_figure(patterns)
    FigureCanvasAgg(made).draw()
    assert [axes.get_title() for axes in made.axes[:3]] == ["round 1: 67 %", "round 2: 33 %", "round 3: 10 %"]
    assert [axes.get_ylabel() for axes in made.axes[::3]] == ["wide", "tall", "conv"]
    for axes, shape in zip(made.axes[::3], ((30, 100), (25, 400), (15, 30)), strict=True):
        (image,) = axes.images
        assert image.get_array().shape == shape  # type: ignore[union-attr]
        box = axes.get_window_extent()
        assert box.height / box.width == pytest.approx(shape[0] / shape[1], rel=0.02)
        colours = {tuple(image.to_rgba(np.array([[float(value)]]))[0, 0, :3].round(2).tolist()) for value in (0, 1)}
        assert colours == {(0.93, 0.95, 0.96), (0.0, 0.45, 0.7)}
    for axes in weight_figure(patterns).axes:
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("weight", "number of weights")
    shares = torch.linspace(0, 0.5, 64).reshape(1, 8, 8).repeat(4, 1, 1)
    pixels = pixel_figure("wide.weight", shares, patterns)
    assert pixels.axes[0].get_title() == "67 % left\nup to 50 %"
    assert crossing(pixels) == crossing(made) == crossing(weight_figure(patterns)) == []


def test_pictures_are_drawn_of_any_shape() -> None:
    many = [Series(f"s{at}", [100, 50], [1.0, None], [0.1, 0.0], ordered(at, 20)[0]) for at in range(20)]
    for picture in (
        Chart("a", "t", "x", "y", many, log_x=True, log_y=True, falling=True),
        Chart("b", "t", "x", "y", [Series("s", [0, 1], [1.0, float("inf")], dash="none")], places=["adam", "sgd"]),
        Chart("c", "t", "x", "y", [Series("s", [1.0], [None])]),
        Bars("d", "t", "x", ["one", "two"], [("g", [1, 2], [0.1, 0.2]), ("h", [2, 1], None)], stacked=True),
        Bars("e", "t", "x", ["one", "two"], [("g", [1, 2], [0.1, 0.2])], dots=True, across=[(1.5, "dense")]),
        Heat("f", "t", "x", "y", ["a", "b"], ["c"], [[None, 2.0]], "u"),
    ):
        plotly.graph_objects.Figure(figure_of(picture))
        assert printed(picture).axes
