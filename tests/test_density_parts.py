"""Densities, drop and grow, distances of masks and dead units, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small import NET, state_of
from test_pruning_parts import truth
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.density_schedules import by_rate, cubic, geometric, one_shot, periodic, prune_to_densities
from lthfunc.sparsify.drop_and_grow import cosine_drop_fraction, drop, drop_and_grow, grow, linear_drop_fraction
from lthfunc.sparsify.mask_comparison import collapsed_layers, mask_distance, mask_overlap

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
    assert {each.density for each in cubic(0.4, 0, 5, 1, initial=0.4)} == {0.4}
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


@pytest.mark.parametrize(
    "how",
    [
        {}, {"allocate": lf.uniform()}, {"allocate": lf.erk()}, {"allocate": lf.layerwise()},
        {"select": lf.per_output(), "allocate": lf.uniform()}, {"select": lf.units()},
    ],
    ids=lambda how: " ".join(how) or "plain",
)  # fmt: skip
def test_densities_in_turn_are_as_many_prunings(how: dict[str, Any]) -> None:
    """Also where rounding in layers leaves another number than the density says. Scores that are NaN are refused."""
    model = lf.from_module(nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 5), nn.Linear(5, 3)))
    densities = geometric(0.1, 9)
    for seed in range(3):
        start = after = lf.init(model, seed)
        for density in densities:
            after = lf.prune(density=density, **how)(after)
        assert lf.same_bits(prune_to_densities(densities, **how)(start), after)
    start.params["1.weight"][2, 1] = float("nan")
    with pytest.raises(UserError, match=r"scores of 1.weight are NaN"):
        prune_to_densities(densities, **how)(start)


def test_drop_and_grow_by_hand() -> None:
    worth, masks = {"a": torch.tensor([[4.0, 3, 2, 1]])}, {"a": truth("xxx.")}
    assert torch.equal(drop(worth, masks, 0.4)["a"], truth("xx.."))
    assert torch.equal(drop(worth, masks, 0.0)["a"], masks["a"])
    assert torch.equal(drop(worth, masks, 1.0)["a"], truth("...."))
    for share in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"drop_fraction: .*a number in \[0, 1\]"):
            drop(worth, masks, share)
        with pytest.raises(UserError, match=r"drop_fraction: "):
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


def test_the_share_that_is_dropped_falls_along_a_line() -> None:
    assert [linear_drop_fraction(0.4, step, 8) for step in (0, 2, 4, 8, 9)] == pytest.approx([0.4, 0.3, 0.2, 0.0, 0.0])
    assert linear_drop_fraction(0.4, 3, 0) == 0.0
    with pytest.raises(UserError, match="initial: "):
        linear_drop_fraction(1.1, 0, 5)


@pytest.mark.parametrize("keep_values", [False, True])
@pytest.mark.parametrize("score", ["magnitude", "own"])
def test_one_layer_is_exchanged_weight_by_weight(score: str, keep_values: bool) -> None:
    """Of six weights three go: the smallest, or those that a score of one's own puts last; the best places grow."""
    weight, moments = torch.tensor([[1.0, -2, 3, -4, 5, 6, 0, 0]]), torch.arange(1.0, 9)[None]
    mask, promise = truth("xxxxxx.."), torch.tensor([[7.0, 0, 0, 0, 0, 8, 6, 1]])
    worth = {"weight": torch.tensor([[6.0, 5, 4, 3, 2, 1, 9, 9]])} if score == "own" else None
    dropped = {0, 1, 2} if worth is None else {3, 4, 5}
    stays = set(range(6)) - dropped
    free = sorted(set(range(8)) - stays, key=lambda at: -float(promise[0, at]))
    grown = set(free[:3])
    assert grown & dropped, "a weight that was just dropped grows again"
    state = lf.with_optimizer(lf.init(lf.from_module(nn.Linear(8, 1, bias=False))), lf.sgd(0.1, momentum=0.9))
    state = state._replace(params={"weight": weight}, masks={"weight": mask})
    state = state._replace(opt=state.opt._replace(velocity={"weight": moments}))
    after = drop_and_grow(state, {"weight": promise}, 0.5, drop_score=worth, keep_values=keep_values)
    go_on = {at for at in stays | grown if at in stays or (keep_values and at < 6)}
    assert after.masks["weight"][0].nonzero().flatten().tolist() == sorted(stays | grown)
    for found, before in ((after.params["weight"], weight), (after.opt.velocity["weight"], moments)):
        assert found[0].tolist() == [value if at in go_on else 0 for at, value in enumerate(before[0].tolist())]


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
    assert scored(lambda w: {"a": w, "b": 10 * w[None, :1]}) == [44, 6]
    assert scored(lambda w: torch.complex(w, 10 * w)) == [4, 6]
    masks = {"w": truth("xx")[0]}
    by_size = lf.synflow(lambda p, x: p["w"] * x.sum(), (2,))({"w": torch.tensor([3 + 4j, -2j])}, masks)["w"]
    assert by_size.tolist() == pytest.approx([10, 4])
    with pytest.raises(UserError, match="synflow: the network returns no real numbers"):
        scored(lambda w: (w > 0).long())


def test_synflow_refuses_outputs_of_no_weight_and_looks_for_them_once() -> None:
    """Zero alone says nothing: a network may be dead, and looking again in each of 100 rounds would cost as many."""
    params, masks = {"w": torch.tensor([2.0, -3.0])}, {"w": truth("xx")[0]}

    def inputs_alone(params: Any, x: Tensor) -> Tensor:
        return x * 2

    with pytest.raises(UserError, match=r"inputs_alone.* depend on no parameter"):
        lf.synflow(inputs_alone, (2,))(params, masks)
    calls = []

    def dead(params: Any, x: Tensor) -> Tensor:
        calls.append(x)
        out: Tensor = params["w"] * 0.0 * x
        return out

    score = lf.synflow(dead, (2,))
    for looked in (2, 3, 4):
        assert score(params, masks)["w"].tolist() == [0, 0]
        assert len(calls) == looked
