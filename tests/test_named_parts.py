"""What settings' names stand for, number by number: schedules, optimisers, losses, metrics, scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import data, decided, settings, state_of
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.functions import (
    ScoreContext,
    score_of,
)
from lthfunc.experiments.objective import (
    check_last_rate,
    loss_of_name,
    make_optimizer,
    metric_of_name,
    schedule_of,
)
from lthfunc.training.losses import accuracy, cross_entropy, huber, mean_absolute_error, mean_squared_error
from lthfunc.training.optimizers import AdamNumbers, SGDNumbers
from lthfunc.trees.rng import key
from lthfunc.trees.types import Split


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
    cycles: dict[str, Any] = {name: {"cycles": 3} if name == "cyclic" else {} for name in expected}
    for name, table in expected.items():
        assert torch.equal(schedule_of(settings(schedule=name, **cycles[name]), 13), table), name
        warm = settings(schedule=name, warmup=4, **cycles[name])
        assert torch.equal(schedule_of(warm, 13), lf.warmup(table, 4)), name
    ends = {
        "step": lf.stepwise(0.4, (8, 10), final=0.1),
        "cosine": lf.cosine(0.4, 13, 0.1),
        "cyclic": lf.cyclic(0.4, 13, 3, 0.1),
        "one-cycle": lf.one_cycle(0.4, 13, end=0.25),
        "triangular": lf.triangular(0.4, 13, end=0.25),
        "trapezoidal": lf.trapezoidal(0.4, 13, final=0.1),
    }
    for name, table in ends.items():
        found = schedule_of(settings(schedule=name, lr_final=0.1, **cycles[name]), 13)
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
        UserError, match=r"^--rewind: last-lr continues at the last learning rate of --schedule cosine, which is ab"
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
