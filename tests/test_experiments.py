"""Iterative pruning: densities, nesting, rewinding, controls, summaries."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from conftest import NormedNet
from torch import nn

import lthfunc as lf
from lthfunc.catalog.pruning import CONTROLS
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.functions import rewinding_of
from lthfunc.experiments.iterative import Done, Plan, Round
from lthfunc.experiments.records import record, spread, summarize
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.rewinding_and_controls import start_of
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.trainings import iterative
from lthfunc.training.trainer import make_trainer
from lthfunc.trees import ops
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.types import Dataset

STEPS = 12


def plan(data: Dataset, rewind: str = "init", controls: tuple[str, ...] = (), **changes: Any) -> Plan:
    model = lf.from_module(NormedNet())
    trainer = make_trainer(model, data, optimizer=lf.adam(1e-2), batch_size=40)
    start, anchor_step = rewinding_of(rewind, per_epoch=6, steps=100)
    base = Plan(
        model=model, trainer=trainer, steps=STEPS, eval_every=5, rounds=2, rewind=start, anchor_step=anchor_step
    )
    return base._replace(controls={name: start_of(CONTROLS, name) for name in controls}, **changes)


def tickets(rounds: list[Round]) -> list[Round]:
    return [item for item in rounds if item.variant == "ticket"]


def test_round_k_leaves_the_kth_power_and_masks_nest(few_digits: Dataset) -> None:
    rounds = list(iterative(plan(few_digits, rounds=3)))
    total = 4 * 9 + 2560
    assert [lf.count(item.start.masks).kept for item in rounds] == [total, 2077, 1662, 1330]
    for before, after in itertools.pairwise(rounds):
        for name, mask in after.start.masks.items():
            assert not (mask & ~before.start.masks[name]).any()
            # What went is the smallest of what remained at the end of the training before.
    trained = rounds[0].fit.state
    gone = torch.cat([(trained.params[n].abs())[~m] for n, m in rounds[1].start.masks.items()])
    kept = torch.cat([(trained.params[n].abs())[m] for n, m in rounds[1].start.masks.items()])
    assert gone.max() <= kept.min()


@pytest.mark.parametrize("rewind", ["init", "step:7", "epoch:1"])
def test_tickets_start_from_the_anchor_bit_for_bit(few_digits: Dataset, rewind: str) -> None:
    p = plan(few_digits, rewind=rewind)
    rounds = list(iterative(p, seed=3))
    anchor = rounds[0].anchor
    assert int(anchor.step) == {"init": 0, "step:7": 7, "epoch:1": 6}[rewind]
    # The dense network passes through the anchor: train to it independently.
    dense = lf.init(p.model, 3)
    if int(anchor.step):
        dense = lf.take_steps(p.trainer, dense, seed=3, until=int(anchor.step))[0]
    assert lf.same_bits(anchor.params, dense.params)
    for item in rounds[1:]:
        assert lf.same_bits(item.start.params, lf.apply_masks(anchor.params, item.start.masks))
        assert lf.same_bits(item.start.buffers, anchor.buffers)
        assert item.fit.curve[0].step == int(anchor.step)
        assert int(item.fit.state.step) == STEPS
    uninterrupted = lf.take_steps(p.trainer, lf.init(p.model, 3), seed=3, until=STEPS)[0]
    assert lf.same_bits(rounds[0].fit.state.params, uninterrupted.params)


def test_fine_tuning_goes_on_and_reinit_draws_anew(few_digits: Dataset) -> None:
    dense, tuned, _ = iterative(plan(few_digits, rewind="none"))
    assert lf.same_bits(tuned.start.params, lf.apply_masks(dense.fit.state.params, tuned.start.masks))
    dense, drawn, again = iterative(plan(few_digits, rewind="reinit"))
    shared = again.start.masks["fc.weight"]
    assert not (drawn.start.params["fc.weight"][shared] == again.start.params["fc.weight"][shared]).any()
    assert not (drawn.start.params["fc.weight"][shared] == dense.start.params["fc.weight"][shared]).any()


def test_controls_stand_beside_the_ticket(few_digits: Dataset) -> None:
    names = ("reinit", "random-mask", "shuffled-mask")
    rounds = list(iterative(plan(few_digits, controls=names)))
    assert [(item.number, item.variant) for item in rounds] == [
        (0, "ticket"),
        *((k, variant) for k in (1, 2) for variant in ("ticket", *names)),
    ]
    initial = rounds[0].start.params
    for k in (1, 2):
        by = {item.variant: item for item in rounds if item.number == k}
        ticket, reinit, random, shuffled = (by[name].start for name in ("ticket", *names))
        assert lf.same_bits(reinit.masks, ticket.masks)
        live = ticket.masks["fc.weight"]
        assert not (reinit.params["fc.weight"][live] == ticket.params["fc.weight"][live]).any()
        assert lf.count(random.masks) == lf.count(ticket.masks)
        assert lf.layer_counts(shuffled.masks) == lf.layer_counts(ticket.masks)
        for control in (random, shuffled):
            assert not lf.same_bits(control.masks, ticket.masks)
            assert lf.same_bits(control.params, lf.apply_masks(initial, control.masks))
    # Controls change nothing of the ticket's own path.
    alone = list(iterative(plan(few_digits)))
    assert all(lf.same_bits(a.fit.state, b.fit.state) for a, b in zip(alone, tickets(rounds), strict=True))


def test_the_chosen_network_is_tested_and_the_last_one_is_pruned(few_digits: Dataset) -> None:
    """At a rate at which validation prefers an earlier step, the two differ."""
    p = plan(few_digits, controls=("random-mask",))
    p = p._replace(trainer=make_trainer(p.model, few_digits, optimizer=lf.adam(0.3), batch_size=40), eval_every=1)
    found = list(iterative(p, seed=1))
    x = ops.scaled(few_digits.test.x, few_digits.scale)
    for item in found:
        chosen = item.fit.best
        assert chosen.point.step < STEPS
        outputs = apply_evaluating(p.model, chosen.params, chosen.buffers, x)
        assert item.test.loss == pytest.approx(float(nn.functional.cross_entropy(outputs, few_digits.test.y)))
        assert item.test.accuracy == pytest.approx(float((outputs.argmax(1) == few_digits.test.y).double().mean()))
    for before, after in itertools.pairwise(tickets(found)):
        living = before.start.masks
        kept = lf.count(after.start.masks).kept
        by_last, by_chosen = (
            torch.cat([torch.where(mask, params[name].abs(), -1).flatten() for name, mask in living.items()])
            for params in (before.fit.state.params, before.fit.best.params)
        )
        mask = torch.cat([mask.flatten() for mask in after.start.masks.values()])
        assert torch.equal(mask, by_last >= by_last.topk(kept).values[-1])
        assert not torch.equal(mask, by_chosen >= by_chosen.topk(kept).values[-1])


def test_reinitialised_networks_train_from_the_start_wherever_tickets_rewind_to(few_digits: Dataset) -> None:
    """All steps, and a learning-rate schedule from its beginning (Frankle & Carbin 2019, sec. 2)."""
    p = plan(few_digits, rewind="step:7", controls=("reinit", "random-mask"))
    for item in list(iterative(p))[1:]:
        first = 0 if item.variant == "reinit" else 7
        assert item.fit.curve[0].step == first
        assert int(item.fit.state.step) == STEPS
        assert p.steps_of(item.number, item.variant) == STEPS - first
    assert p.steps_of(0, "ticket") == STEPS


def test_random_pruning_nests_and_ignores_magnitude(few_digits: Dataset) -> None:
    rounds = list(iterative(plan(few_digits, score=lambda trained, now: lf.random_scores(now.seed)), seed=1))
    first, second = rounds[1].start.masks["fc.weight"], rounds[2].start.masks["fc.weight"]
    assert not (second & ~first).any()
    dropped = rounds[0].fit.state.params["fc.weight"].abs()[~first]
    assert dropped.max() > rounds[0].fit.state.params["fc.weight"].abs().median()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_going_on_gives_the_bits_of_an_uninterrupted_run(few_digits: Dataset, after: int) -> None:
    p = plan(few_digits, rewind="step:4", controls=("reinit",))
    whole = list(iterative(p, seed=2))
    last = tickets(whole[: after + 1])[-1]
    finished = frozenset((r.number, r.variant) for r in whole[: after + 1])
    # As read back from files: no optimiser state.
    done = Done(last.number, last.fit.state._replace(opt=()), last.anchor._replace(opt=()), finished)
    rest = list(iterative(p, seed=2, done=done))
    assert [(r.number, r.variant) for r in rest] == [(r.number, r.variant) for r in whole[after + 1 :]]
    for a, b in zip(rest, whole[after + 1 :], strict=True):
        assert lf.same_bits(a.fit.state, b.fit.state)
        assert a.test == b.test
        assert a.fit.best.point == b.fit.best.point


def test_records_say_what_was_chosen_by_validation(few_digits: Dataset) -> None:
    p = plan(few_digits)
    result = list(iterative(p))[1]
    item = record(result, replicate=0, seed=0, seconds=1.23456)
    best = min(result.fit.curve, key=lambda point: point.val_loss)
    assert (item["early_stop_step"], item["val_loss"]) == (best.step, best.val_loss)
    state = result.fit.state._replace(params=result.fit.best.params, buffers=result.fit.best.buffers)
    assert item["test_accuracy"] == lf.accuracy_on(p.model, state, few_digits)
    assert item["layers"]["fc.weight"]["kept"] == int(result.start.masks["fc.weight"].sum())
    assert item["curve"][0][1] is None
    assert item["seconds"] == 1.235


def fake(seed: int, number: int, variant: str, accuracy: float) -> dict[str, object]:
    return {
        "seed": seed, "round": number, "variant": variant, "kept": 10, "total": 20, "density": 0.5,
        "layers": {"w": {"density": 0.5}}, "val_accuracy": accuracy, "test_accuracy": accuracy / 2,
        "early_stop_step": 100 * (seed + 1), "seconds": 1.0,
    }  # fmt: skip


def test_summaries_are_mean_and_sample_deviation() -> None:
    rows = summarize(
        [fake(s, k, v, 0.9 + s / 100 - k / 50) for s in range(3) for k in (0, 1) for v in ("ticket", "reinit")]
    )
    assert [(row.round, row.variant) for row in rows] == [(0, "ticket"), (0, "reinit"), (1, "ticket"), (1, "reinit")]
    assert rows[0].val_accuracy.mean == pytest.approx(0.91)
    assert rows[0].val_accuracy.std == pytest.approx(statistics.stdev([0.9, 0.91, 0.92]))
    assert rows[0].early_stop_step.mean == 200
    assert spread([3.0]) == (3.0, 0.0)


def test_configurations_survive_their_mapping_and_refuse_what_they_do_not_know() -> None:
    config = resolved(
        Config(arch="fc1", control=("reinit",), allocate="layerwise", layer_rate={"fc*": 0.1}, rewind="epoch:2")
    )
    assert config.arch == "lenet300"
    assert from_mapping(to_mapping(config)) == config
    with pytest.raises(UserError, match="unknown name 'epoch'; did you mean 'epochs'"):
        from_mapping({"epoch": 3})
    for name, value in {"rounds": 1.5, "rate": "x", "nesterov": 1, "control": "reinit", "milestone": [0.5],
                        "layer_rate": {"a": "b"}, "arch": 3, "seed": True}.items():  # fmt: skip
        with pytest.raises(UserError, match=rf"--{name.replace('_', '-')}: invalid value .* \(expected"):
            from_mapping({name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rate": 0.0}, "--rate: invalid value 0.0"),
        ({"rate": 1.0}, "--rate: invalid value 1.0"),
        ({"rate": math.nan}, "--rate: invalid value nan"),
        ({"rounds": -1}, "--rounds: invalid value -1"),
        ({"epochs": 0}, "--epochs: invalid value 0"),
        ({"steps": 5, "epochs": 5}, "give one of them"),
        ({"batch_size": 0}, "--batch-size: invalid value 0"),
        ({"replicates": 0}, "--replicates: invalid value 0"),
        ({"lr": math.inf}, "--lr: invalid value inf"),
        ({"momentum": 0.9}, "--momentum: requires --optimizer sgd or muon, not adam"),
        ({"nesterov": True}, "--nesterov: requires"),
        ({"weight_decay": -1.0}, "--weight-decay: invalid value -1.0"),
        ({"allocate": "localy"}, "--allocate: unknown name 'localy'"),
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
        ({"control": ("reinit", "reinit")}, "each control once"),
        ({"milestone": (3,)}, "--milestone: requires --schedule step"),
        ({"layer_rate": {"fc1*": 0.1}}, "--layer-rate: requires --allocate layerwise"),
        ({"layer_rate": {"fc1*": 1.0}, "allocate": "layerwise"}, r"'fc1\*=1.0'"),
        ({"rewind": "step:-1"}, "--rewind: invalid value 'step:-1' .expected step:K, "),
        ({"rewind": "later"}, "--rewind: unknown name 'later'.*init, step:K, epoch:K, percent:K, sign"),
        ({"arch": "resnet21"}, "did you mean 'resnet"),
        ({"dataset": "cifar"}, "did you mean 'cifar10'"),
        ({"seed": -1}, "--seed: invalid value -1"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        resolved(Config(**changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_pruning_everything_is_refused(few_digits: Dataset) -> None:
    """2,596 weights at 99 %: 26 are left, then none."""
    with pytest.raises(UserError, match=r"^rounds: no weight is left in round 2; a higher density, or fewer rounds, l"):
        list(iterative(plan(few_digits, rate=0.99, rounds=5, steps=2, controls=("random-mask",))))


def test_an_anchor_must_lie_before_the_end(few_digits: Dataset) -> None:
    assert rewinding_of("epoch:3", 6, 100)[1] == 18
    with pytest.raises(UserError, match=r"invalid value 'step 12' \(expected a point before the end of training \(st"):
        list(iterative(plan(few_digits, rewind="epoch:2")))


def test_a_recipe_is_not_lent_to_another_optimiser() -> None:
    sgd = resolved(Config(arch="resnet20", dataset="cifar10"))
    assert (sgd.optimizer, sgd.momentum, sgd.lr, sgd.augment) == ("sgd", 0.9, 0.01, "flip-crop")
    adam = resolved(Config(arch="resnet20", dataset="cifar10", optimizer="adam"))
    assert (adam.momentum, adam.weight_decay, adam.lr) == (0.0, 0.0, 1.2e-3)
