"""Pruning, part by part: counts, structures, densities, regrowth and distances at their edges, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small import NET, data, state_of
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK
from lthfunc.errors import UserError
from lthfunc.sparsify.allocation import check_fraction, check_patterns, fraction_from, number_pruned
from lthfunc.sparsify.budgets import apportion, budget_of
from lthfunc.sparsify.checks import checked_allocation, checked_selection
from lthfunc.sparsify.density_schedules import by_rate, cubic, geometric, one_shot, periodic, prune_to_densities
from lthfunc.sparsify.drop_and_grow import cosine_drop_fraction, drop, drop_and_grow, grow
from lthfunc.sparsify.mask_comparison import collapsed_layers, mask_distance, mask_overlap
from lthfunc.sparsify.scores import checked_score
from lthfunc.sparsify.sparsegpt import best_of_block
from lthfunc.sparsify.structures import as_matrix, from_matrix, has_blocks, has_n_of_m, has_units
from lthfunc.trees.ops import Count


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
            UserError, match=r"^min_layer_weights: invalid value -1 \(expected a whole number of weights, 0 or more"
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
        (good["b"].float(), r"torch.float32 \(1, 2\)"), (truth("..."), r"torch.bool \(1, 3\)"), (0, "a int"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"^select: '<lambda>': invalid value 'b: {shown}' .*a torch.bool mask of"):
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


# ---- structures ----


@pytest.mark.parametrize("shape", [(6,), (4, 6), (4, 6, 3), (2, 3, 4, 5)])
def test_leaves_are_matrices_of_outputs_and_inputs(shape: tuple[int, ...]) -> None:
    leaf = torch.arange(math.prod(shape)).view(shape)
    matrix = as_matrix(leaf)
    assert matrix.shape == (shape[0], leaf[0].numel())
    assert torch.equal(from_matrix(matrix, shape), leaf)
    if len(shape) > 2:  # channels innermost: neighbours are neighbouring channels at one place
        assert matrix[0, : shape[1]].tolist() == leaf[0].flatten(1)[:, 0].tolist()


def test_structures_are_recognised() -> None:
    assert has_n_of_m(truth("xx..", ".x.x", "...."), 2, 4)
    assert has_n_of_m(truth("xx..x..x"), 2, 4)
    assert not has_n_of_m(truth("xx..xxx."), 2, 4)
    assert not has_n_of_m(truth("xxx.", "...."), 2, 4)
    assert not has_n_of_m(truth("......"), 2, 4)
    assert has_n_of_m(truth("xxxxxx"), 3, 3)
    assert has_blocks(truth("xx..", "xx.."), 2, 2)
    assert has_blocks(truth("xx..", "..xx"), 1, 2)
    assert not has_blocks(truth("xx..", "x..."), 2, 2)
    assert not has_blocks(truth("xx.."), 2, 2)
    assert not has_blocks(truth("xxx", "xxx"), 2, 2)
    assert has_blocks(truth("xxx", "xxx"), 2, 3)
    assert has_units(truth("xxx", "...", "xxx"))
    assert not has_units(truth("xxx", "x.."))
    assert not has_units(truth("x..", "..."))


def select(structure: Any, scores: Tensor, mask: Tensor | None = None, keep: int = 0) -> Tensor:
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    found: Tensor = structure({"a": scores}, {"a": mask}, {"a": torch.tensor(keep)})["a"]
    return found


def test_n_of_m_by_hand() -> None:
    scores = torch.tensor([[4.0, 3, 2, 1], [1, 2, 8, 9]])
    assert torch.equal(select(lf.n_of_m(2, 4), scores, keep=4), truth("xx..", "..xx"))
    assert torch.equal(select(lf.n_of_m(2, 4), scores, keep=3), truth("x...", "..xx"))
    assert torch.equal(select(lf.n_of_m(2, 2), scores, keep=8), truth("xxxx", "xxxx"))
    assert torch.equal(select(lf.n_of_m(1, 2), scores, truth(".xxx", "xx.."), keep=3), truth(".xx.", ".x.."))
    with pytest.raises(UserError, match=r"^structure: 2:4 holds at most 4 of the 8 weights of a, but 5 are to be kept"):
        select(lf.n_of_m(2, 4), scores, keep=5)
    with pytest.raises(UserError, match=r"^structure: 2:3 doesn't divide the 4 inputs of a \(2, 4\); exempt the layer"):
        select(lf.n_of_m(2, 3), scores)
    with pytest.raises(UserError, match=r"^structure: 1:2 doesn't divide the 1 inputs of a \(4,\)"):
        select(lf.n_of_m(1, 2), scores[0])
    with pytest.raises(UserError, match=r"^structure: 1:4 doesn't divide the 2 inputs of a \(1, 2, 4\)"):
        select(lf.n_of_m(1, 4), torch.ones(1, 2, 4))
    for n, m in ((0, 4), (5, 4), (-1, 2)):
        with pytest.raises(UserError, match=f"^structure: invalid value '{n}:{m}' .*N:M with 1 ≤ N ≤ M"):
            lf.n_of_m(n, m)


def test_blocks_by_hand() -> None:
    scores = torch.tensor([[1.0, 1, 5, 0], [1, 1, 0, 0], [0, 0, 9, 9], [0, 3, 9, 9]])
    assert torch.equal(select(lf.blocks(2, 2), scores, keep=4), truth("....", "....", "..xx", "..xx"))
    assert torch.equal(select(lf.blocks(2, 2), scores, keep=9), truth("..xx", "..xx", "..xx", "..xx"))
    assert torch.equal(select(lf.blocks(2, 2), scores, keep=11), truth("xxxx", "xxxx", "..xx", "..xx"))
    assert torch.equal(select(lf.blocks(1, 4), scores, keep=4), truth("....", "....", "....", "xxxx"))
    assert torch.equal(select(lf.blocks(4, 1), scores, keep=4), truth("..x.", "..x.", "..x.", "..x."))
    lost = truth("xxxx", "xxxx", "xx..", "xx..")
    assert torch.equal(select(lf.blocks(2, 2), scores, lost, keep=12), truth("xxxx", "xxxx", "xx..", "xx.."))
    for structure, words in (
        (lf.blocks(3, 2), r"3x2 doesn't divide the 4 outputs"), (lf.blocks(2, 3), r"2x3 doesn't divide the 4 inputs"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"^structure: {words} of a \(4, 4\); exempt the layer: --exempt a$"):
            select(structure, scores)
    for rows, columns in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match=f"^structure: invalid value '{rows}x{columns}' .*a block of at least 1x1"):
            lf.blocks(rows, columns)
    lf.blocks(1, 1)
    with pytest.raises(UserError, match=r"^exempt: invalid value 'b' .*a pattern that matches one of a"):
        select(lf.blocks(1, 1, ["b"]), scores)


def test_units_by_hand() -> None:
    scores = torch.tensor([[1.0, 1], [5, 0], [9, 9]])
    assert torch.equal(select(lf.units(), scores, keep=2), truth("..", "..", "xx"))
    assert torch.equal(select(lf.units(), scores, keep=4), truth("..", "xx", "xx"))
    assert torch.equal(select(lf.units(), scores, keep=3), truth("..", "..", "xx"))  # as near as two: the fewer
    assert torch.equal(select(lf.units(), scores, keep=0), truth("..", "..", "xx"))  # at least one
    # The mean of what is left: of the second unit 5, though its sum is less than the first's.
    assert torch.equal(
        select(lf.units(), torch.tensor([[3.0, 3], [5, 0]]), truth("xx", "x."), keep=1), truth("..", "x.")
    )
    assert torch.equal(select(lf.units(), scores, truth("xx", "xx", ".."), keep=2), truth("..", "xx", ".."))


def test_rows_keep_equally_many() -> None:
    scores = torch.tensor([[1.0, 2, 3], [9, 8, 7], [4, 6, 5]])
    assert torch.equal(select(lf.per_output(), scores, keep=3), truth("..x", "x..", ".x."))
    assert torch.equal(select(lf.per_output(), scores, keep=5), truth(".xx", "xx.", ".x."))
    assert torch.equal(select(lf.per_output(), scores, truth("x..", "xxx", "xxx"), keep=5), truth("x..", "xx.", ".xx"))


def test_a_block_of_columns_keeps_its_best() -> None:
    scores = torch.tensor([[1.0, 5, 5], [5, 0, 2]])
    assert torch.equal(best_of_block(scores, 1 / 3), truth(".xx", "..."))  # equals in their order
    assert torch.equal(best_of_block(scores, 0.5), truth(".xx", "x.."))
    assert torch.equal(best_of_block(scores, 0.0), truth("...", "..."))
    assert torch.equal(best_of_block(scores, 1.0), truth("xxx", "xxx"))
    for density in (0.0, -0.5, 1.5):
        with pytest.raises(UserError, match=r"density: .*a number in \(0, 1\]"):
            lf.sparsegpt({}, density)
    _, state = state_of()
    assert lf.sparsegpt({}, 1.0)(state).masks == state.masks


def test_moments_are_in_float64() -> None:
    model, state = state_of()
    x = 1e4 + torch.randn(40, 6)
    moments = lf.input_moments(model, state, [x[:30], x[30:]])
    wide = x.double()
    torch.testing.assert_close(moments["1.weight"], wide.T @ wide / 40, rtol=1e-14, atol=0)
    hidden = torch.relu(x @ (state.params["1.weight"] * state.masks["1.weight"]).T + state.params["1.bias"]).double()
    torch.testing.assert_close(moments["3.weight"], hidden.T @ hidden / 40, rtol=1e-5, atol=1e-3)


def test_moments_are_over_every_row_that_a_layer_reads() -> None:
    """Of tokens (n, length, features), and of batches of unlike sizes, all count the same."""
    model = lf.from_module(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    state = lf.init(model)
    x, y = torch.randn(6, 3, 4), torch.randn(2, 3, 4)
    moments = lf.input_moments(model, state, [x, y])
    rows = torch.cat([x.reshape(18, 4), y.reshape(6, 4)]).double()
    torch.testing.assert_close(moments["0.weight"], rows.T @ rows / 24)
    hidden = torch.relu(rows.float() @ state.params["0.weight"].T + state.params["0.bias"]).double()
    torch.testing.assert_close(moments["2.weight"], hidden.T @ hidden / 24, rtol=1e-5, atol=1e-6)


def test_surgery_leaves_the_state_that_it_was_given() -> None:
    model, state = state_of()
    moments = lf.input_moments(model, state, [data().train.x])
    before = {name: leaf.clone() for name, leaf in {**state.params, **state.masks}.items()}
    second = {name: leaf.clone() for name, leaf in moments.items()}
    after = lf.sparsegpt(moments, 0.4)(state._replace(opt=("moments",)))
    assert after.opt == ()
    assert lf.count(after.masks).kept == 18
    assert lf.same_bits({**state.params, **state.masks}, before)
    assert lf.same_bits(dict(moments), second)
    whole = lf.sparsegpt(moments, 0.4, block=2)(state)
    assert lf.count(whole.masks).kept == 18
    with pytest.raises(UserError, match=r"^damping: 0 is too small for these inputs; try 0\.1"):
        lf.sparsegpt({"1.weight": torch.ones(6, 6, dtype=torch.float64)}, 0.4, damping=0)(state)


# ---- densities, regrowth, distances ----


def test_densities_by_hand() -> None:
    assert one_shot(0.25) == [0.25]
    assert geometric(0.25, 2) == [0.5, 0.25]
    assert geometric(1.0, 1) == [1.0]
    assert by_rate(0.5, 3) == pytest.approx([0.5, 0.25, 0.125])
    assert by_rate(0.5, 0) == []
    assert periodic(2, 7, 2) == [2, 4, 6, 7]
    assert periodic(0, 1, 5) == [0, 1]
    assert periodic(2, 6, 2) == [2, 4, 6]
    pruning = cubic(0.2, 2, 6, 2, initial=0.6)
    assert [each.step for each in pruning] == [2, 4, 6]
    assert [each.density for each in pruning] == pytest.approx([0.6, 0.2 + 0.4 / 8, 0.2])
    assert cubic(0.2, 0, 5, 5)[0].density == 1.0
    for make, words in (
        (lambda: geometric(0.0, 2), r"density: invalid value 0.0 .*a number in \(0, 1\]"),
        (lambda: geometric(1.1, 2), "density: invalid value 1.1"),
        (lambda: one_shot(0.0), "density: invalid value 0.0"),
        (lambda: cubic(0.0, 0, 5, 1), "density: invalid value 0.0"),
        (lambda: geometric(0.5, 0), "rounds: invalid value 0 .*at least 1"),
        (lambda: by_rate(0.0, 2), "rate: invalid value 0.0 .*both excluded"),
        (lambda: by_rate(1.0, 2), "rate: invalid value 1.0"),
        (lambda: periodic(0, 5, 0), "every: invalid value 0 .*at least 1"),
        (lambda: periodic(5, 5, 1), "start: invalid value 5 .*a step from 0 to 4"),
        (lambda: periodic(-1, 5, 1), "start: invalid value -1"),
    ):
        with pytest.raises(UserError, match=words):
            make()
    _, state = state_of()
    twice = prune_to_densities([0.5, 0.2], score=lf.random_scores(1), allocate=lf.uniform())(state)
    by_hand = lf.prune(density=0.5, score=lf.random_scores(1), allocate=lf.uniform())(state)
    by_hand = lf.prune(density=0.2, score=lf.random_scores(1), allocate=lf.uniform())(by_hand)
    assert lf.same_bits(twice, by_hand)


def test_drop_and_grow_by_hand() -> None:
    worth, masks = {"a": torch.tensor([[4.0, 3, 2, 1]])}, {"a": truth("xxx.")}
    assert torch.equal(drop(worth, masks, 0.4)["a"], truth("xx.."))
    assert torch.equal(drop(worth, masks, 0.0)["a"], masks["a"])
    assert torch.equal(drop(worth, masks, 1.0)["a"], truth("...."))
    for share in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"^drop_fraction: .*a number in \[0, 1\]"):
            drop(worth, masks, share)
        with pytest.raises(UserError, match=r"^drop_fraction: "):
            cosine_drop_fraction(share, 0, 5)
    grown = grow({"a": torch.tensor([[9.0, 1, 2, 3]])}, {"a": truth("x...")}, {"a": 2})
    assert torch.equal(grown["a"], truth("x.xx"))
    assert [cosine_drop_fraction(0.4, step, 8) for step in (0, 4, 8, 9)] == pytest.approx([0.4, 0.2, 0.0, 0.0])
    assert cosine_drop_fraction(0.4, 2, 8) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert cosine_drop_fraction(0.4, 3, 0) == 0.0
    model, state = state_of()
    opt = lf.adam(0.1)
    state = lf.with_optimizer(state, opt)
    state = state._replace(opt=state.opt._replace(mean={name: torch.ones_like(v) for name, v in state.params.items()}))
    promise = {name: torch.randn_like(state.params[name]) for name in state.masks}
    after = drop_and_grow(state, promise, 0.5)
    for name, mask in state.masks.items():
        fewer = drop(lf.magnitude(state.params, state.masks), state.masks, 0.5)[name]
        assert int(after.masks[name].sum()) == int(mask.sum())
        assert not (fewer & ~after.masks[name]).any()
        assert torch.equal(after.params[name], torch.where(fewer, state.params[name], 0))
        assert torch.equal(after.opt.mean[name], fewer.float())
    assert torch.equal(after.opt.mean["1.bias"], torch.ones(5))
    assert lf.from_module(NET).prunable == model.prunable


def test_distances_by_hand() -> None:
    left = {"a": truth("xx..", "...."), "b": truth("xx")}
    right = {"a": truth("x.x.", "...."), "b": truth("..")}
    assert mask_distance(left, right) == 4 / 10
    assert mask_overlap(left, right) == 1 / 5
    assert mask_distance(left, left) == 0.0
    assert mask_overlap(left, left) == 1.0
    nothing = {"a": truth("..")}
    assert mask_overlap(nothing, nothing) == 1.0
    assert mask_overlap(nothing, {"a": truth("x.")}) == 0.0
    assert collapsed_layers(left) == ()
    assert collapsed_layers(right) == ("b",)
    assert lf.dead_units({"a": truth("x.", "..", ".."), "b": truth("xx")}) == {"a": 2, "b": 0}


# ---- units without weights, and without readers ----


def test_what_only_a_dead_unit_needs_goes_with_it() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    model = lf.from_module(net, init=lf.as_built)  # whose biases are not zero
    found = lf.dependencies(model, (1, 4, 4))
    assert found.beside == {"0.weight": "0.bias", "4.weight": "4.bias", "6.weight": "6.bias"}
    assert found.groups == {"0.weight": 1}
    feeds = {pair: marks for pair, marks in found.feeds.items() if marks.any()}
    assert set(feeds) == {
        ("", "0.weight"), ("0.weight", "1.weight"), ("0.weight", "4.weight"), ("4.weight", "6.weight"),
    }  # fmt: skip
    assert torch.equal(feeds["0.weight", "4.weight"], torch.eye(4).bool().repeat_interleave(4, 1))
    assert [found.shown[name].any().item() for name in ("0.weight", "4.weight", "6.weight")] == [False, False, True]
    state = lf.init(model)
    state = state._replace(
        params={name: torch.ones_like(leaf) for name, leaf in state.params.items()}, opt=("moments",),
        masks={name: mask.clone() for name, mask in state.masks.items()},
    )  # fmt: skip
    state.masks["0.weight"][2] = False  # dead
    state.masks["6.weight"][:, 3] = False  # unread
    state.masks["6.weight"][1] = False  # dead, but shown
    tidy = lf.without_dead_units(state, found)
    assert tidy.opt == ()
    assert lf.dead_units(tidy.masks) == {"0.weight": 1, "4.weight": 1, "6.weight": 1}
    assert not tidy.masks["4.weight"][:, 8:12].any()
    assert not tidy.masks["4.weight"][3].any()
    assert int(tidy.masks["4.weight"].sum()) == 12 * 4
    assert (
        tidy.params["0.bias"].tolist()
        == tidy.params["1.weight"].tolist()
        == tidy.params["1.bias"].tolist()
        == [1, 1, 0, 1]
    )
    assert tidy.params["4.bias"].tolist() == [1, 1, 1, 0, 1]
    assert tidy.params["6.bias"].tolist() == [1, 1, 1]
    assert lf.same_bits(lf.without_dead_units(tidy, found), tidy)


def test_synflow_takes_the_tensor_that_counts() -> None:
    """Or all of them, where nothing tells it; of complex ones the real part."""

    def scored(outputs: Any) -> list[float]:
        params, masks = {"w": torch.tensor([2.0, -3.0])}, {"w": truth("xx")[0]}
        found = lf.synflow(lambda p, x: outputs(p["w"] * x.sum()), (2,))(params, masks)
        return found["w"].tolist()

    assert scored(lambda w: w) == [4, 6]
    assert scored(lambda w: {"logits": w, "hidden": 10 * w}) == [4, 6]
    assert scored(lambda w: (w, 10 * w)) in ([4, 6], [44, 66])
    assert scored(lambda w: {"a": w, "b": 10 * w, "n": torch.tensor(3)}) == [44, 66]
    assert scored(lambda w: torch.complex(w, 10 * w)) == [4, 6]
    masks = {"w": truth("xx")[0]}
    by_size = lf.synflow(lambda p, x: p["w"] * x.sum(), (2,))({"w": torch.tensor([3 + 4j, -2j])}, masks)["w"]
    assert by_size.tolist() == pytest.approx([10, 4])
    with pytest.raises(UserError, match="synflow: the network returns no real numbers"):
        scored(lambda w: (w > 0).long())


class Refusing(nn.Module):
    """Cannot be differentiated by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch._C._functorch.is_functorch_wrapped_tensor(self.fc.weight):
            raise ValueError("not under torch.func")
        out: Tensor = self.fc(x)
        return out


def test_a_loss_without_a_gradient_is_told_by_name() -> None:
    model = lf.from_module(Refusing())
    state = lf.init(model)
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(UserError, match=r"Refusing has no gradient.*not under torch.func"):
        lf.snip(lf.loss_of(model, state.buffers), batches)(state.params, state.masks)

    def mine(params: Any, batch: Any) -> Tensor:
        raise ValueError("my own")

    with pytest.raises(UserError, match=r"loss: '.*mine' has no gradient.*my own"):
        lf.snip(mine, batches)(state.params, state.masks)


def test_a_loss_of_no_weight_has_no_scores() -> None:
    _, state = state_of()
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]

    def of_targets(params: Any, batch: Any) -> Tensor:
        out: Tensor = batch[1].double().mean()
        return out

    def flat(params: Any, batch: Any) -> Tensor:
        out: Tensor = sum(leaf.sum() for leaf in params.values()) * 0.0
        return out

    for make in (lf.snip, lf.taylor, lf.fisher, lf.movement, lf.mean_gradient):
        with pytest.raises(UserError, match=r"of_targets.* depend on no parameter"):
            make(of_targets, batches)(state.params, state.masks)
        found = make(flat, batches)(state.params, state.masks)  # which is a function of them, if a flat one
        assert not any(leaf.any() for leaf in found.values())
    for bad in (0.0, -1.0):
        with pytest.raises(UserError, match=r"temperature: .*a number above 0"):
            lf.grasp(flat, batches, bad)
    with pytest.raises(UserError, match="temperature: 200 divides the network's outputs, which this loss doesn't exp"):
        lf.grasp(flat, batches)
    lf.grasp(flat, batches, 1.0)
