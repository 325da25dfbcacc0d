"""Weights that grow at random: different places, any of them, without a number for each weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

import lthfunc as lf
from lthfunc.sparsify.growth import free_places, ties_drawn
from lthfunc.trees import rng
from lthfunc.trees.rng import distinct, generator, permutation


@settings(max_examples=40, deadline=None)
@given(of=st.integers(0, 40), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_numbers_drawn_are_different_and_rise(of: int, share: float, seed: int) -> None:
    count = round(share * of)
    found = distinct(count, of, generator(seed, "test")).tolist()
    assert found == sorted(set(found)), "they are different and rise"
    assert len(found) == count
    assert all(0 <= number < of for number in found)
    assert found == distinct(count, of, generator(seed, "test")).tolist(), "and depend on the key alone"


@pytest.mark.parametrize(("count", "of"), [(1, 2), (400, 1_000), (400, 12_000)])
def test_numbers_are_the_same_marked_or_sorted(count: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (0, of):
        monkeypatch.setattr(rng, "_MARKED", most)
        found.append(distinct(count, of, generator(0, "test")).tolist())
    assert found[0] == found[1]
    assert len(found[0]) == count


def test_each_set_of_numbers_is_as_likely_as_any_other() -> None:
    """Pairs and triples of five, each ten times as often as there are sets; chi-squared at a level of 1e-4."""
    for count, of, bound in ((2, 5, 33.7), (3, 5, 33.7)):  # nine degrees of freedom
        draw, seen = generator(0, "test", count), dict[tuple[int, ...], int]()
        for _ in range(600):
            each = tuple(distinct(count, of, draw).tolist())
            seen[each] = seen.get(each, 0) + 1
        assert len(seen) == 10
        assert sum((number - 60) ** 2 / 60 for number in seen.values()) < bound


def test_numbers_of_a_large_range_reach_all_of_it() -> None:
    found = distinct(10_000, 2**40, generator(0, "test")).double() / 2**40
    assert 0.48 < float(found.mean()) < 0.52
    assert float(found[-1]) > 0.99
    assert len((distinct(1_000, 2**40, generator(1, "test")) % 2**20).unique()) > 900, "low bits are drawn, too"


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 30), data=st.data())
def test_free_places_leave_out_those_taken(size: int, data: st.DataObject) -> None:
    taken = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    free = [place for place in range(size) if place not in taken]
    numbers = torch.arange(len(free))
    assert free_places(numbers, torch.tensor(taken, dtype=torch.int64)).tolist() == free


def test_random_growth_fills_any_share_and_differs_by_layer_seed_and_step() -> None:
    masks = {name: torch.arange(40).view(4, 10) % 3 == 0 for name in "ab"}
    for count in (0, 5, 20, 26):
        grown = lf.grow(lf.random_growth(1), masks, {"a": count, "b": count})
        for name, mask in grown.items():
            assert (mask | ~masks[name]).all()
            assert int(mask.sum()) == 14 + count
    drawn = {
        tuple(growth(name, torch.arange(3), 1000, 10).tolist())
        for growth in (lf.random_growth(0), lf.random_growth(1), lf.random_growth(0, 1), lf.random_growth(0, 2))
        for name in "ab"
    }
    assert len(drawn) == 8


def test_random_growth_costs_what_grows() -> None:
    """A layer of 10¹² weights, of which a tensor would not fit."""
    places = lf.random_growth(0)("w", torch.tensor([0, 5, 10**11]), 10**12, 1000)
    assert len(places.unique()) == 1000
    assert 0 <= int(places[0]) <= int(places[-1]) < 10**12


def test_ranks_of_scores_with_ties_are_pythons_sort() -> None:
    """Equal ones in the order of a permutation that the key alone draws; the scores stay as they are."""
    scores = {"w": torch.arange(999).remainder(3).float(), "v": torch.zeros(30, 20)}
    before = lf.tree_map(torch.clone, scores)
    found = ties_drawn(scores, 7, 2)
    assert lf.same_bits(scores, before)
    assert lf.same_bits(ties_drawn(scores, 7, 2), found)
    for name, leaf in scores.items():
        values, first = leaf.flatten().tolist(), dict[int, int]()
        for place, at in enumerate(permutation(leaf.numel(), 7, "growth-ties", 2, name).tolist()):
            first[at] = place
        order = sorted(range(leaf.numel()), key=lambda at, v=values, f=first: (v[at], f[at]))  # type: ignore[misc]
        wanted = torch.empty(leaf.numel()).index_copy(0, torch.tensor(order), torch.arange(leaf.numel()).float())
        assert torch.equal(found[name], wanted.view(leaf.shape))


def test_each_order_of_equal_scores_is_as_likely_as_any_other() -> None:
    """The six orders of three, each a hundred times; chi-squared at a level of 1e-4 (five degrees of freedom)."""
    scores, seen = {"w": torch.zeros(3)}, dict[tuple[float, ...], int]()
    for step in range(600):
        order = tuple(ties_drawn(scores, 0, step)["w"].tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 6
    assert sum((number - 100) ** 2 / 100 for number in seen.values()) < 25.7
