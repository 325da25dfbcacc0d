"""AC/DC, GraNet, MEST, SRigL and CHT against trainings in plain PyTorch, their masks by the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from hypothesis import given, settings, strategies as st
from test_methods_by_hand import (
    DENSITY,
    LAYERS,
    SEED,
    STEPS,
    Setting,
    a_setting,  # noqa: F401
    agree,
    by_hand,
    dense_of,
    largest,
    outputs,
    samples,
)
from torch import Tensor

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.functions import topological_growth_score
from lthfunc.experiments.methods.acdc import phases
from lthfunc.experiments.methods.srigl import exchanged
from lthfunc.sparsify.growth import ties_drawn
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Masks, Params

TOTAL, END, EVERY_UPDATE = 64 * 20 + 200, round(0.75 * STEPS), 3


def slopes(setting: Setting, step: int, params: Params) -> Params:
    """|gradient| of the dense network on the batch of an update."""
    ((x, y),) = samples(setting, "growth", step, 1)
    leaves = {each: leaf.detach().clone().requires_grad_() for each, leaf in params.items()}
    with torch.enable_grad():
        F.cross_entropy(outputs(leaves, x), y).backward()
    return {each: gradient_of(leaves[each]).abs() for each in LAYERS}


def top(scores: Tensor, among: Tensor, number: int) -> Tensor:
    """The best of some places, the first of equals."""
    order = torch.where(among, scores, -torch.inf).flatten().argsort(descending=True, stable=True)
    return torch.zeros(scores.numel(), dtype=torch.bool).index_fill(0, order[:number], True).view(scores.shape)


def cosine(share: float, step: int) -> float:
    return share / 2 * (1 + math.cos(math.pi * step / END))


def test_acdc_trains_sparse_and_dense_in_turn(setting: Setting) -> None:
    """Of 100 epochs, sparse phases begin with 10, 20, …, 70 and 85, dense ones with 15, 25, …, 65 and 75."""
    assert phases(100, None, 0.85) == ([*range(10, 71, 10), 85], [*range(15, 76, 10)])
    assert phases(100, 10, 0.9) == ([20, 40, 60, 90], [30, 50, 70])
    assert phases(40, 8, 0.75) == ([16, 30], [24])
    assert phases(120, 33, 0.85) == ([66, 102], [99])
    assert phases(5, None, 0.8) == ([2, 4], [3])
    with pytest.raises(UserError, match="--steps: the training is too short for a sparse and a dense phase"):
        phases(4, None, 0.8)
    dense = dense_of(setting)
    sparse = {*range(12, 85, 12), 102}

    def change(step: int, params: Params, masks: Masks, velocity: Params) -> Masks:
        if step not in sparse:
            for leaf in velocity.values():
                leaf.zero_()
            return dense.masks
        masks = largest({name: params[name].abs() for name in LAYERS}, round(DENSITY * TOTAL), masks)
        for name, mask in masks.items():
            params[name] *= mask
            velocity[name] *= mask
        return masks

    at = sorted(sparse | {*range(18, 91, 12)})
    agree(setting, setting.outcome("acdc"), by_hand(setting, dense.params, dense.masks, change=change, at=at))
    with pytest.raises(UserError, match=r"--update-every: invalid value 34 .expected at most 33"):
        setting.plan("acdc", update_every=34)


def test_granet_prunes_and_regenerates(setting: Setting) -> None:
    """Liu et al. 2021, alg. 1, and their code: gradients before the pruning, and dropped weights that grow stay."""
    dense = dense_of(setting)

    def change(step: int, params: Params, masks: Masks, velocity: Params) -> Masks:
        hopes = slopes(setting, step, params)
        density = DENSITY + (1 - DENSITY) * (1 - step / END) ** 3
        flat = [torch.cat([tree[name].flatten() for name in LAYERS]) for tree in (params, masks)]
        chosen = top(flat[0].abs(), flat[1].bool(), round(density * TOTAL)).split(
            [params[name].numel() for name in LAYERS]
        )
        masks = {name: part.view_as(params[name]) for name, part in zip(LAYERS, chosen, strict=True)}
        new = {}
        for name, mask in masks.items():
            number = round(cosine(0.5, step) * int(mask.sum()))
            stays = top(params[name].abs(), mask, int(mask.sum()) - number)
            new[name] = stays | top(hopes[name], ~stays, number)
            params[name] *= new[name] & masks[name]
            velocity[name] *= new[name] & masks[name]
        return new

    at = range(EVERY_UPDATE, END + 1, EVERY_UPDATE)
    assert setting.plan("granet").updates[0].steps == tuple(at)
    found = setting.outcome("granet")
    agree(setting, found, by_hand(setting, dense.params, dense.masks, change=change, at=at))
    assert lf.count(found.masks).kept == round(DENSITY * TOTAL)


@pytest.mark.parametrize("weight", [0.5, 50.0])
def test_mest_drops_by_magnitude_and_gradient(setting: Setting, weight: float) -> None:
    start = lf.prune(density=DENSITY, score=lf.random_scores(SEED, "score"), allocate=lf.uniform())(dense_of(setting))

    def change(step: int, params: Params, masks: Masks, velocity: Params) -> Masks:
        slope, hopes, new = slopes(setting, step, params), lf.random_scores(SEED, "growth", step)(params, masks), {}
        for name, mask in masks.items():
            number = round(cosine(0.2, step) * int(mask.sum()))
            stays = top(params[name].abs() + weight * slope[name], mask, int(mask.sum()) - number)
            new[name] = stays | top(hopes[name], ~stays, number)
            params[name] *= stays
            velocity[name] *= stays
        return new

    at = range(EVERY_UPDATE, END, EVERY_UPDATE)
    found = setting.outcome("mest", gradient_weight=weight)
    agree(setting, found, by_hand(setting, start.params, start.masks, change=change, at=at))


def by_neuron(worth: Tensor, hope: Tensor, mask: Tensor, share: float, least: float) -> tuple[Tensor, Tensor]:
    """SRigL's update of a layer, neuron by neuron (Lasby et al. 2024, sec. 3.1), where each keeps some."""
    count, rows = int(mask.sum()), range(len(mask))
    number = round(share * count)
    salient = top(worth, mask, count - number) | top(hope, torch.ones_like(mask), number)
    fan_in = count / sum(bool(mask[row].any()) for row in rows)
    live = [row for row in rows if int(salient[row].sum()) >= least * fan_in]
    room = torch.zeros_like(mask).index_fill(0, torch.tensor(live), True)
    stays, new = top(worth, mask & room, min(count - number, int((mask & room).sum()))), torch.zeros_like(mask)
    for place, row in enumerate(live):
        wanted = count // len(live) + (place < count % len(live))
        mine = stays[row] & top(worth[row], stays[row], min(wanted, int(stays[row].sum())))
        stays[row] = mine
        new[row] = mine | top(hope[row], ~mine, wanted - int(mine.sum()))
    stays[[row for row in rows if row not in live]] = False
    return stays, new


def test_srigl_gives_neurons_the_same_number_and_leaves_some_out(setting: Setting) -> None:
    how: dict[str, Any] = {"score": lf.random_scores(SEED, "score"), "allocate": lf.erk(), "select": lf.per_output()}
    start = lf.prune(density=DENSITY, **how)(dense_of(setting))

    def change(step: int, params: Params, masks: Masks, velocity: Params) -> Masks:
        hopes, new = slopes(setting, step, params), {}
        for name, mask in masks.items():
            least = 0.0 if name == "3.weight" else 0.5
            stays, new[name] = by_neuron(params[name].abs(), hopes[name], mask, cosine(0.3, step), least)
            params[name] *= stays
            velocity[name] *= stays
        return new

    at = range(EVERY_UPDATE, END, EVERY_UPDATE)
    found = setting.outcome("srigl", min_salient=0.5)
    agree(setting, found, by_hand(setting, start.params, start.masks, change=change, at=at))
    hidden, out = (found.masks[name].sum(1) for name in LAYERS)
    assert 0 < int((hidden == 0).sum()) < 20
    assert int(hidden[hidden > 0].max() - hidden[hidden > 0].min()) <= 1
    assert int(out.max() - out.min()) <= 1
    assert lf.layer_counts(found.masks) == lf.layer_counts(start.masks)


def test_neurons_that_remain_hold_all_weights_of_a_layer() -> None:
    """However few are salient: with 11 of 12 weights all three must stay; an empty layer stays empty."""
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[2, 3] = False
    worth = torch.tensor([[9.0, 8, 7, 6], [5, 4, 3, 2], [0.1, 0.1, 0.1, 0.1]])
    stays, new = exchanged(worth, worth, mask, 0.5, 1.0)
    assert new.sum(1).tolist() == [4, 4, 3]
    assert not (stays & ~mask).any()
    few = torch.zeros_like(mask)
    few[:, 0] = True
    assert exchanged(worth, worth, few, 0.5, 1.0)[1].sum(1).tolist() == [3, 0, 0]
    none = torch.zeros_like(mask)
    assert not exchanged(worth, worth, none, 0.5, 0.3)[1].any()


def paths_of_three(links: Tensor, u: int, v: int) -> float:
    """The paths u - a - b - v, each by the links of a and b that lead elsewhere (Zhang et al. 2024, eq. 1)."""
    inputs, outputs = ({int(each) for each in row.nonzero()} for row in (links[u], links[:, v]))
    paths = [(a, b) for a in inputs for b in outputs if links[b, a] and a != v and b != u]
    of_paths = {("in", a) for a, _ in paths} | {("out", b) for _, b in paths} | {("out", u), ("in", v)}
    total = 0.0
    for a, b in paths:
        of_a = [other for other in range(len(links)) if links[other, a] and ("out", other) not in of_paths]
        of_b = [other for other in range(links.shape[1]) if links[b, other] and ("in", other) not in of_paths]
        total += 1 / math.sqrt((1 + len(of_a)) * (1 + len(of_b)))
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0.1, 0.9), st.integers(0, 99))
def test_paths_of_three_links_are_counted_by_where_else_they_lead(m: int, k: int, density: float, seed: int) -> None:
    links = torch.rand(m, k, generator=torch.Generator().manual_seed(seed)) < density
    found = lf.ch3_l3({"w": torch.zeros(m, k, dtype=torch.float64)}, {"w": links})["w"]
    for u, v in (~links).nonzero().tolist():
        assert float(found[u, v]) == pytest.approx(paths_of_three(links, u, v), rel=1e-12)
    assert torch.isfinite(found).all()


def test_channels_and_places_of_a_kernel_are_inputs() -> None:
    mask = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.4
    weights = {"c": torch.zeros(mask.shape), "d": torch.zeros(5, 18, dtype=torch.float64)}
    found = lf.ch3_l3(weights, {"c": mask, "d": mask.flatten(1)})
    assert (found["c"].dtype, found["d"].dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(found["c"].flatten(1).double(), found["d"], rtol=1e-6, atol=0)
    assert found["c"].shape == mask.shape


def test_links_of_equal_scores_grow_anywhere() -> None:
    """Every link scores 0 in a layer of one output: one position is as likely as another."""
    mask = {"w": torch.zeros(1, 400, dtype=torch.bool).index_fill(1, torch.arange(0, 400, 100), True)}
    places = []
    for step in range(3):
        ranks = topological_growth_score(SEED, step)({"w": torch.zeros(1, 400)}, mask)["w"]
        assert sorted(ranks.flatten().tolist()) == list(range(400))
        places.append(ranks.flatten().topk(100).indices)
        assert 150 < float(places[-1].double().mean()) < 250
    assert not torch.equal(places[0].sort().values, places[1].sort().values)
    scores = {"w": torch.tensor([3.0, 1.0, 3.0, 2.0])}
    assert ties_drawn(scores, SEED)["w"][[1, 3]].tolist() == [0, 1]


def test_cht_grows_by_what_is_left_after_the_drop(setting: Setting) -> None:
    start = lf.prune(density=DENSITY, score=lf.random_scores(SEED, "score"), allocate=lf.erk())(dense_of(setting))

    def change(step: int, params: Params, masks: Masks, velocity: Params) -> Masks:
        new = {}
        for name, mask in masks.items():
            number = round(0.3 * int(mask.sum()))  # constant
            stays = top(params[name].abs(), mask, int(mask.sum()) - number)
            scores, drawn = lf.ch3_l3(params, {name: stays})[name], generator(SEED, "growth-ties", step, name)
            first = torch.empty(mask.numel(), dtype=torch.long)
            first[torch.randperm(mask.numel(), generator=drawn)] = torch.arange(mask.numel())
            candidates = (~stays).flatten().nonzero().flatten().tolist()
            worth = [(float(scores.flatten()[at]), int(first[at])) for at in candidates]
            grown = sorted(range(len(candidates)), key=worth.__getitem__)[len(candidates) - number :]
            new[name] = stays.clone()
            new[name].view(-1)[[candidates[at] for at in grown]] = True
            params[name] *= stays
            velocity[name] *= stays
        return new

    found = setting.outcome("cht", update_every=10)
    agree(setting, found, by_hand(setting, start.params, start.masks, change=change, at=range(10, END, 10)))
    assert lf.layer_counts(found.masks) == lf.layer_counts(start.masks)
    assert setting.plan("cht").updates[0].exchange is not None  # so that survivors alone can be moved
