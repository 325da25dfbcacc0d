"""Methods against trainings in plain PyTorch: torch.optim's SGD, a plain loop, and masks by the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from method_plans import Outcome, drawn_apart, is_once, outcome, plan_for
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.experiments.iterative import Plan
from lthfunc.training.batches import batches
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.rng import generator, key
from lthfunc.trees.types import Batch, Masks, Params, Split

SEED, STEPS, EVERY, BATCH, DENSITY, RATE = 3, 120, 5, 40, 0.2, 0.5
LAYERS = ("1.weight", "3.weight")


class Setting(NamedTuple):
    """A network, its data, and a trainer of it."""

    model: lf.Model
    trainer: lf.Trainer

    def plan(self, name: str, **given: Any) -> Plan:
        """A method with the same settings; two rounds of iterative ones."""
        once = is_once(name)
        values = {"density": DENSITY, **({} if once else {"rounds": 2}), **given}
        data = self.trainer.data
        return plan_for(
            name, self.model, data, steps=STEPS, eval_every=EVERY, batch_size=BATCH, lr=RATE, momentum=0.9, **values
        )

    def outcome(self, name: str, **given: Any) -> Outcome:
        """What a method ends as."""
        return outcome(self.plan(name, **given), SEED)


@pytest.fixture(scope="module", name="setting")
def a_setting(few_digits: lf.Dataset) -> Setting:
    """In float64, where rounding chooses no other masks; at a rate at which validation prefers an earlier step."""

    def wide(split: Split) -> Split:
        return Split(split.x.double() / 16, split.y)

    data = few_digits._replace(
        train=wide(few_digits.train), val=wide(few_digits.val), test=wide(few_digits.test), scale=None
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))
    model = lf.from_module(net.double())
    return Setting(model, make_trainer(model, data, optimizer=lf.sgd(RATE, momentum=0.9), batch_size=BATCH))


def samples(setting: Setting, purpose: str, number: int, count: int) -> list[Batch]:
    return lf.sample_batches(setting.trainer.data, BATCH, count, key(SEED, purpose, number))


def outputs(params: Params, x: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(x.flatten(1), params["1.weight"], params["1.bias"]))
    return F.linear(hidden, params["3.weight"], params["3.bias"])


class Quality(NamedTuple):
    loss: float
    accuracy: float


def quality(params: Params, split: Split) -> Quality:
    out = outputs(params, split.x).detach()
    return Quality(float(F.cross_entropy(out, split.y)), float((out.argmax(1) == split.y).double().mean()))


#: (step, params, masks, velocity) -> new masks; it changes params and velocity in place.
Change = Callable[[int, Params, Masks, Params], Masks]


class Trained(NamedTuple):
    last: Params
    chosen: Params
    step: int
    masks: Masks


def by_hand(
    setting: Setting,
    start: Params,
    masks: Masks,
    *,
    first: int = 0,
    until: int = STEPS,
    change: Change | None = None,
    at: Iterable[int] = (),
    rates: Callable[[int], float] = lambda step: RATE,
) -> Trained:
    """Train in place with torch.optim.SGD; masks change at some steps; after the last of them validation chooses."""
    data, steps = setting.trainer.data, list(at)
    params: Params = {
        name: nn.Parameter(leaf.clone() * masks[name] if name in masks else leaf.clone())
        for name, leaf in start.items()
    }
    optimizer = torch.optim.SGD(params.values(), RATE, momentum=0.9)
    counted = max(steps, default=first)
    best, chosen, when = math.inf, {}, -1
    for step in range(first, until + 1):
        if step in steps and change is not None:
            velocity = {name: optimizer.state[leaf]["momentum_buffer"] for name, leaf in params.items()}
            with torch.no_grad():
                masks = change(step, params, masks, velocity)
        first_look = step == first and not steps  # an update is not followed by an evaluation at its step
        if first_look or (step > counted and (step % EVERY == 0 or step == until)):
            loss = quality(params, data.val).loss
            if loss < best:
                best, when = loss, step
                chosen = {name: leaf.detach().clone() for name, leaf in params.items()}
        if step == until:
            break
        ((x, y),) = batches(data.train, BATCH, SEED, step, step + 1)
        optimizer.param_groups[0]["lr"] = rates(step)
        optimizer.zero_grad()
        F.cross_entropy(outputs(params, x), y).backward()
        for name, mask in masks.items():
            gradient_of(params[name]).mul_(mask)
        optimizer.step()
    return Trained({name: leaf.detach() for name, leaf in params.items()}, chosen, when, masks)


def agree(setting: Setting, found: Outcome, expected: Trained) -> None:
    """The same masks, the network that validation chose, and its test set."""
    for name, mask in expected.masks.items():
        assert torch.equal(found.masks[name], mask), name
    for name, leaf in expected.chosen.items():
        torch.testing.assert_close(found.ticket.params[name], leaf, rtol=1e-6, atol=1e-8)
    assert found.test == pytest.approx(quality(expected.chosen, setting.trainer.data.test), rel=1e-6)


def dense_of(setting: Setting) -> lf.TrainState:
    return lf.init(setting.model, SEED)


def largest(scores: Params, count: int, alive: Masks) -> Masks:
    """The `count` best of all layers' living weights."""
    flat = torch.cat([torch.where(alive[name], scores[name], -torch.inf).flatten() for name in LAYERS])
    bound = flat.sort(descending=True).values[count - 1]
    return {name: (scores[name] >= bound) & alive[name] for name in LAYERS}


def test_gradual_pruning_follows_the_cubic_and_keeps_moments(setting: Setting) -> None:
    dense = dense_of(setting)
    end, total = round(0.75 * STEPS), 64 * 20 + 200
    begin, every = end // 10, end // 30

    def change(step: int, params: Params, masks: Masks, velocity: Params) -> Masks:
        density = DENSITY + (1 - DENSITY) * (1 - (step - begin) / (end - begin)) ** 3  # Zhu & Gupta 2017, eq. 1
        masks = largest({name: params[name].abs() for name in LAYERS}, round(density * total), masks)
        for name, mask in masks.items():
            params[name] *= mask
            velocity[name] *= mask
        return masks

    expected = by_hand(setting, dense.params, dense.masks, change=change, at=range(begin, end + 1, every))
    found = setting.outcome("gradual")
    agree(setting, found, expected)
    assert not torch.allclose(expected.chosen["1.weight"], expected.last["1.weight"]), "an earlier step was chosen"
    assert found.steps == STEPS
    assert lf.count(found.masks).kept == round(DENSITY * total)


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_drop_and_regrow_by_the_papers_formulas(setting: Setting, name: str) -> None:
    """Evci et al. 2020, alg. 1; for SET, regrowth at random. Moments go on where weights stay."""
    dense = dense_of(setting)
    end = round(0.75 * STEPS)
    every = end // 30
    start = lf.prune(density=DENSITY, score=lf.random_scores(SEED, "score"), allocate=lf.erk())(dense)

    def promise(step: int, params: Params) -> Params:
        ((x, y),) = samples(setting, "growth", step, 1)
        leaves = {each: leaf.detach().clone().requires_grad_() for each, leaf in params.items()}
        with torch.enable_grad():
            F.cross_entropy(outputs(leaves, x), y).backward()
        return {each: gradient_of(leaves[each]).abs() for each in LAYERS}

    def change(step: int, params: Params, masks: Masks, velocity: Params) -> Masks:
        share = 0.3 / 2 * (1 + math.cos(math.pi * step / end))
        hopes, new = promise(step, params) if name == "rigl" else {}, {}
        for each in LAYERS:
            weight, mask = params[each], masks[each]
            number = round(share * int(mask.sum()))
            worth = torch.where(mask, weight.abs(), -torch.inf).flatten()
            first = worth.argsort(descending=True, stable=True)[: int(mask.sum()) - number]  # the first of equals stay
            stays = torch.zeros_like(mask).flatten().index_fill(0, first, True).view(mask.shape)
            if name == "rigl":
                hope = torch.where(stays, -torch.inf, hopes[each]).flatten()
                grown = hope.argsort(descending=True, stable=True)[:number]
            else:
                draw = generator(SEED, "random-growth", step, each)
                free = (~stays).flatten().nonzero().flatten()
                grown = free[sorted(drawn_apart(number, len(free), draw))]
            new[each] = stays.flatten().index_fill(0, grown, True).view(mask.shape)
            weight *= stays
            velocity[each] *= stays
        return new

    at = range(every, end, every)
    expected = by_hand(setting, start.params, start.masks, change=change, at=at)
    found = setting.outcome(name)
    agree(setting, found, expected)
    assert found.steps == STEPS
    assert lf.mask_distance(found.masks, start.masks) > 0.1


def test_masks_change_until_three_quarters_of_the_training_and_not_at_its_end(setting: Setting) -> None:
    for name in ("set", "rigl"):
        assert setting.plan(name).updates[0].steps == tuple(range(3, 90, 3))
    assert setting.plan("gradual").updates[0].steps == tuple(range(9, 91, 3))
    assert setting.plan("early-bird").updates[0].steps == tuple(range(3, 120, 3))
    given = {"update_every": 7, "update_until": 0.5}
    assert setting.plan("set", **given).updates[0].steps == tuple(range(7, 60, 7))
    assert setting.plan("gradual", **given).updates[0].steps == (*range(6, 60, 7), 60)


def test_ablations_prune_the_drawn_weights_and_not_pruned_ones(setting: Setting) -> None:
    """Frankle et al. 2021, sec. 5: shuffled masks uncover weights that the score had pruned, as they were drawn."""
    dense = dense_of(setting)
    snip = setting.outcome("snip").masks
    redrawn = lf.init(setting.model, key(SEED, "control-reinit", 1)).params
    shuffled = lf.shuffled_masks(snip, key(SEED, "control-shuffle", 1))
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in dense.params.items()}
    drawn = samples(setting, "score", 1, 10)
    torch.stack([F.cross_entropy(outputs(leaves, x), y) for x, y in drawn]).mean().backward()
    least = {name: -(leaves[name] * gradient_of(leaves[name])).abs() for name in LAYERS}
    inverted = largest(least, round(DENSITY * 1480), dense.masks)
    for name, start, masks in (
        ("snip", dense.params, largest({name: -leaf for name, leaf in least.items()}, 296, dense.masks)),
        ("snip-shuffled", dense.params, shuffled),
        ("snip-reinit", redrawn, snip),
        ("snip-inverted", dense.params, inverted),
    ):
        agree(setting, setting.outcome(name), by_hand(setting, start, masks))


def test_rounds_before_training_prune_step_by_step(setting: Setting) -> None:
    """With a score of what is left in each round, as SynFlow's is."""
    seen = []

    def score(params: Params, masks: Masks) -> Params:
        seen.append(lf.density(masks))
        return lf.magnitude(params, masks)

    for name in ("synflow", "snip", "grasp-reinit"):
        plan = setting.plan(name, score_rounds=4)._replace(score=lambda trained, now: score)
        assert outcome(plan, SEED).steps == STEPS
        assert seen == pytest.approx([DENSITY ** (k / 4) for k in range(4)], abs=1e-3)
        seen.clear()
    assert [setting.plan(name).prunings for name in ("synflow", "snip", "grasp")] == [100, 1, 1]
    once = setting.outcome("random-uniform")
    random = lf.prune(density=DENSITY, score=lf.random_scores(SEED, "score"), allocate=lf.uniform())(dense_of(setting))
    agree(setting, once, by_hand(setting, random.params, random.masks))


def test_each_density_is_pruned_from_the_whole_network(setting: Setting) -> None:
    """Several rounds of a method without dense training are independent trainings, at one density each."""
    for name in ("snip", "rigl", "edge-popup"):
        given = {"density": None, "densities": "0.5,0.2"}
        rounds = list(lf.iterative(setting.plan(name, **given), SEED))
        assert [each.number for each in rounds] == [1, 2]
        alone = list(lf.iterative(setting.plan(name, density=0.5), SEED))
        assert lf.same_bits(rounds[0].fit.state, alone[0].fit.state)
        assert [lf.count(each.fit.state.masks).kept for each in rounds] == pytest.approx([740, 296], abs=1), name


@pytest.mark.parametrize(
    ("name", "late", "rounds", "tuned"),
    [("imp", 0, 2, ""), ("imp-late", 6, 2, ""), ("imp-lr", 0, 2, "rate"), ("one-shot", 0, 1, "")],
)
def test_rounds_by_hand(setting: Setting, name: str, late: int, rounds: int, tuned: str) -> None:
    """Frankle & Carbin 2019, sec. 1; Renda et al. 2020, sec. 2: the last weights are pruned, the chosen ones tested."""
    dense = dense_of(setting)
    anchor = by_hand(setting, dense.params, dense.masks, until=late).last if late else dense.params
    masks, start, first, spent = dense.masks, anchor, late, late
    for number in range(1, rounds + 1):
        whole = number == 1  # the dense training passes through the anchor, its moments with it
        end = by_hand(setting, dense.params if whole else start, masks, first=0 if whole else first).last
        spent += STEPS - first
        kept = round(DENSITY ** (number / rounds) * 1480)
        masks = largest({each: end[each].abs() for each in LAYERS}, kept, masks)
        start = end if tuned == "rate" else anchor
    found = setting.outcome(name)
    agree(setting, found, by_hand(setting, start, masks, first=first))
    assert found.steps == spent + STEPS - first
