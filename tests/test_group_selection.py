"""Which groups go: scores, what stays, and how many, against loops over every weight, written down here."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.models.transformers import ViT
from lthfunc.trees.types import Masks

Group = lf.DependencyGroup
Place = tuple[str, int, int]
SIZES = {"0.weight": (6, 3), "2.weight": (8, 6), "4.weight": (2, 8)}


def places(name: str) -> list[Place]:
    return [(name, row, column) for row in range(SIZES[name][0]) for column in range(SIZES[name][1])]


def left_of(masks: Masks) -> set[Place]:
    rows = {name: masks[name].tolist() for name in SIZES}
    return {place for name in SIZES for place in places(name) if rows[name][place[1]][place[2]]}


def weights_of(group: Group, left: set[Place]) -> list[Place]:
    """Its weights that remain; one of two of its parts counts twice."""
    parts = [(part, {*part.indices.tolist()}) for part in group.parts if part.name in SIZES]
    return [
        place for part, own in parts for place in places(part.name) if place[1 + part.axis] in own and place in left
    ]


def scores_by_hand(
    scores: Mapping[str, Tensor], masks: Masks, groups: Sequence[Group], reduce: str, normalize: bool
) -> list[float]:
    found, left, numbers = [], left_of(masks), {name: leaf.tolist() for name, leaf in scores.items()}
    for group in groups:
        values = [numbers[name][row][column] for name, row, column in weights_of(group, left)]
        of = {"mean": sum(values) / max(1, len(values)), "sum": sum(values), "norm": sum(v * v for v in values) ** 0.5}
        found.append(of[reduce])
    if not normalize:
        return found
    means = {
        group.width: [abs(score) for other, score in zip(groups, found, strict=True) if other.width == group.width]
        for group in groups
    }
    return [
        score / max(sum(means[group.width]) / len(means[group.width]), 2.0**-1022)
        for group, score in zip(groups, found, strict=True)
    ]


def pruned_by_hand(
    worth: list[float], masks: Masks, groups: Sequence[Group], wanted: float, costs: Mapping[str, float],
    sizes: Mapping[int, int] | None = None,
) -> set[Place]:  # fmt: skip
    """What remains: groups go, the worst first, but for the best of each width and of each row or column they cover.

    sizes: of each width, what the number of groups that remain is a multiple of.
    """
    teams: dict[Any, list[int]] = {}
    covered: dict[Any, int] = {}
    living = [number for number, group in enumerate(groups) if weights_of(group, left_of(masks))]
    for number, group in enumerate(groups):
        for key, count in ((group.width, 0), *(((part.name, part.axis), len(part.indices)) for part in group.parts)):
            covered[key] = covered.get(key, 0) + count
            if number in living:
                teams.setdefault(key, []).append(number)
    staying = {
        max(team, key=lambda number: (worth[number], -number)) for key, team in teams.items()
        if isinstance(key, int) or (key[0] in SIZES and covered[key] == SIZES[key[0]][key[1]])
    }  # fmt: skip
    rests, remaining = [left_of(masks)], living
    while True:  # of each width those that could go next; the worst of these go
        nexts = []
        for width in {group.width for group in groups}:
            own = [number for number in remaining if groups[number].width == width]
            size = (sizes or {}).get(width, 1)
            free = sorted(set(own) - staying, key=lambda number: (worth[number], number))[: len(own) % size or size]
            if len(free) == (len(own) % size or size):
                nexts.append((sum(worth[number] for number in free) / len(free), free))
        if not nexts:
            break
        gone = min(nexts)[1]
        remaining = [number for number in remaining if number not in gone]
        rests.append(rests[-1] - {place for number in gone for place in weights_of(groups[number], rests[-1])})

    def far(rest: set[Place]) -> float:
        return abs(sum(costs[name] for name, *_ in rest) - wanted)

    return min(rests, key=lambda rest: (far(rest), -len(rest)))


def network() -> tuple[lf.TrainState, list[Group]]:
    """Units of the first layer one by one, of the second one in pairs."""
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def group(width: int, layer: str, reader: str, *units: int) -> Group:
        leaves = (f"{layer}.weight", 0), (f"{layer}.bias", 0), (f"{reader}.weight", 1)
        return Group("units", width, tuple(lf.GroupPart(*leaf, torch.tensor(units)) for leaf in leaves))

    groups = [group(0, "0", "2", unit) for unit in range(6)]
    return lf.init(lf.from_module(net)), groups + [group(1, "2", "4", unit, unit + 4) for unit in range(4)]


def case(seed: int) -> tuple[lf.TrainState, list[Group]]:
    """A network of three layers whose weights are small whole numbers, so that scores tie; some are pruned."""
    (state, found), draw = network(), torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(size, generator=draw) < 0.8 for name, size in SIZES.items()}
    weights = {name: torch.randint(-4, 5, size, generator=draw).float() for name, size in SIZES.items()}
    biases = {name: leaf + 1 for name, leaf in state.params.items() if name not in SIZES}
    state = state._replace(masks=masks, params=lf.apply_masks({**biases, **weights}, masks), opt=("moments",))
    return state, random.Random(seed).sample(found, len(found))


COSTS = {"0.weight": 4.0, "2.weight": 1.0, "4.weight": 2.5}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("reduce", "normalize"), [("mean", True), ("sum", False), ("norm", True)])
def test_the_worst_groups_go_until_the_cost_is_nearest(seed: int, reduce: str, normalize: bool) -> None:
    state, groups = case(seed)
    before = lf.tree_map(torch.clone, (state.params, state.masks))
    how: dict[str, Any] = {"reduce": reduce, "normalize": normalize}
    worth = scores_by_hand(lf.magnitude(state.params, state.masks), state.masks, groups, reduce, normalize)
    found = lf.group_scores(lf.magnitude(state.params, state.masks), state.masks, groups, **how)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(worth, rel=1e-12)
    ones, total = dict.fromkeys(SIZES, 1.0), sum(rows * columns for rows, columns in SIZES.values())
    kept = lf.count(state.masks).kept
    dear, all_dear = (sum(COSTS[name] * float(m.sum()) for name, m in tree.items()) for tree in (
        state.masks, {name: torch.ones_like(mask) for name, mask in state.masks.items()}
    ))  # fmt: skip
    for given, wanted, costs in (
        ({"fraction": 0.3}, 0.7 * kept, None),
        ({"fraction": 0.0}, kept, None),
        ({"density": 0.4}, 0.4 * total, None),
        ({"fraction": 0.25, "costs": COSTS}, 0.75 * dear, COSTS),
        ({"density": 0.45, "costs": COSTS}, 0.45 * all_dear, COSTS),
    ):
        pruned = lf.prune_groups(groups, **given, **how)(state)
        assert left_of(pruned.masks) == pruned_by_hand(found.tolist(), state.masks, groups, wanted, costs or ones), (
            given
        )
        select = lf.whole_groups(groups, costs=costs, **how)
        keep = {
            name: torch.tensor(wanted * float(m.sum()) / (kept if costs is None else dear))
            for name, m in state.masks.items()
        }
        selected = select(lf.magnitude(state.params, state.masks), state.masks, keep)
        assert lf.same_bits(selected, pruned.masks)
        for name, layer in (("0", "2"), ("2", "4")):  # a unit that nothing writes or reads has no bias
            gone = ~(pruned.masks[f"{name}.weight"].any(1) | pruned.masks[f"{layer}.weight"].any(0))
            assert torch.equal(pruned.params[f"{name}.bias"], torch.where(gone, 0, state.params[f"{name}.bias"]))
        assert torch.equal(pruned.params["4.bias"], state.params["4.bias"])
        assert lf.same_bits(
            {n: pruned.params[n] for n in SIZES}, lf.apply_masks({n: state.params[n] for n in SIZES}, pruned.masks)
        )
        assert pruned.opt == ()
    assert lf.same_bits((state.params, state.masks), before)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("multiple", [2, 3, 4])
def test_of_each_width_a_multiple_of_channels_remains(seed: int, multiple: int) -> None:
    """Groups of the second layer have two units each, one part's; a width with fewer stays whole."""
    state, groups = case(seed)
    sizes = {0: multiple, 1: {2: 1, 3: 3, 4: 2}[multiple]}
    worth = lf.group_scores(lf.magnitude(state.params, state.masks), state.masks, groups).tolist()
    total, left = lf.count(state.masks).total, []
    for density in (0.4, 0.5, 0.6):
        masks = lf.prune_groups(groups, density=density, multiple=multiple)(state).masks
        wanted = density * total
        assert left_of(masks) == pruned_by_hand(worth, state.masks, groups, wanted, dict.fromkeys(SIZES, 1.0), sizes)
        for width, size in sizes.items():
            own = [group for group in groups if group.width == width]
            before, after = (
                sum(bool(weights_of(group, left_of(each))) for group in own) for each in (state.masks, masks)
            )
            assert after % size == 0 or after == before
            left.append(after != before)
    assert any(left)
    with pytest.raises(UserError, match=r"^prune_groups: whole groups in multiples of 8 leave at least 100 %"):
        lf.prune_groups(groups, density=0.4, multiple=8)(state)


def test_heads_count_as_many_channels_as_they_have() -> None:
    """Of four heads of eight dimensions an even number stays where sixteen are asked for."""
    model = lf.from_module(ViT((1, 8, 8), 10, layers=1, heads=4, width=32), warn=False)
    state = lf.init(model)
    heads = [group for group in lf.dependency_groups(model, (1, 8, 8)) if group.kind == "heads"]
    for multiple, density, stay in ((16, 0.85, 2), (4, 0.93, 3), (16, 0.93, 4)):
        pruned = lf.prune_groups(heads, density=density, multiple=multiple)(state).masks
        assert int(pruned["blocks.0.attention.qkv.weight"].any(1).sum()) == 3 * 8 * stay


def test_groups_have_the_mean_of_their_scores_over_that_of_their_width() -> None:
    """By default; and other scores than magnitude's are those of weights that remain."""
    state, groups = case(2)
    scores = lf.magnitude(state.params, state.masks)
    given = lf.group_scores(scores, state.masks, groups, reduce="mean", normalize=True)
    assert torch.equal(lf.group_scores(scores, state.masks, groups), given)
    explicit = lf.prune_groups(groups, density=0.4, score=lf.magnitude, reduce="mean", normalize=True)(state).masks
    assert lf.same_bits(lf.prune_groups(groups, density=0.4)(state).masks, explicit)
    assert not lf.same_bits(lf.prune_groups(groups, density=0.4, normalize=False)(state).masks, explicit)
    keep = {name: (mask.sum() * 0.5) for name, mask in state.masks.items()}
    selected = lf.whole_groups(groups, reduce="mean", normalize=True)(scores, state.masks, keep)
    assert lf.same_bits(lf.whole_groups(groups)(scores, state.masks, keep), selected)
    everywhere = {name: leaf + 100.0 * ~state.masks[name] for name, leaf in scores.items()}
    assert torch.equal(lf.group_scores(everywhere, state.masks, groups), given)


def test_groups_are_refused_in_one_line() -> None:
    state, groups = case(2)
    for given, words in (
        ({}, "^prune_groups: give either fraction or density$"),
        ({"fraction": 0.5, "density": 0.5}, "^prune_groups: give either fraction or density$"),
        (
            {"density": 0.5, "multiple": 0},
            r"^prune_groups: multiple: invalid value 0 \(expected a whole number of at least 1",
        ),
        ({"density": 0.5, "multiple": 1.5}, r"^prune_groups: multiple must be a whole number, not 1\.5$"),
        ({"density": 0.5, "reduce": "max"}, r"^reduce: invalid value 'max' \(expected mean or sum or norm\)"),
    ):
        with pytest.raises(UserError, match=words):
            lf.prune_groups(groups, **given)
    words = r"^prune_groups: whole groups leave at least [\d.]+ % of the remaining costs, but [\d.]+ % are to be kept$"
    with pytest.raises(UserError, match=words):
        lf.prune_groups(groups, density=0.001, costs=COSTS)(state)
    with pytest.raises(UserError, match=r"^prune_groups: costs: '0\.weight', which has a mask, is missing$"):
        lf.prune_groups(groups, density=0.5, costs={"2.weight": 1.0})(state)
    with pytest.raises(UserError, match=r"scores of 0\.weight are NaN"):
        lf.prune_groups(groups, density=0.5, score=lambda p, m: {name: p[name] * torch.nan for name in m})(state)
    other = lf.init(
        lf.from_module(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)))
    )
    for use in (lf.prune_groups(groups, density=0.5), lambda state: lf.without_dead_groups(state, groups)):
        with pytest.raises(UserError, match=r"^groups: belong to another network, in which '(0|2)\.weight' is larger"):
            use(other)


def test_what_is_wanted_may_lie_half_a_group_below_what_is_left() -> None:
    """Of two units of four weights one stays; less than two weights are another's."""
    state = lf.init(lf.from_module(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))))
    groups = [
        Group(
            "units", 0, (lf.GroupPart("0.weight", 0, torch.tensor([n])), lf.GroupPart("2.weight", 1, torch.tensor([n])))
        )
        for n in range(2)
    ]
    assert lf.count(lf.prune_groups(groups, density=2.4 / 8)(state).masks).kept == 4
    with pytest.raises(
        UserError, match=r"^prune_groups: whole groups leave at least 50 % of the remaining weights, but 20 %"
    ):
        lf.prune_groups(groups, density=1.6 / 8)(state)
