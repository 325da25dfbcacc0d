"""Plans out of settings: prunings tried before training, and what cannot be found beforehand."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.main import main
from small import NET, data, settings, state_of
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.catalog.pruning import CONTROLS, REWINDINGS
from lthfunc.errors import UserError
from lthfunc.experiments import engine_choice, plan as planning, resolve
from lthfunc.experiments.functions import (
    ScoreContext,
)
from lthfunc.experiments.iterative import Plan, Task, rounds
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.rewinding_and_controls import RoundContext, start_of
from lthfunc.experiments.trials import check_orientation, check_pruning, check_score, check_start
from lthfunc.trees.types import TrainState


def a_plan(**changes: Any) -> Plan:
    model = lf.from_module(NET)
    trainer = lf.make_trainer(model, data(), optimizer=lf.sgd(0.1), batch_size=5)
    return Plan(model=model, trainer=trainer, steps=10, eval_every=4)._replace(**changes)


def test_a_plans_steps_and_prunings() -> None:
    plan = a_plan(anchor_step=3, controls={name: start_of(CONTROLS, name) for name in ("reinit", "random-mask")})
    assert [plan.steps_of(number, "ticket") for number in (0, 1, 2)] == [10, 7, 7]
    assert (plan.steps_of(1, "reinit"), plan.steps_of(1, "random-mask")) == (10, 7)
    assert (Plan._field_defaults["rounds"], Plan._field_defaults["rate"]) == (5, 0.2)
    dense = lf.init(plan.model)
    assert plan.end_of(Task(0, 0, "ticket", dense, None)) == 10
    assert plan.end_of(Task(0, 1, "ticket", dense._replace(step=torch.tensor(10)), dense)) == 20
    assert lf.count(plan.pruning(1, lf.magnitude)(dense).masks).kept == 36  # of 45
    by_list = plan._replace(densities=(0.5, 0.2))
    assert [lf.count(by_list.pruning(k, lf.magnitude)(dense).masks).kept for k in (1, 2)] == [
        23,
        9,
    ]  # half of 45, to even
    uneven = plan._replace(allocate=lf.uniform(), select=lf.per_output())
    found = uneven.pruning(1, lf.random_scores(3))(dense).masks
    expected = lf.prune(fraction=0.2, score=lf.random_scores(3), allocate=lf.uniform(), select=lf.per_output())(dense)
    assert lf.same_bits(found, expected.masks)
    with pytest.raises(
        UserError, match=r"^rewind: invalid value 'step 10' .*a point before the end of training .step 10.\)$"
    ):
        next(rounds(plan._replace(anchor_step=10), 0))
    with pytest.raises(UserError, match=r"^Plan: steps must be"):
        next(rounds(plan._replace(steps="ten"), 0))  # type: ignore[arg-type]


def test_prunings_that_cannot_be_are_found_before_training() -> None:
    plan = a_plan(rounds=3, rate=0.5)
    check_pruning(plan)
    # 45 weights at one half three times are 6: two layers keep 3 each, not 4.
    check_pruning(plan._replace(allocate=lf.uniform(min_layer_weights=2)))
    for floor, fits in ((2, True), (3, True), (4, False)):
        each = plan._replace(allocate=lf.uniform(min_layer_weights=floor))
        if fits:
            check_pruning(each)
        else:
            with pytest.raises(UserError, match=r"^min_layer_weights: "):
                check_pruning(each)
    check_pruning(plan._replace(allocate=lf.uniform(min_layer_weights=5), densities=(0.9, 0.5, 0.25)))
    with pytest.raises(UserError, match=r"^min_layer_weights: "):
        check_pruning(plan._replace(allocate=lf.uniform(min_layer_weights=5), densities=(0.9, 0.5, 0.2)))
    of_five = plan._replace(select=lf.n_of_m(2, 5, ["1*"]))  # two fifths, but for the first layer
    check_pruning(of_five._replace(densities=(0.4, 0.3, 0.2)))
    with pytest.raises(UserError, match="structure: 2:5 holds at most"):
        check_pruning(of_five._replace(densities=(0.9, 0.3, 0.2)))
    with pytest.raises(UserError, match="structure: 2:5 holds at most"):  # the first already leaves too many
        check_pruning(plan._replace(rate=0.2, rounds=9, select=lf.n_of_m(2, 5, ["1*"])))


def test_scores_starts_and_orientations_are_tried() -> None:
    model, state = state_of()
    now = ScoreContext(model, data(), 7, 0.1, 0, 1, state, state)
    seen: list[Any] = []

    def scoring(given: ScoreContext) -> Any:
        seen.append((given.batch_size, given.batch_count))
        return lf.magnitude

    check_score("mine", scoring, now)
    check_score("mine", scoring, now._replace(batch_size=1))
    assert seen == [(2, 1), (1, 1)]
    before = torch.get_rng_state()
    check_score("mine", lambda given: lambda p, m: {k: torch.rand_like(p[k]) for k in m}, now)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(UserError, match=r"^--score: mine cannot be computed for .*: division by zero"):
        check_score("mine", lambda given: 1 / 0, now)  # type: ignore[arg-type, return-value]
    bad: Any = lambda params, masks: {}  # noqa: E731
    with pytest.raises(UserError, match=r"score: '<lambda>'.*one leaf for each"):
        check_score("mine", lambda given: bad, now)
    plan = a_plan()
    made: list[Any] = []

    def make(pruned: TrainState, now: RoundContext) -> TrainState:
        made.append((lf.count(pruned.masks).kept, now.seed, now.number, lf.count(now.anchor.masks).kept))
        return pruned

    check_start(plan._replace(rewind=start_of(REWINDINGS, "init")._replace(make=make)))
    assert made == [(23, 0, 1, 45)]


class Turned(nn.Module):
    """A layer whose weight is stored as (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.first, self.last = Conv1D(5, 6), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out


def test_a_weight_stored_the_other_way_round_takes_no_structure() -> None:
    pytest.importorskip("transformers")
    model = lf.from_module(Turned())
    check_orientation("2:4", lf.from_module(NET), ())
    check_orientation("2:4", model, ["first*"])
    for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        with pytest.raises(UserError, match=r"with 1.weight, which is stored as \(inputs, outputs\)"):
            check_orientation("2:4", lf.from_module(nn.Sequential(nn.ReLU(), kind(4, 8, 2))), ())
    with pytest.raises(
        UserError, match=r"^--structure: invalid value '2:4' .*unstructured with first.weight, which is stored as"
    ):
        check_orientation("2:4", model, ["last*"])


@pytest.mark.parametrize(
    ("steps", "batch", "val", "expected"),
    # A step costs 3 of a look on as many examples: 5 % of 3 · steps · batch / val looks, from 5 to 25 of them.
    [
        (1000, 50, 500, 67),
        (1000, 50, 5_000, 200),
        (1000, 50, 100, 40),
        (10, 50, 500, 2),
        (7, 1, 1000, 2),
        (1006, 50, 500, 68),
    ],
)
def test_looks_at_validation_cost_a_twentieth(steps: int, batch: int, val: int, expected: int) -> None:
    looks = min(25, max(5, int(0.05 * 3 * steps * batch / val)))
    assert expected == math.ceil(steps / looks)
    assert planning._eval_every(steps, batch, val) == expected


def test_steps_cost_three_forward_passes() -> None:
    model, _ = state_of()
    assert engine_choice.flops_per_step(model, (6,), 7) == 3 * 7 * 2 * 45


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"dataset": "PLAIN", "augment": "flip-crop"},
            r"--augment: flip-crop works on images, not on inputs of shape \(6,\)",
        ),
        ({"rewind": "step:4"}, "--rewind: invalid value 'step:4' .*a point before the end of training .step 4."),
        (
            {"layer_rate": {"no*": 0.1}, "allocate": "layerwise"},
            "--layer-rate: invalid value 'no.' .*a pattern that matches one of",
        ),
        ({"min_layer_weights": 10**9}, "--min-layer-weights: 3 layers need at least"),
        ({"structure": "3:7", "rate": 0.9, "rounds": 1}, "--structure: 3:7 doesn't divide the 64 inputs"),
        ({"optimizer": "muon", "compact": True}, "--compact: does not work with --optimizer muon"),
        ({"schedule": "cosine", "rewind": "last-lr"}, "--rewind: last-lr continues at the last learning rate"),
        ({"precision": "tf32"}, "--precision: invalid value 'tf32'"),
        ({"threads": 5000}, "--threads: invalid value 5000"),
        ({"device": "cuda:9"}, "--device: invalid value 'cuda:9'"),
        ({"jobs": 5000}, "--jobs: invalid value 5000"),
        ({"structure": "MINE:nothing", "exempt": ("fc1*",)}, "--exempt: requires --structure "),
        ({"batch_size": 10**6}, "--batch-size: invalid value 1000000"),
        ({"rewind": "MINE:nothing"}, "--rewind: .*returned another network"),
        ({"score": "MINE:nothing"}, "--score|score"),
    ],
)
def test_what_cannot_be_is_found_before_any_training(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    mine, plain = tmp_path / "mine_for_plans.py", tmp_path / "plain.npz"
    mine.write_text("def nothing(*given): return given[0]._replace(params={}) if len(given[0]) == 5 else None\n")
    x, y = data().train
    np.savez(plain, x=x.repeat(3, 1).numpy(), y=y.repeat(3).numpy())
    given = {
        name: value.replace("PLAIN", f"npz:{plain}").replace("MINE", str(mine)) if isinstance(value, str) else value
        for name, value in change.items()
    }
    base = {"steps": 4, "batch_size": 20, "engine": "eager", "threads": 1, "rounds": 2}
    prepare(settings(**base))
    with pytest.raises(UserError, match=f"^{words}"):
        prepare(settings(**{**base, **given}))


def test_what_is_tried_is_what_could_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    for name in ("check_orientation", "check_pruning", "check_score", "check_start"):
        monkeypatch.setattr(planning, name, lambda *given, name=name: tried.append(name))
    base: dict[str, Any] = {"steps": 4, "batch_size": 20, "engine": "eager", "threads": 1, "rounds": 2}
    for change, expected in (
        ({"structure": "per-output"}, ["check_orientation", "check_pruning"]),
        ({"structure": "2:4", "exempt": ("fc*",)}, ["check_orientation", "check_pruning"]),
        ({"structure": "units"}, ["check_pruning"]),
        ({"min_layer_weights": 1}, ["check_pruning"]),
        ({"score": "random"}, []),
        ({"score": "snip"}, ["check_score"]),
        ({"score": "snip", "rounds": 0}, []),
        ({"structure": "units", "rounds": 0}, []),
        ({"rewind": "step:1"}, []),
    ):  # fmt: skip
        tried.clear()
        prepare(settings(**{**base, **change}))
        assert tried == expected, change


def test_a_plan_is_what_was_asked_for() -> None:
    config, plan, note, decisions = prepare(
        settings(
            steps=30, batch_size=20, engine="eager", threads=2, rounds=3, rate=0.25, eval_every=7, rewind="epoch:0",
            control=("reinit", "shuffled-mask"), score="random", allocate="uniform", structure="per-output",
            metric="top-2", on_nonfinite="skip", momentum=0.5,
        )
    )  # fmt: skip
    assert (config.device, config.engine, config.threads, config.loss, config.metric, note) == (
        "cpu", "eager", 2, "cross-entropy", "top-2", None,
    )  # fmt: skip
    assert (plan.steps, plan.eval_every, plan.rounds, plan.rate, plan.densities) == (30, 7, 3, 0.25, None)
    assert (plan.anchor_step, list(plan.controls)) == (0, ["reinit", "shuffled-mask"])
    assert plan.controls["reinit"] == start_of(CONTROLS, "reinit")
    assert plan.rewind == start_of(REWINDINGS, "epoch:1")
    assert [each.setting for each in decisions] == ["device", "loss"]
    trainer = plan.trainer
    assert (trainer.batch_size, trainer.on_nonfinite, trainer.work.precision) == (20, "skip", "fp32")
    assert (trainer.engine.name, trainer.work.loss) == ("eager", lf.cross_entropy)
    dense = lf.init(plan.model)
    now = RoundContext(plan.model, 5, 1, dense)
    found = plan.pruning(1, plan.score(dense, now))(dense).masks
    expected = lf.prune(
        fraction=0.25, score=lf.random_scores(5, "score"), allocate=lf.uniform(), select=lf.per_output()
    )(dense)
    assert lf.same_bits(found, expected.masks)
    by_epochs = prepare(settings(epochs=2, batch_size=200, rewind="epoch:1", densities="0.5,0.1", threads=1))
    assert (by_epochs.plan.steps, by_epochs.plan.anchor_step, by_epochs.plan.densities) == (12, 6, (0.5, 0.1))
    assert by_epochs.plan.eval_every == planning._eval_every(12, 200, 180)
    energy = prepare(settings(steps=4, energy=True, engine="eager"))
    assert energy.config.jobs == 1
    assert energy.config.threads == 1


def test_a_new_run_is_resolved_and_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def noted(function: Any, *given: Any) -> Any:
        called.append(function.__name__)
        return function(*given)

    for module, name in ((resolve, "resolve"), (planning, "decide_device")):
        monkeypatch.setattr(module, name, partial(noted, getattr(module, name)))
    monkeypatch.setattr("lthfunc_cli.running._run", lambda *run: None)  # which trains
    assert main(["prune", "--steps", "2", "--engine", "eager", "--out", str(tmp_path / "run")]) == 0
    assert called == ["resolve", "decide_device"]
