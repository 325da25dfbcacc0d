"""Pruning: exact counts, nested masks, deterministic ties, against independent references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn.utils import prune as reference

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.allocation import fraction_to
from lthfunc.sparsify.ranking import best, ranks
from lthfunc.trees import ops
from lthfunc.trees.types import Masks, Params, TrainState

SHAPES = {"a": (3, 4), "b": (5,), "out": (2, 3)}


@st.composite
def scored(draw: st.DrawFn) -> tuple[Params, Masks]:
    """Scores with many ties (few distinct values), infinities among them, under random masks."""
    value = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 0.5, 1.0, 2.0])
    scores, masks = {}, {}
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        scores[name] = torch.tensor(draw(st.lists(value, min_size=size, max_size=size))).view(shape)
        masks[name] = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(shape)
    return scores, masks


FRACTION = st.floats(0, 1, exclude_max=True)


def python_global_selection(scores: Params, masks: Masks, fraction: float) -> set[tuple[str, int]]:
    """The definition, in plain Python: sort the living by score, ties by position, keep the first."""
    living = [
        (-scores[name].flatten()[i].item(), layer, i, name)
        for layer, name in enumerate(masks)
        for i in range(masks[name].numel())
        if masks[name].flatten()[i]
    ]
    keep = len(living) - round(fraction * len(living))
    return {(name, i) for _, _, i, name in sorted(living)[:keep]}


def positions(masks: Masks) -> set[tuple[str, int]]:
    return {(name, i) for name, mask in masks.items() for i in mask.flatten().nonzero().flatten().tolist()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_ranks_are_pythons_sort(dtype: torch.dtype, data: st.DataObject) -> None:
    """By life, then score, then place; zeros are equal, whatever their sign. The best are the first of them."""
    numbers = (
        [-math.inf, -3.5, -1e-40, -0.0, 0.0, 1e-40, 0.25, 7.0, math.inf] if dtype.is_floating_point else [-9, 0, 4]
    )
    size = data.draw(st.integers(0, 12))
    scores = torch.tensor(data.draw(st.lists(st.sampled_from(numbers), min_size=size, max_size=size)), dtype=dtype)
    alive = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
    best_first = sorted(range(size), key=lambda i: (not alive[i], -scores[i].item(), i))
    assert ranks(scores, alive).tolist() == [best_first.index(i) for i in range(size)]
    for count in (-1, 0, 1, size // 2, size):
        wanted = {i for i in best_first[: max(0, count)] if alive[i]}
        found = best(scores, alive, count)
        assert set(found.nonzero().flatten().tolist()) == wanted
        assert torch.equal(found, best(scores.view(1, -1), alive.view(1, -1), torch.tensor(count))[0])


@settings(max_examples=200, deadline=None)
@given(scored(), FRACTION)
def test_global_selection_is_the_definition(trees: tuple[Params, Masks], fraction: float) -> None:
    scores, masks = trees
    new = lf.unstructured(scores, masks, lf.globally(scores, masks, fraction))
    assert positions(new) == python_global_selection(scores, masks, fraction)


@settings(max_examples=100, deadline=None)
@given(scored(), FRACTION)
def test_layerwise_counts_are_exact_and_masks_nest(trees: tuple[Params, Masks], fraction: float) -> None:
    scores, masks = trees
    new = lf.unstructured(scores, masks, lf.layerwise()(scores, masks, fraction))
    for name, mask in masks.items():
        rate = fraction / 2 if name == "out" else fraction
        living = int(mask.sum())
        assert int(new[name].sum()) == living - round(rate * living)
        assert not (new[name] & ~mask).any()
        kept, dropped = scores[name][new[name]], scores[name][mask & ~new[name]]
        if len(kept) and len(dropped):
            assert kept.min() >= dropped.max()


@settings(max_examples=50, deadline=None)
@given(scored(), FRACTION)
def test_selection_is_pure_and_repeatable(trees: tuple[Params, Masks], fraction: float) -> None:
    scores, masks = trees
    before = ops.clone((scores, masks))
    first = lf.unstructured(scores, masks, lf.globally(scores, masks, fraction))
    assert lf.same_bits(first, lf.unstructured(scores, masks, lf.globally(scores, masks, fraction)))
    assert lf.same_bits((scores, masks), before)
    assert all(mask.dtype == torch.bool for mask in first.values())


def test_layer_rates_are_set_by_pattern_and_the_output_layer_has_half() -> None:
    masks = {name: torch.ones(100, dtype=torch.bool) for name in ("conv1.w", "conv2.w", "fc.w", "out.w")}
    scores = {name: torch.rand(100) for name in masks}
    keep = lf.layerwise({"conv*": 0.1})(scores, masks, 0.2)
    assert {name: int(n) for name, n in keep.items()} == {"conv1.w": 90, "conv2.w": 90, "fc.w": 80, "out.w": 90}
    keep = lf.layerwise({"out.w": 0.0}, output_rate=1.0)(scores, masks, 0.2)
    assert int(keep["out.w"]) == 100
    with pytest.raises(UserError, match="invalid value 'nothing'"):
        lf.layerwise({"nothing": 0.1})(scores, masks, 0.2)
    with pytest.raises(UserError, match=r"invalid value 1.0 \(expected a number in \[0, 1\)"):
        lf.layerwise({"conv*": 1.0})


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    masks = {"a": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(UserError, match="fraction"):
        lf.globally({"a": torch.ones(3)}, masks, fraction)


def test_masks_equal_torchs_global_unstructured_round_after_round() -> None:
    """torch.nn.utils.prune on the same weights, three rounds of 20 %."""
    module: Any = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
    state = lf.init(lf.from_module(module, init=lf.as_built))
    targets = [(layer, "weight") for layer in module if isinstance(layer, nn.Linear)]
    for _ in range(3):
        reference.global_unstructured(targets, pruning_method=reference.L1Unstructured, amount=0.2)
        state = lf.prune(fraction=0.2)(state)
        theirs = {f"{i}.weight": module[i].weight_mask.bool() for i in (0, 2, 4)}
        assert lf.same_bits(state.masks, theirs)


def test_layerwise_masks_equal_torchs_l1_unstructured() -> None:
    module: Any = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 10))
    state = lf.init(lf.from_module(module, init=lf.as_built))
    for _ in range(3):
        for i in (0, 2):
            reference.l1_unstructured(module[i], "weight", amount=0.3)
        state = lf.prune(fraction=0.3, allocate=lf.layerwise(output_rate=1.0))(state)
        assert lf.same_bits(state.masks, {f"{i}.weight": module[i].weight_mask.bool() for i in (0, 2)})


def state_of(seed: int = 0) -> TrainState:
    return lf.init(lf.models.lenet300((1, 8, 8), 10), seed)


def test_five_rounds_at_a_fifth_leave_the_fifth_power_of_four_fifths() -> None:
    state = lf.iterate(lf.prune(fraction=0.2), 5)(lf.init(lf.models.lenet5()))
    assert lf.count(state.masks) == (20_142, 61_470)
    assert round(0.8**5 * 61_470) == 20_142


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 1.0))
def test_pruning_to_a_density_is_exact_to_one_weight(density: float) -> None:
    state = lf.prune(density=density)(state_of())
    kept, total = lf.count(state.masks)
    assert abs(kept - density * total) <= 0.5 + 1e-6


def test_prune_takes_either_fraction_or_density_and_reachable_densities() -> None:
    with pytest.raises(UserError, match="either fraction or density"):
        lf.prune()
    with pytest.raises(UserError, match="either fraction or density"):
        lf.prune(fraction=0.1, density=0.1)
    half = lf.prune(density=0.5)(state_of())
    with pytest.raises(UserError, match=r"invalid value 0.9 \(expected a number in \(0, 0.5\]"):
        lf.prune(density=0.9)(half)
    assert fraction_to(0.25, half.masks) == pytest.approx(0.5)


def test_prune_keeps_the_invariant_and_drops_stale_optimiser_state() -> None:
    state = lf.with_optimizer(state_of(), lf.adam(1e-3))
    pruned = lf.prune(fraction=0.7)(state)
    assert pruned.opt == ()
    assert lf.same_bits(lf.apply_masks(pruned.params, pruned.masks), pruned.params)


def test_magnitude_is_the_absolute_value_of_masked_leaves_only() -> None:
    state = state_of()
    scores = lf.magnitude(state.params, state.masks)
    assert list(scores) == ["fc1.weight", "fc2.weight", "fc3.weight"]
    np.testing.assert_array_equal(scores["fc1.weight"].numpy(), np.abs(state.params["fc1.weight"].numpy()))


def test_random_scores_are_uniform_keyed_and_independent_of_the_global_generator() -> None:
    state = state_of()
    torch.manual_seed(1)
    first = lf.random_scores(3)(state.params, state.masks)
    torch.manual_seed(2)
    assert lf.same_bits(first, lf.random_scores(3)(state.params, state.masks))
    assert not lf.same_bits(first, lf.random_scores(4)(state.params, state.masks))
    values = first["fc2.weight"]
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)


def test_rewinding_restores_the_anchors_bits_under_the_masks() -> None:
    anchor = state_of()
    trained = anchor._replace(params={name: leaf + 1 for name, leaf in anchor.params.items()}, step=anchor.step + 7)
    back = lf.compose(lf.prune(fraction=0.5), lf.rewind(to=anchor))(trained)
    assert lf.same_bits(back.params, lf.apply_masks(anchor.params, back.masks))
    assert int(back.step) == 0
    assert back.opt == ()
    assert lf.density(back.masks) == 0.5


def test_fine_tuning_keeps_trained_weights_and_starts_the_clock_again() -> None:
    trained = state_of()._replace(step=torch.tensor(9))
    start = lf.learning_rate_rewound(lf.prune(fraction=0.5)(trained))
    assert lf.same_bits(start.params, lf.apply_masks(trained.params, start.masks))
    assert int(start.step) == 0


def test_reinitialisation_draws_new_weights_under_the_same_masks() -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    pruned = lf.prune(fraction=0.5)(lf.init(model, 0))
    fresh = lf.reinitialised(pruned, model, seed=1)
    assert lf.same_bits(fresh.masks, pruned.masks)
    assert lf.same_bits(fresh.params, lf.apply_masks(lf.init(model, 1).params, pruned.masks))


def test_shuffling_keeps_each_layers_count_and_moves_its_entries() -> None:
    masks = lf.prune(fraction=0.7)(state_of()).masks
    before = ops.clone(masks)
    moved = lf.shuffled_masks(masks, seed=0)
    assert lf.layer_counts(moved) == lf.layer_counts(masks)
    assert all(not torch.equal(moved[name], masks[name]) for name in masks)
    assert lf.same_bits(moved, lf.shuffled_masks(masks, seed=0))
    assert lf.same_bits(masks, before)


def test_shuffling_draws_another_order_for_every_layer_and_seed() -> None:
    """Layers of one shape with one mask get masks that overlap as much as chance has it."""
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask.view(-1)[:1000] = True
    moved = lf.shuffled_masks({"a": mask, "b": mask}, seed=0)
    other = lf.shuffled_masks({"a": mask, "b": mask}, seed=1)
    for left, right in ((moved["a"], moved["b"]), (moved["a"], other["a"]), (moved["a"], mask)):
        assert int((left & right).sum()) == pytest.approx(500, abs=80)


def test_densities_closer_than_a_weight_are_reached() -> None:
    """Steps of a schedule may be smaller than a weight; counts are still those of each density."""
    state = lf.init(lf.from_module(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 3))))
    for density in (0.5, 0.4997, 0.203, 0.2015, 0.2001, 0.2):
        state = lf.prune(density=density)(state)
        assert lf.count(state.masks).kept == round(density * 130)
    with pytest.raises(UserError, match=r"invalid value 0\.21"):
        lf.prune(density=0.21)(state)


def test_score_allocation_and_selection_run_under_vmap() -> None:
    """Replicates as one batched tree give the masks that each gives alone."""
    singles = [state_of(seed) for seed in range(3)]
    stacked = {name: torch.stack([s.params[name] for s in singles]) for name in singles[0].params}
    full = {name: torch.stack([s.masks[name] for s in singles]) for name in singles[0].masks}

    def masks_of(params: Params, masks: Masks) -> Masks:
        scores = lf.magnitude(params, masks)
        return lf.unstructured(scores, masks, lf.globally(scores, masks, 0.6))

    together = torch.vmap(masks_of)(stacked, full)
    for i, single in enumerate(singles):
        alone = masks_of(single.params, single.masks)
        assert lf.same_bits({name: mask[i] for name, mask in together.items()}, alone)


def test_counts_alone_may_run_under_vmap() -> None:
    scores, alive = {"w": torch.rand(3, 4)}, {"w": torch.ones(3, 4, dtype=torch.bool)}
    counts = torch.tensor([2, 7])
    together = torch.vmap(lambda count: lf.unstructured(scores, alive, {"w": count})["w"])(counts)
    assert together.sum((1, 2)).tolist() == [2, 7]


def test_pruning_runs_under_vmap() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)))
    states = [lf.init(model, seed) for seed in range(3)]
    together = lf.tree_map(lambda *leaves: torch.stack(leaves), *states)
    for allocate in (lf.globally, lf.layerwise()):
        prune = lf.prune(fraction=0.4, allocate=allocate)
        found = torch.vmap(prune)(together)
        for number, state in enumerate(states):
            mine = lf.tree_map(lambda leaf, number=number: leaf[number], found.masks)
            assert lf.same_bits(mine, prune(state).masks)
