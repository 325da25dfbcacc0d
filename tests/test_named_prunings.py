"""What settings' names stand for in pruning: allocations, densities, structures, rewindings, controls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import settings, state_of
from torch import nn

import lthfunc as lf
from lthfunc.catalog.pruning import CONTROLS, REWINDINGS
from lthfunc.errors import UserError
from lthfunc.experiments.functions import (
    allocation_of,
    densities_of,
    rewinding_of,
    score_of,
    structure_of,
    tidying_of,
)
from lthfunc.experiments.rewinding_and_controls import RoundContext, end_of, start_of
from lthfunc.trees.types import Params

OWN = """
def score(params, masks): return {name: -params[name] for name in masks}
def allocate(scores, masks, fraction): return {name: mask.sum() for name, mask in masks.items()}
def select(scores, masks, keep): return dict(masks)
def falling(rounds): return [0.9 / (k + 1) for k in range(rounds)]
def too_few(rounds): return [0.5]
def rising(rounds): return [0.1, 0.2, 0.3]
def broken(rounds): return rounds / 0
def same(pruned, anchor): return pruned
def nothing(pruned, anchor): return pruned._replace(params=None)
def other(pruned, anchor): return pruned._replace(params={})
def masks(pruned, anchor): return pruned._replace(masks={})
def buffers(pruned, anchor): return pruned._replace(buffers={"x": pruned.step})
def dense(pruned, anchor): return pruned._replace(params=anchor.params)
def writes(pruned, anchor):
    for leaf in anchor.params.values(): leaf.zero_()
    return pruned
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("own") / "parts_of_mine.py"
    file.write_text(OWN)
    return str(file)


def test_allocations_by_name_are_those_functions(own: str) -> None:
    _, state = state_of()
    scores = lf.magnitude(state.params, state.masks)
    for floor in (0, 3):
        expected = {
            "global": lf.globally_with_minimum(3) if floor else lf.globally,
            "uniform": lf.uniform(floor),
            "er": lf.erdos_renyi(floor),
            "erk": lf.erk(floor),
            "balanced": lf.balanced(floor),
        }
        if not floor:
            expected |= {"lamp": lf.lamp, "layerwise": lf.layerwise()}
        for name, allocate in expected.items():
            found = allocation_of(settings(allocate=name, min_layer_weights=floor))(scores, state.masks, 0.7)
            assert lf.same_bits(found, allocate(scores, state.masks, 0.7)), (name, floor)
    rates = {"1*": 0.25}
    found = allocation_of(settings(allocate="layerwise", layer_rate=rates))(scores, state.masks, 0.5)
    assert lf.same_bits(found, lf.layerwise(rates)(scores, state.masks, 0.5))
    mine = allocation_of(settings(allocate=f"{own}:allocate"))(scores, state.masks, 0.7)
    assert mine == {name: mask.sum() for name, mask in state.masks.items()}
    with pytest.raises(UserError, match=r"^--allocate: "):
        allocation_of(settings(allocate=f"{own}:no"))
    with pytest.raises(UserError, match=r"^--score: "):
        score_of(f"{own}:no")
    negative: Any = score_of(f"{own}:score")
    assert lf.same_bits(
        negative(SimpleNamespace(offered={}))(state.params, state.masks),
        {name: -state.params[name] for name in state.masks},
    )


def test_densities_are_listed_or_ones_own(own: str) -> None:
    assert densities_of(settings()) is None
    assert densities_of(settings(densities="0.5,0.25")) == (0.5, 0.25)
    assert densities_of(settings(densities=f"{own}:falling", rounds=3)) == (0.9, 0.45, 0.9 / 3)
    with pytest.raises(UserError, match=r"^--densities: .*a function that returns 3 densities"):
        densities_of(settings(densities=f"{own}:too_few", rounds=3))
    with pytest.raises(UserError, match=r"^--densities: .*decreasing numbers"):
        densities_of(settings(densities=f"{own}:rising", rounds=3))
    with pytest.raises(UserError, match=r"^--densities: .*broken' fails.*division by zero"):
        densities_of(settings(densities=f"{own}:broken", rounds=3))
    with pytest.raises(UserError, match=r"^--densities: "):
        densities_of(settings(densities=f"{own}:no", rounds=3))


def test_structures_by_name_are_those_functions(own: str) -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    model = lf.from_module(net)
    state = lf.init(model)
    scores = lf.magnitude(state.params, state.masks)
    keep = lf.layerwise(output_rate=1.0)(scores, state.masks, 0.75)
    expected = {
        "unstructured": lf.unstructured,
        "per-output": lf.per_output(),
        "units": lf.units([model.prunable[-1]]),
        "1:4": lf.n_of_m(1, 4, ["2*"]),
        "2x4": lf.blocks(2, 4, ["2*"]),
        "3x1": lf.blocks(3, 1, ["2*"]),
    }
    for name, select in expected.items():
        exempt = {"exempt": ("2*",)} if ":" in name or "x" in name[1:2] else {}
        found = structure_of(settings(structure=name, **exempt), model, (8,))(scores, state.masks, keep)
        assert lf.same_bits(found, select(scores, state.masks, keep)), name
    whole = lf.whole_groups(lf.dependency_groups(model, (8,)), multiple=3)(scores, state.masks, keep)
    assert not lf.same_bits(whole, lf.whole_groups(lf.dependency_groups(model, (8,)))(scores, state.masks, keep))
    found = structure_of(settings(structure="groups", group_multiple=3), model, (8,))(scores, state.masks, keep)
    assert lf.same_bits(found, whole)
    found = structure_of(settings(structure="units", exempt=("0*",)), model, (8,))(scores, state.masks, keep)
    assert lf.same_bits(found, lf.unstructured(scores, state.masks, keep))
    assert structure_of(settings(structure=f"{own}:select"), model, (8,))(scores, state.masks, keep) == state.masks
    with pytest.raises(
        UserError, match=r"^--exempt: invalid value '\*' .*leave some of what --structure groups prunes"
    ):
        structure_of(settings(structure="groups", exempt=("*",)), model, (8,))
    with pytest.raises(UserError, match=r"^--structure: invalid value 'heads' .*without an attention"):
        structure_of(settings(structure="heads", exempt=("*",)), model, (8,))
    with pytest.raises(UserError, match=r"^--structure: "):
        structure_of(settings(structure=f"{own}:no"), model, (8,))
    dead = state._replace(masks={**state.masks, "0.weight": state.masks["0.weight"].clone()})
    dead.masks["0.weight"][2] = False
    tidied = tidying_of("units", model, (8,))(dead)
    assert not tidied.masks["2.weight"][:, 2].any()
    assert int((~tidied.masks["2.weight"]).sum()) == 4
    for name in ("unstructured", "2:4", "per-output"):
        assert tidying_of(name, model, (8,))(dead) is dead


def test_rewindings_by_name_and_their_steps(own: str) -> None:
    steps = {
        "init": 0, "step:7": 7, "epoch:3": 15, "percent:7": 7, "lr:4": 4, "lr": 0, "sign:2": 2, "none": 0,
    }  # fmt: skip
    for name, step in steps.items():
        assert rewinding_of(name, 5, 100) == (start_of(REWINDINGS, name), step)
    model, state = state_of()
    anchor = lf.init(model, 3)
    now = RoundContext(model, 0, 1, anchor)
    start, step = rewinding_of(f"{own}:same", 5, 100)
    assert (start.at_anchor, step) == (False, 0)
    assert lf.same_bits(start.make(state, now), state)
    rewinding_of(f"{own}:writes", 5, 100)[0].make(state, now)
    assert lf.same_bits(anchor, lf.init(model, 3))
    dense = rewinding_of(f"{own}:dense", 5, 100)[0].make(state._replace(opt=anchor.params), now)
    assert lf.same_bits(dense.params, lf.apply_masks(anchor.params, state.masks))
    assert lf.same_bits(dense.opt, dense.params)
    for name, words in {
        "nothing": "returned another network: it has no dictionary",
        "other": "returned another network: ",
        "masks": "returned another network: ",
        "buffers": "returned another network: ",
    }.items():
        with pytest.raises(UserError, match=f"^--rewind: .*{words}"):
            rewinding_of(f"{own}:{name}", 5, 100)[0].make(state, now)
    with pytest.raises(UserError, match=r"^--rewind: "):
        rewinding_of(f"{own}:no", 5, 100)


def test_starts_are_at_the_anchor_or_not() -> None:
    assert {name: start.at_anchor for name, start in REWINDINGS.items()} == {
        "init": True, "step:K": True, "epoch:K": True, "percent:K": True, "sign": True, "lr": True, "none": False,
        "last-lr": False, "reinit": False,
    }  # fmt: skip
    assert {name: start.at_anchor for name, start in CONTROLS.items()} == {
        "reinit": False, "random-mask": True, "layer-random-mask": True, "shuffled-mask": True, "inverted-mask": True,
    }  # fmt: skip
    steps = torch.tensor(4)
    _, state = state_of()
    assert [end_of(state._replace(step=steps), count) for count in (3, 4, 5)] == [7, 8, 5]


def test_rewindings_by_hand() -> None:
    model, pruned = state_of()
    pruned = pruned._replace(step=torch.tensor(9), opt=("moments",))
    anchor = lf.init(model, 3)._replace(step=torch.tensor(4))
    now = RoundContext(model, 7, 2, anchor)
    masks = pruned.masks

    def under(params: Params) -> Params:
        return lf.apply_masks(params, masks)

    for name in ("init", "step:4", "epoch:1"):
        found = start_of(REWINDINGS, name).make(pruned, now)
        assert lf.same_bits((found.params, found.masks, found.buffers), (under(anchor.params), masks, anchor.buffers))
        assert (int(found.step), found.opt) == (4, ())
    unmasked = pruned._replace(params={name: leaf + 1 for name, leaf in pruned.params.items()})
    for name in ("lr", "none", "last-lr"):
        assert lf.same_bits(start_of(REWINDINGS, name).make(unmasked, now).params, under(unmasked.params))
    signed = start_of(REWINDINGS, "sign").make(pruned, now)
    for layer, mask in masks.items():
        spread = anchor.params[layer].std(correction=0)
        assert torch.equal(signed.params[layer], torch.where(mask, anchor.params[layer].sign() * spread, 0))
    assert torch.equal(signed.params["1.bias"], anchor.params["1.bias"])
    for name, step in {"lr": 4, "none": 0, "last-lr": 9}.items():
        found = start_of(REWINDINGS, name).make(pruned, now)
        assert lf.same_bits((found.params, found.masks), (under(pruned.params), masks))
        assert (int(found.step), found.opt) == (step, ())
    drawn = start_of(REWINDINGS, "reinit").make(pruned, now), start_of(CONTROLS, "reinit").make(pruned, now)
    assert not lf.same_bits(drawn[0].params, drawn[1].params)
    for found in drawn:
        assert (int(found.step), found.opt) == (0, ())
        assert lf.same_bits(found.params, under(found.params))
    assert not lf.same_bits(drawn[0].params, start_of(REWINDINGS, "reinit").make(pruned, now._replace(number=3)).params)
    assert not lf.same_bits(drawn[0].params, start_of(REWINDINGS, "reinit").make(pruned, now._replace(seed=8)).params)


def test_controls_by_hand() -> None:
    model, pruned = state_of()
    anchor = lf.init(model, 3)._replace(step=torch.tensor(4))
    counts = {name: int(mask.sum()) for name, mask in pruned.masks.items()}
    now = RoundContext(model, 7, 2, anchor)
    found = {name: start_of(CONTROLS, name).make(pruned, now) for name in CONTROLS}
    for name, state in found.items():
        if name != "reinit":
            assert lf.same_bits(state.params, lf.apply_masks(anchor.params, state.masks)), name
            assert int(state.step) == 4
    assert lf.same_bits(found["reinit"].masks, pruned.masks)
    assert lf.count(found["random-mask"].masks).kept == sum(counts.values())
    for name in ("layer-random-mask", "shuffled-mask"):
        assert {layer: int(mask.sum()) for layer, mask in found[name].masks.items()} == counts
        assert not lf.same_bits(found[name].masks, pruned.masks)
    # Of a dense-ish ticket all that it went without, of a sparse one as many as it has.
    assert lf.same_bits(found["inverted-mask"].masks, lf.inverted_masks(pruned.masks))
    sparse = lf.prune(density=0.2)(pruned)
    inverse = start_of(CONTROLS, "inverted-mask").make(sparse, RoundContext(model, 7, 2, anchor)).masks
    for layer, mask in sparse.masks.items():
        assert int(inverse[layer].sum()) == int(mask.sum())
        assert not (inverse[layer] & mask).any()
    later = start_of(CONTROLS, "shuffled-mask").make(pruned, RoundContext(model, 7, 3, anchor))
    assert not lf.same_bits(later.masks, found["shuffled-mask"].masks)
