"""Allocation: published formulas against independent ones, and budgets to the exact number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.resolve import resolved
from lthfunc.sparsify.budgets import apportion, erk_counts
from lthfunc.trees.types import Masks, Params

SHAPES = {"conv1": (8, 3, 3, 3), "conv2": (16, 8, 3, 3), "fc1": (20, 64), "fc2": (10, 20)}
FULL: Masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
TOTAL = sum(mask.numel() for mask in FULL.values())


def scores(seed: int = 0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def kept(allocate: lf.Allocate, density: float, masks: Masks = FULL) -> dict[str, int]:
    return {name: int(n) for name, n in allocate(scores(), masks, 1 - density).items()}


def reference_erk(density: float, kernel: bool) -> dict[str, float]:
    """Densities as in the RigL paper's appendix: layers whose share passes 1 are made dense, one after the other."""
    dense: set[str] = set()
    while True:
        raw = {}
        for name, shape in SHAPES.items():
            sides = shape if kernel else shape[:2]
            raw[name] = sum(sides) / math.prod(sides)
        free = [name for name in SHAPES if name not in dense]
        budget = density * TOTAL - sum(math.prod(SHAPES[name]) for name in dense)
        epsilon = budget / sum(raw[name] * math.prod(SHAPES[name]) for name in free)
        over = [name for name in free if epsilon * raw[name] > 1]
        if not over:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in SHAPES}
        dense.add(max(over, key=lambda name: raw[name]))


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(("allocate", "kernel"), [(lf.erk(), True), (lf.erdos_renyi(), False)])
def test_erdos_renyi_is_the_formula(density: float, allocate: lf.Allocate, kernel: bool) -> None:
    expected = reference_erk(density, kernel)
    for name, count in kept(allocate, density).items():
        assert abs(count - expected[name] * FULL[name].numel()) <= 1, name


@pytest.mark.parametrize("density", [1e-4, 0.02, 0.3, 0.95, 1.0])
def test_erk_of_shapes_is_that_of_full_masks(density: float) -> None:
    counts = erk_counts(SHAPES, density)
    assert counts == kept(lf.erk(), density)
    assert sum(counts.values()) == round(density * TOTAL)


def test_erk_of_shapes_takes_densities() -> None:
    for density in (0.0, -0.1, 1.01, 2.0):
        with pytest.raises(UserError, match=r"^density: invalid value .* \(expected a number in \(0, 1\]\)"):
            erk_counts(SHAPES, density)


def test_uniform_and_balanced() -> None:
    for name, count in kept(lf.uniform(), 0.3).items():
        assert abs(count - 0.3 * FULL[name].numel()) < 1
    # 400 weights for four layers: 100 each. 1,600: fc2 and conv1 are whole, the others share what is left.
    assert set(kept(lf.balanced(), 400 / TOTAL).values()) == {100}
    counts = kept(lf.balanced(), 1600 / TOTAL)
    assert (counts["conv1"], counts["fc2"]) == (216, 200)
    assert counts["conv2"] == counts["fc1"] == 592


@settings(max_examples=60, deadline=None)
@given(
    which=st.sampled_from(["uniform", "erdos_renyi", "erk", "balanced", "globally_with_minimum", "lamp", "globally"]),
    fraction=st.floats(0, 1, exclude_max=True),
    alive=st.floats(0.05, 1),
    floor=st.integers(0, 30),
    seed=st.integers(0, 10),
)
def test_budgets_are_exact_whatever_remains(which: str, fraction: float, alive: float, floor: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(shape, generator=generator) < alive for name, shape in SHAPES.items()}
    living = {name: int(mask.sum()) for name, mask in masks.items()}
    values = {name: leaf.abs() if which == "lamp" else leaf for name, leaf in scores(seed).items()}
    made = getattr(lf, which)
    takes_floor = which not in ("lamp", "globally")
    allocate = made(floor) if takes_floor else made
    floor = floor if takes_floor else 0
    least = {name: min(floor, count) for name, count in living.items()}
    budget = sum(living.values()) - round(fraction * sum(living.values()))
    if budget < sum(least.values()):
        with pytest.raises(UserError, match="a higher density or a smaller minimum"):
            allocate(values, masks, fraction)
    else:
        keep = {name: int(n) for name, n in allocate(values, masks, fraction).items()}
        assert sum(keep.values()) == budget
        assert all(least[name] <= keep[name] <= living[name] for name in keep)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_dealing_is_exact(data: st.DataObject) -> None:
    names = [str(number) for number in range(data.draw(st.integers(1, 6)))]
    most = {name: data.draw(st.integers(0, 50)) for name in names}
    least = {name: data.draw(st.integers(0, most[name])) for name in names}
    weights = {name: data.draw(st.floats(0.001, 100)) for name in names}
    budget = data.draw(st.integers(sum(least.values()), sum(most.values())))
    shares = apportion(budget, weights, most, least)
    assert sum(shares.values()) == budget
    assert all(least[name] <= shares[name] <= most[name] for name in names)


def test_lamp_is_the_definition() -> None:
    values = {name: leaf.abs() for name, leaf in scores(3).items()}
    lamp = []
    for name, leaf in values.items():
        squares = sorted((float(v) ** 2 for v in leaf.flatten().double()), reverse=True)
        seen = 0.0
        for square in squares:
            seen += square
            lamp.append((square / seen, name))
    budget = round(0.1 * TOTAL)
    best = sorted(lamp, reverse=True)[:budget]
    expected = {name: sum(1 for _, other in best if other == name) for name in SHAPES}
    assert {name: int(n) for name, n in lf.lamp(values, FULL, 1 - budget / TOTAL).items()} == expected


def test_a_floor_keeps_each_layers_best_and_the_rest_by_one_threshold() -> None:
    values = scores()
    values["fc1"] = values["fc1"].abs() * 1e-3  # would be emptied
    plain, floored = lf.globally(values, FULL, 0.9), lf.globally_with_minimum(12)(values, FULL, 0.9)
    assert int(plain["fc1"]) == 0
    assert int(floored["fc1"]) == 12
    assert sum(int(n) for n in floored.values()) == sum(int(n) for n in plain.values())
    masks = lf.unstructured(values, FULL, floored)
    assert lf.collapsed_layers(masks) == ()
    assert lf.collapsed_layers(lf.unstructured(values, FULL, plain)) == ("fc1",)


def test_lamp_takes_no_negative_scores() -> None:
    """Squares would take the worst for the best. A pruned weight's score says nothing."""
    values = {name: leaf.abs() for name, leaf in scores().items()}
    values["fc1"][3, 5] = -2.0
    with pytest.raises(UserError, match="allocate: lamp squares scores, and some of fc1 are negative"):
        lf.lamp(values, FULL, 0.5)
    masks = {**FULL, "fc1": FULL["fc1"].clone()}
    masks["fc1"][3, 5] = False
    assert sum(int(n) for n in lf.lamp(values, masks, 0.0).values()) == TOTAL - 1
    with pytest.raises(UserError, match=r"--allocate: invalid value 'lamp' \(expected scores of at least 0, which"):
        resolved(Config(allocate="lamp", score="grasp"))


def test_what_cannot_be_met_is_refused() -> None:
    with pytest.raises(UserError, match="need at least 400 weights together, but the density leaves"):
        lf.erk(min_layer_weights=100)(scores(), FULL, 0.99)
    with pytest.raises(UserError, match="min_layer_weights: invalid value -1"):
        lf.uniform(-1)
