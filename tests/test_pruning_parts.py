"""Counts of weights, and a user's own allocations and selections, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small import state_of
from torch import Tensor

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK
from lthfunc.errors import UserError
from lthfunc.sparsify.allocation import check_fraction, fraction_from, number_pruned
from lthfunc.sparsify.budgets import apportion, budget_of
from lthfunc.sparsify.checks import checked_allocation, checked_selection
from lthfunc.sparsify.scores import checked_score
from lthfunc.trees.ops import Count
from lthfunc.trees.patterns import check_patterns


def truth(*rows: str) -> Tensor:
    """A mask out of text, x for what stays."""
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


# ---- counts ----


def test_fractions_and_patterns_have_their_ranges() -> None:
    for fraction in (0, 0.0, 0.5, 1 - 1e-16):
        check_fraction(fraction)
    for fraction in (-1e-9, 1.0, 2, math.nan):
        with pytest.raises(UserError, match=r"^fraction: invalid value .* \(expected a number in \[0, 1\)\)$"):
            check_fraction(fraction)
    _, state = state_of()
    for allocate in (lf.globally, lf.layerwise(), lf.uniform(), lf.lamp, lf.globally_with_minimum(1)):
        with pytest.raises(UserError, match=r"fraction: invalid value 1\.5"):
            allocate(lf.magnitude(state.params, state.masks), state.masks, 1.5)
    for choose in (lf.globally_on(SINGLE_RANK), lf.layerwise_on(SINGLE_RANK)):
        with pytest.raises(UserError, match=r"^fraction: invalid value -0\.5"):
            choose(lf.magnitude(state.params, state.masks), state.masks, -0.5)
    check_patterns("keep", ["fc*", "conv1.weight"], ["conv1.weight", "fc1.weight"])
    with pytest.raises(
        UserError, match=r"^keep: invalid value 'fc2\*' .*a pattern that matches one of conv1.weight, fc1.weight\)$"
    ):
        check_patterns("keep", ["fc1*", "fc2*"], ["conv1.weight", "fc1.weight"])
    assert [int(number_pruned(torch.tensor(count), 0.5)) for count in (0, 1, 2, 3, 5, 7)] == [
        0,
        0,
        1,
        2,
        2,
        4,
    ]  # to even
    for rate in (0.0, 0.999):
        lf.layerwise({"a": rate})
    for rate in (-0.1, 1.0):
        with pytest.raises(UserError, match=r"^layer rate of 'a': .*a number in \[0, 1\)"):
            lf.layerwise({"a": rate})


def test_fractions_to_a_density_by_hand() -> None:
    now = Count(40, 100)
    assert fraction_from(now, 0.4) == 0.0
    assert fraction_from(now, 0.1) == pytest.approx(0.75)
    assert fraction_from(now, 0.405) == 0.0  # half a weight more
    for density in (0.406, 0.0, -0.1):
        with pytest.raises(UserError, match=r"^density: .*a number in \(0, 0\.4\], the density now"):
            fraction_from(now, density)


def test_dealing_by_hand() -> None:
    weights = {"a": 1.0, "b": 1.0, "c": 2.0}
    assert apportion(8, weights, {"a": 9, "b": 9, "c": 9}, dict.fromkeys(weights, 0)) == {"a": 2, "b": 2, "c": 4}
    assert apportion(9, weights, {"a": 9, "b": 9, "c": 9}, dict.fromkeys(weights, 0)) == {"a": 2, "b": 2, "c": 5}  # 4.5
    assert apportion(10, weights, {"a": 9, "b": 9, "c": 4}, dict.fromkeys(weights, 0)) == {"a": 3, "b": 3, "c": 4}
    assert apportion(11, weights, {"a": 9, "b": 9, "c": 4}, dict.fromkeys(weights, 0)) == {"a": 4, "b": 3, "c": 4}
    assert apportion(8, weights, {"a": 9, "b": 9, "c": 9}, {"a": 3, "b": 0, "c": 0}) == {"a": 3, "b": 2, "c": 3}
    assert apportion(5, {"a": 1, "b": 0}, {"a": 2, "b": 9}, {"a": 0, "b": 0}) == {"a": 2, "b": 3}  # a is full
    assert apportion(27, weights, dict.fromkeys(weights, 9), dict.fromkeys(weights, 0)) == dict.fromkeys(weights, 9)
    assert apportion(6, weights, dict.fromkeys(weights, 9), dict.fromkeys(weights, 2)) == dict.fromkeys(weights, 2)
    assert apportion(0, {}, {}, {}) == {}
    assert apportion(3, {"a": 0.0, "b": 1.0}, {"a": 5, "b": 5}, {"a": 1, "b": 0}) == {"a": 1, "b": 2}
    with pytest.raises(UserError, match=r"^density: invalid value 28 .*a budget of at most 27 weights"):
        apportion(28, weights, dict.fromkeys(weights, 9), dict.fromkeys(weights, 0))
    with pytest.raises(
        UserError, match=r"^min_layer_weights: 3 layers need at least 6 weights together, but the density leaves 5"
    ):
        apportion(5, weights, dict.fromkeys(weights, 9), dict.fromkeys(weights, 2))
    masks = {"a": truth("xx.", "x.x")}
    assert [budget_of(masks, fraction) for fraction in (0.0, 0.25, 0.5, 0.75)] == [4, 3, 2, 1]
    for make in (lf.uniform, lf.erk, lf.erdos_renyi, lf.balanced, lf.globally_with_minimum):
        make(0)
        with pytest.raises(
            UserError, match=r"min_layer_weights: invalid value -1 \(expected a whole number of at least 0"
        ):
            make(-1)


# ---- a user's own allocations and selections ----


def test_own_counts_and_masks_are_held_to_the_layers() -> None:
    masks = {"a": truth("xx.", "x.x"), "b": truth("xx")}
    scores = {name: mask.float() for name, mask in masks.items()}
    counts = {"a": 3, "b": torch.tensor(0, dtype=torch.int32)}

    def allocate(given: Any) -> Any:
        return checked_allocation(lambda s, m, f: given)(scores, masks, 0.5)

    found = allocate(counts)
    assert (int(found["a"]), int(found["b"])) == (3, 0)
    assert isinstance(found["a"], Tensor)
    for given, shown in (
        ({"a": 3}, r"\['a'\]"), ({**counts, "c": 1}, r"\['a', 'b', 'c'\]"), ([3, 2], "'list'"), (None, "'NoneType'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^allocate: '<lambda>': invalid value {shown} .*a count for each of a, b"):
            allocate(given)
    for value, shown in (
        (-1, "-1"), (torch.tensor(-2), "-2"), (1.0, "1.0"), (torch.tensor(1.5), "1.5"), (torch.tensor([1]), r"\[1\]"),
        (False, "False"), ("2", "2"), (None, "None"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^allocate: '<lambda>': invalid value 'b: {shown}' .*a whole number"):
            allocate({**counts, "b": value})

    def select(given: Any) -> Any:
        return checked_selection(lambda s, m, keep: given)(scores, masks, {name: torch.tensor(1) for name in masks})

    good = {"a": truth("x..", "..x"), "b": truth("..")}
    assert select(good) is good
    wrong: tuple[tuple[Any, str], ...] = (
        ({"a": good["a"]}, r"\['a'\]"),
        ({**good, "c": 1}, r"\['a', 'b', 'c'\]"),
        ((1,), "'tuple'"),
    )
    for given, shown in wrong:
        with pytest.raises(UserError, match=f"^select: '<lambda>': invalid value {shown} .*a mask for each of a, b"):
            select(given)
    for value, shown in (
        (good["b"].float(), r"float32 of shape \(1, 2\)"), (truth("..."), r"bool of shape \(1, 3\)"), (0, "an int"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"^select: '<lambda>': invalid value 'b: {shown}' .*a mask, bool of"):
            select({**good, "b": value})
    with pytest.raises(UserError, match=r"^select: '<lambda>': restores pruned weights of a"):
        select({**good, "a": truth("..x", "...")})

    def fails(*given: Any) -> Any:
        raise ValueError("no luck")

    for kind, function in (("allocate", checked_allocation(fails)), ("select", checked_selection(fails))):
        with pytest.raises(UserError, match=f"^{kind}: 'fails' .*no luck"):
            function(scores, masks, 0.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^score: 'fails' .*no luck"):
        checked_score(fails)(scores, masks)
    assert checked_allocation(lf.globally) is lf.globally
    assert checked_selection(lf.unstructured) is lf.unstructured
