"""Learning rates at the end of a schedule and after it: floors, and trainings that would stand still."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lthfunc as lf
from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.training import SCHEDULES
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.objective import schedule_of
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.studies import StudyPlans, decided_alike, meaningful_runs, runs_that_can_be
from lthfunc.training.schedules import Schedule, rate_at

LR, STEPS, FINAL = 0.5, 40, 0.02

#: At step t of 40, from 0.5 to 0.02: the published formulas, each written down again.
FORMULAS: dict[str, Callable[[int], Any]] = {
    "cosine": lambda t: FINAL + (LR - FINAL) / 2 * (1 + math.cos(math.pi * t / STEPS)),  # SGDR, eq. 5
    "cyclic": lambda t: FINAL + (LR - FINAL) / 2 * (1 + math.cos(math.pi * (t % 10) / 10)),
    "step": lambda t: max(FINAL, LR * 0.1 ** ((t >= 26) + (t >= 33))),
    "trapezoidal": lambda t: min(LR * (t + 1) / 2, LR, FINAL + (LR - FINAL) * (STEPS - t) / 8),
    "triangular": lambda t: np.interp(t, [0, 0.23 * STEPS, STEPS], [0.2 * LR, LR, FINAL]),
}


def named(**settings: object) -> Config:
    return resolved(from_mapping({"lr": LR, "optimizer": "sgd", "steps": STEPS, **settings}))


@pytest.mark.parametrize("name", FORMULAS)
def test_schedules_end_where_they_are_told(name: str) -> None:
    table = schedule_of(named(schedule=name, lr_final=FINAL), STEPS)
    rates = [float(rate_at(table, torch.tensor(t))) for t in range(STEPS)]
    np.testing.assert_allclose(rates, [FORMULAS[name](t) for t in range(STEPS)], rtol=1e-9)


def test_one_cycle_with_a_floor_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS, final_div_factor=0.04 * LR / FINAL)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step() if len(rates) < STEPS else None
    np.testing.assert_allclose(
        schedule_of(named(schedule="one-cycle", lr_final=FINAL), STEPS).numpy(), rates, rtol=1e-9
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "constant", "lr_final": 0.1}, "--lr-final: requires --schedule step, cosine, .* not constant"),
        ({"schedule": "cosine", "lr_final": 0.6}, r"--lr-final: invalid value 0.6 \(expected a number from 0 to the"),
        ({"schedule": "cosine", "lr_final": -0.1}, r"--lr-final: invalid value -0.1 \(expected a number of at least 0"),
    ],
)
def test_floors_that_are_none_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        named(**settings)


# ---- past the end ----

MODEL = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
TABLES = {
    "cosine": lf.cosine(0.1, 8),
    "trapezoidal": lf.trapezoidal(0.1, 8),
    "one-cycle": lf.one_cycle(0.1, 8),
    "triangle": lf.triangular(0.1, 8, end=0),
    "steps to nothing": lf.stepwise(0.1, [4], 0.0),
}
OPTIMIZERS = [lf.sgd, lf.adam, lf.lion, lf.muon]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_training_past_a_schedule_that_ends_at_nothing_is_refused(name: str, make: Any, few_digits: lf.Dataset) -> None:
    """Both in one go and after a training to the end, with the step at which it would stand still."""
    table: Schedule = TABLES[name]
    start = lf.init(MODEL, 0)
    with pytest.raises(UserError, match=r"the schedule ends at about 0, so that steps \d to 16 would change nothing"):
        lf.train(MODEL, few_digits, optimizer=make(table), steps=16, batch_size=40)(start)
    if name == "steps to nothing":
        return
    ended = lf.train(MODEL, few_digits, optimizer=make(table), steps=8, batch_size=40)(start)
    pruned = lf.finetuned(lf.prune(fraction=0.5)(ended))
    with pytest.raises(UserError, match=r"steps 8 to \d+ would change nothing"):
        lf.train(MODEL, few_digits, optimizer=make(table), steps=9 if table.numel() == 9 else 16, batch_size=40)(pruned)


def test_with_a_floor_it_goes_on_at_it(few_digits: lf.Dataset) -> None:
    """The last rate of a cosine is its floor: as plain descent at that rate."""
    start = lf.init(MODEL, 0)
    ended = lf.train(MODEL, few_digits, optimizer=lf.sgd(lf.cosine(0.1, 8, final=0.01)), steps=8, batch_size=40)(start)
    on = lf.train(MODEL, few_digits, optimizer=lf.sgd(lf.cosine(0.1, 8, final=0.01)), steps=12, batch_size=40)(ended)
    plain = lf.train(MODEL, few_digits, optimizer=lf.sgd(0.01), steps=12, batch_size=40)(ended._replace(opt=()))
    assert lf.same_bits(on.params, plain.params)
    assert not lf.same_bits(on.params, ended.params)


@pytest.mark.parametrize("name", [name for name, each in SCHEDULES.items() if "lr_final" in each.takes])
def test_last_lr_is_refused_before_training_where_it_is_nothing(name: str) -> None:
    settings = {"schedule": name, "rewind": "last-lr", "rounds": 1, "engine": "eager"}
    if name in ("step", "triangular"):  # a hundredth, 7 %
        prepare(named(**settings))
        return
    with pytest.raises(UserError, match=f"--rewind: last-lr continues at the last learning rate of --schedule {name}"):
        prepare(named(**settings))
    prepare(named(**settings, lr_final=0.001))


def left_out(asked: list[str], **settings: object) -> tuple[list[str], dict[str, str]]:
    """(the methods that a study has, why it has no others)."""
    shared = from_mapping({"rounds": 2, "engine": "eager", "batch_size": 40, **settings})
    runs, left = meaningful_runs(shared, asked, [0.1])
    configs, like = decided_alike([each.config for each in runs])
    plans = StudyPlans({each.name: config for each, config in zip(runs, configs, strict=True)}, like)
    able, later = runs_that_can_be(runs, plans, asked=bool(asked))
    return [each.method for each in able], {**left, **later}


def test_trainings_with_fewer_steps_than_cycles_are_compared_without_them() -> None:
    names, left = left_out([], steps=3)
    assert set(METHODS) - {*names} == {*left}
    assert {"imp-tuned", "imp-cyclic"} <= {*left}
    assert {"imp", "set", "snip", "ste"} <= {*names}
    assert "expected at least 4 steps with --schedule cyclic" in left["imp-cyclic"]
    assert left_out(["imp"], steps=3) == (["imp"], {})
    with pytest.raises(UserError, match=r"expected at least 4 steps with .* \[imp-cyclic\]$"):
        left_out(["imp", "imp-cyclic"], steps=3)


def test_fine_tuning_needs_a_rate_that_falls() -> None:
    """Under a constant rate it is no method of its own, at a rate of 0 none at all."""
    for settings, words in (({}, "needs a decreasing --schedule"), ({"schedule": "cosine"}, "which is about 0")):
        names, left = left_out(["imp"], steps=8, **settings)
        assert (names, left) == (["imp"], {})
        with pytest.raises(UserError, match=words):
            left_out(["imp", "imp-tuned"], steps=8, **settings)
    assert left_out(["imp-tuned"], steps=8, schedule="cosine", lr_final=1e-4) == (["imp-tuned"], {})
