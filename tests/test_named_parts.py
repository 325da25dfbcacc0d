"""What settings' names stand for, number by number: schedules, optimisers, scores, allocations, rewindings."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import data, decided, settings, state_of
from torch import nn

import lthfunc as lf
from lthfunc.catalog.pruning import CONTROLS, REWINDINGS
from lthfunc.errors import UserError
from lthfunc.experiments.functions import (
    ScoreContext,
    allocation_of,
    densities_of,
    rewinding_of,
    score_of,
    structure_of,
    tidying_of,
)
from lthfunc.experiments.objective import (
    check_last_rate,
    loss_of_name,
    make_optimizer,
    metric_of_name,
    schedule_of,
)
from lthfunc.experiments.rewinding_and_controls import RoundContext, end_of, start_of
from lthfunc.training.losses import accuracy, cross_entropy, huber, mean_absolute_error, mean_squared_error
from lthfunc.training.optimizers import AdamNumbers, SGDNumbers
from lthfunc.trees.rng import key
from lthfunc.trees.types import Params, Split


def test_schedules_by_name_are_those_functions() -> None:
    expected = {
        "constant": lf.constant(0.4),
        "step": lf.stepwise(0.4, (8, 10)),  # after 2/3 and 5/6 of 13 steps
        "cosine": lf.cosine(0.4, 13),
        "cyclic": lf.cyclic(0.4, 13, 3),
        "one-cycle": lf.one_cycle(0.4, 13),
        "triangular": lf.triangular(0.4, 13),
        "trapezoidal": lf.trapezoidal(0.4, 13),
    }
    for name, table in expected.items():
        assert torch.equal(schedule_of(settings(schedule=name, cycles=3), 13), table), name
        assert torch.equal(schedule_of(settings(schedule=name, cycles=3, warmup=4), 13), lf.warmup(table, 4)), name
    ends = {
        "step": lf.stepwise(0.4, (8, 10), final=0.1),
        "cosine": lf.cosine(0.4, 13, 0.1),
        "cyclic": lf.cyclic(0.4, 13, 3, 0.1),
        "one-cycle": lf.one_cycle(0.4, 13, end=0.25),
        "triangular": lf.triangular(0.4, 13, end=0.25),
        "trapezoidal": lf.trapezoidal(0.4, 13, final=0.1),
    }
    for name, table in ends.items():
        found = schedule_of(settings(schedule=name, cycles=3, lr_final=0.1), 13)
        assert torch.equal(found, table), name
        assert float(found[-1]) == pytest.approx(0.1), name
    assert torch.equal(schedule_of(settings(schedule="step", milestone=(2, 5)), 13), lf.stepwise(0.4, (2, 5)))
    assert schedule_of(settings(schedule="step"), 12).tolist() == pytest.approx([0.4] * 8 + [0.04] * 2 + [0.004])


def test_optimisers_by_name_have_their_numbers() -> None:
    given: dict[str, Any] = {"weight_decay": 0.25}
    sgd = make_optimizer(settings(momentum=0.5, nesterov=True, **given), 5)
    assert sgd.numbers == SGDNumbers(0.5, True, 0.25)
    assert make_optimizer(settings(), 5).numbers == SGDNumbers(0.0, False, 0.0)
    for name, decoupled in (("adam", False), ("adamw", True)):
        found = make_optimizer(settings(optimizer=name, **given), 5)
        assert found.numbers == AdamNumbers((0.9, 0.999), 1e-8, 0.25, decoupled)
    params, grads = {"w": torch.randn(4, 3), "b": torch.randn(4)}, {"w": torch.randn(4, 3), "b": torch.randn(4)}
    table = lf.cosine(0.4, 5)
    by_hand = {"lion": lf.lion(table, weight_decay=0.25), "muon": lf.muon(table, 0.5, weight_decay=0.25)}
    for name, expected in by_hand.items():
        momentum = {"momentum": 0.5} if name == "muon" else {}
        found = make_optimizer(settings(optimizer=name, schedule="cosine", **momentum, **given), 5)
        results = [each.update(grads, each.init(params), params, torch.tensor(2)) for each in (found, expected)]
        assert lf.same_bits(*results), name
    assert torch.equal(sgd.init(params).schedule, torch.tensor([0.4]))


OPTIMIZERS = """
given = {}
def init(params): return ()
def update(grads, state, params, step): return params, state
def pair(lr, momentum, weight_decay, schedule, steps):
    given.update(locals())
    return init, update
def whole(lr):
    import lthfunc
    return lthfunc.sgd(lr)
def three(lr): return init, update, init
def numbers(lr): return 1, 2
def listed(lr): return [init, update]
"""


def test_ones_own_optimiser_is_given_what_it_asks_for(tmp_path: Path) -> None:
    file = tmp_path / "optimizers_of_mine.py"
    file.write_text(OPTIMIZERS)
    found = make_optimizer(settings(optimizer=f"{file}:pair", momentum=0.5, weight_decay=0.25, schedule="cosine"), 7)
    assert found.mixes
    assert found.numbers is None
    seen = found.init.__globals__["given"]
    assert (seen["momentum"], seen["weight_decay"], seen["steps"]) == (0.5, 0.25, 7)
    assert torch.equal(seen["lr"], lf.cosine(0.4, 7))
    assert seen["schedule"] is seen["lr"]
    assert make_optimizer(settings(optimizer=f"{file}:whole"), 7).numbers == SGDNumbers(0.0, False, 0.0)
    for name, kind in {"three": "tuple", "numbers": "tuple", "listed": "list"}.items():
        with pytest.raises(UserError, match=f"--optimizer: .*{name}' returned a {kind}, not an lthfunc.Opt"):
            make_optimizer(settings(optimizer=f"{file}:{name}"), 7)
    with pytest.raises(UserError, match=r"^--optimizer: "):
        make_optimizer(settings(optimizer=f"{file}:nothing"), 7)


def test_losses_and_metrics_by_name_are_those_functions() -> None:
    classes, numbers = data(), data(numbers=True)
    assert loss_of_name(decided(settings(), classes), classes) is cross_entropy
    by_name = [decided(settings(loss=name), numbers) for name in ("auto", "mse", "mae", "huber")]
    assert [loss_of_name(config, numbers) for config in by_name] == [
        mean_squared_error, mean_squared_error, mean_absolute_error, huber,
    ]  # fmt: skip
    logits, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    smooth = loss_of_name(decided(settings(label_smoothing=0.3), classes), classes)
    torch.testing.assert_close(smooth(logits, y), nn.functional.cross_entropy(logits, y, label_smoothing=0.3))
    with pytest.raises(UserError, match=r"^--label-smoothing: invalid value 0.3 .*0 with --loss mse"):
        loss_of_name(decided(settings(label_smoothing=0.3), numbers), numbers)
    with pytest.raises(UserError, match=r"^--loss: 'no.module:f'|^--loss: "):
        loss_of_name(decided(settings(loss="no.module:f"), classes), classes)
    with pytest.raises(UserError, match=r"^--metric: "):
        metric_of_name(decided(settings(metric="no.module:f"), classes), classes)
    assert metric_of_name(decided(settings(), classes), classes) is accuracy
    second = metric_of_name(settings(metric="top-2"), classes)
    assert float(second(torch.tensor([[3.0, 2, 1]]), torch.tensor([1]))) == 1
    assert float(second(torch.tensor([[3.0, 2, 1]]), torch.tensor([2]))) == 0
    squared = metric_of_name(decided(settings(), numbers), numbers)
    targets, guess = numbers.train.y, numbers.train.y + 0.5
    expected = 1 - 0.25 / float(targets.double().var(correction=0))
    assert float(squared(guess, targets)) == pytest.approx(expected, rel=1e-5)
    flat = numbers._replace(train=Split(numbers.train.x, torch.ones(40, 1)))  # of no variance
    assert math.isfinite(float(metric_of_name(decided(settings(), flat), flat)(torch.zeros(2, 1), torch.ones(2, 1))))
    named = decided(settings(), numbers)
    assert (named.loss, named.metric) == ("mse", "r2")
    named = decided(settings(loss="cross-entropy", metric="top-2"), classes)
    assert (named.loss, named.metric) == ("cross-entropy", "top-2")
    named = decided(settings(), classes)
    assert (named.loss, named.metric) == ("cross-entropy", "accuracy")


def test_a_last_rate_of_nothing_is_refused_only_where_it_counts(tmp_path: Path) -> None:
    at_nothing: dict[str, Any] = {"schedule": "cosine", "rewind": "last-lr", "rounds": 2}
    with pytest.raises(
        UserError, match=r"^--rewind: last-lr goes on at the last rate of --schedule cosine, which is ab"
    ):
        check_last_rate(settings(**at_nothing), 10)
    for change in (
        {"rounds": 0},
        {"rewind": "lr"},
        {"optimizer": "a.b:c"},
        {"lr_final": 0.1},
        {"schedule": "constant"},
    ):
        check_last_rate(settings(**{**at_nothing, **change}), 10)


def test_scores_by_name_are_those_functions() -> None:
    model, trained = state_of()
    anchor, numbers = lf.init(model, 1), data()
    now = ScoreContext(model, numbers, 4, 0.3, seed=7, number=2, trained=trained, anchor=anchor)
    batches = lf.sample_batches(numbers, 4, 10, key(7, "score", 2))
    assert lf.same_bits(now.batches(), batches)
    assert len(now.batches()) == 10
    assert not torch.equal(now._replace(number=3).batches()[0][0], batches[0][0])
    loss = lf.loss_of(model, trained.buffers)
    expected = {
        "magnitude": lf.magnitude,
        "random": lf.random_scores(7, "score"),
        "large-init": lf.large_init(anchor.params),
        "magnitude-increase": lf.magnitude_increase(anchor.params),
        "distance-moved": lf.distance_moved(anchor.params),
        "large-init-large-final": lf.large_init_large_final(anchor.params),
        "movement": lf.movement(loss, batches, 0.3),
        "taylor": lf.taylor(loss, batches),
        "fisher": lf.fisher(loss, batches),
        "snip": lf.snip(loss, batches),
        "grasp": lf.grasp(loss, batches),
        "synflow": lf.synflow(lf.forward_of(model, trained.buffers), (6,)),
        "wanda": lf.wanda(lf.input_moments(model, trained, [x for x, _ in batches])),
    }
    for name, score in expected.items():
        found = score_of(name)(now)(trained.params, trained.masks)
        assert lf.same_bits(found, score(trained.params, trained.masks)), name


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
    with pytest.raises(UserError, match=r"^--densities: .*falling numbers"):
        densities_of(settings(densities=f"{own}:rising", rounds=3))
    with pytest.raises(UserError, match=r"^--densities: .*broken' called with 3 fails.*division by zero"):
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
        found = structure_of(settings(structure=name, **exempt), model)(scores, state.masks, keep)
        assert lf.same_bits(found, select(scores, state.masks, keep)), name
    found = structure_of(settings(structure="units", exempt=("0*",)), model)(scores, state.masks, keep)
    assert lf.same_bits(found, lf.unstructured(scores, state.masks, keep))
    assert structure_of(settings(structure=f"{own}:select"), model)(scores, state.masks, keep) == state.masks
    with pytest.raises(UserError, match=r"^--structure: "):
        structure_of(settings(structure=f"{own}:no"), model)
    dead = state._replace(masks={**state.masks, "0.weight": state.masks["0.weight"].clone()})
    dead.masks["0.weight"][2] = False
    tidied = tidying_of("units", model, (8,))(dead)
    assert not tidied.masks["2.weight"][:, 2].any()
    assert int((~tidied.masks["2.weight"]).sum()) == 4
    for name in ("unstructured", "2:4", "per-output"):
        assert tidying_of(name, model, (8,))(dead) is dead


def test_rewindings_by_name_and_their_steps(own: str) -> None:
    for name, step in {"init": 0, "step:7": 7, "epoch:3": 15, "lr:4": 4, "lr": 0, "sign:2": 2, "none": 0}.items():
        assert rewinding_of(name, 5) == (start_of(REWINDINGS, name), step)
    model, state = state_of()
    anchor = lf.init(model, 3)
    now = RoundContext(model, 0, 1, anchor)
    start, step = rewinding_of(f"{own}:same", 5)
    assert (start.at_anchor, step) == (False, 0)
    assert lf.same_bits(start.make(state, now), state)
    rewinding_of(f"{own}:writes", 5)[0].make(state, now)
    assert lf.same_bits(anchor, lf.init(model, 3))
    dense = rewinding_of(f"{own}:dense", 5)[0].make(state._replace(opt=anchor.params), now)
    assert lf.same_bits(dense.params, lf.apply_masks(anchor.params, state.masks))
    assert lf.same_bits(dense.opt, dense.params)
    for name, words in {
        "nothing": "returned another network: it holds no dictionary",
        "other": "returned another network: ",
        "masks": "returned another network: ",
        "buffers": "returned another network: ",
    }.items():
        with pytest.raises(UserError, match=f"^--rewind: .*{words}"):
            rewinding_of(f"{own}:{name}", 5)[0].make(state, now)
    with pytest.raises(UserError, match=r"^--rewind: "):
        rewinding_of(f"{own}:no", 5)


def test_starts_are_at_the_anchor_or_not() -> None:
    assert {name: start.at_anchor for name, start in REWINDINGS.items()} == {
        "init": True, "step:K": True, "epoch:K": True, "sign": True, "lr": True, "none": False, "last-lr": False,
        "reinit": False,
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
