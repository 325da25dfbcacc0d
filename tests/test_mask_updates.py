"""Masks that change during a fit, against a loop written by hand; interrupted anywhere, and what is recorded."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_plans import plan_for
from small import data
from test_registry import added
from torch import nn

import lthfunc as lf
from lthfunc.errors import ArgumentError, UserError
from lthfunc.sparse import sparse_or_dense
from lthfunc.training.loop import fit_together
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext, masks_digest, seeded_update
from lthfunc.training.results import Checkpointer, Stopped
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.packed_trees import mask_on
from lthfunc.trees.types import Masks, TrainState

MODEL = lf.from_module(nn.Sequential(nn.Linear(6, 7), nn.Dropout(0.5), nn.ReLU(), nn.Linear(7, 3)))
STEPS, EVERY, SEED = 12, 5, 3


def change(state: TrainState, now: UpdateContext) -> TrainState:
    """Half of the weights move at first, more of them leave later; the second update changes nothing."""
    if now.step == 4:
        return state
    if now.last:
        return lf.prune(density=0.25, keep_moments=True)(state)
    return lf.drop_and_grow(state, lf.random_scores(now.seed, "grow", now.step)(state.params, state.masks), 0.5)


def remember(state: TrainState, now: UpdateContext) -> tuple[Masks, ...]:
    return (*now.memory, state.masks)[-2:]


UPDATES = MaskUpdates((2, 4, 7), change, remember)


def a_trainer(engine: Any = "eager") -> lf.Trainer:
    return lf.make_trainer(MODEL, data(), optimizer=lf.adam(0.02), batch_size=5, engine=engine)


def start(seed: int = SEED) -> TrainState:
    return lf.prune(density=0.5, score=lf.random_scores(1))(lf.init(MODEL, seed))


def trained(trainer: lf.Trainer | None = None, **more: Any) -> lf.Fit:
    return lf.fit(trainer or a_trainer(), start(), seed=SEED, until=STEPS, eval_every=EVERY, updates=UPDATES, **more)


ENGINES: dict[str, Any] = {"eager": "eager", "sparse": lf.sparse_engine, "by density": lf.sparse_or("eager")}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_fit_with_updates_is_the_loop_by_hand(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, an engine begins anew after each update. By density, the last update leaves the eager engine."""
    monkeypatch.setattr(sparse_or_dense, "is_faster", lambda model, shape, masks, *more: lf.density(masks) < 0.4)
    trainer, state = a_trainer(ENGINES[engine]), start()
    best, at = float("inf"), 0
    before = state.masks
    seen = []
    for step in (2, 4, 5, 7, 10, 12):
        state, _ = lf.take_steps(trainer, state, seed=SEED, until=step)
        if step in (5, 10, 12) and (loss := lf.accuracy_on(MODEL, state, data(), "val", lf.cross_entropy)) < best:
            best, at = loss, step
        if step in UPDATES.steps:
            after = change(state, UpdateContext(SEED, step, step == 7))
            seen.append((step, before, after.masks))
            state, before, best = after, after.masks, float("inf")
    found = trained(trainer)
    assert lf.same_bits(found.state, state)
    assert [point.step for point in found.curve] == [0, 5, 10, 12]
    assert found.best.point.step == at  # chosen after the last update
    assert found.best.point.val_loss == pytest.approx(best)
    for each, (step, old, new) in zip(found.changes, seen, strict=True):
        assert (each.step, each.digest) == (step, masks_digest(new))
        for name, layer in each.layers.items():
            left, came = old[name] & ~new[name], new[name] & ~old[name]
            assert layer == tuple(int(each.sum()) for each in (new[name], left, came))
    assert found.changes[1].exchanged == 0
    assert lf.same_bits(found.memory, (seen[1][1], seen[2][1]))


def test_mean_losses_count_all_steps_between_two_evaluations() -> None:
    """An update between two evaluations doesn't begin a new sum."""
    plain = lf.from_module(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)))
    trainer = lf.make_trainer(plain, data(), optimizer=lf.adam(0.02), batch_size=5)
    state = lf.prune(density=0.5, score=lf.random_scores(1))(lf.init(plain, SEED))
    whole = lf.fit(trainer, state, seed=SEED, until=5, eval_every=5, updates=UPDATES)
    losses = []
    for step in range(1, 6):  # without random layers, steps one by one are the same
        state, loss = lf.take_steps(trainer, state, seed=SEED, until=step)
        losses.append(loss)
        if step in UPDATES.steps:
            state = change(state, UpdateContext(SEED, step, False))
    assert whole.curve[-1].train_loss == pytest.approx(sum(losses) / 5)


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_stopped_after_any_step_it_ends_in_the_same_bits(stop: int) -> None:
    whole, kept, taken = trained(), list[lf.Fit](), [0]
    checkpointer = Checkpointer[lf.Fit](lambda fits: kept.extend(fits), lambda: taken[0] >= stop)

    def observe(step: int, points: Any) -> None:
        taken[0] = step

    with pytest.raises(Stopped):
        fit_together(
            a_trainer(), [start()], seeds=[SEED], until=STEPS, eval_every=EVERY, updates=UPDATES, observe=observe,
            checkpointer=checkpointer,
        )  # fmt: skip
    (left,) = kept
    assert int(left.state.step) == stop
    rest = lf.fit(a_trainer(), left.state, seed=SEED, until=STEPS, eval_every=EVERY, updates=UPDATES, so_far=left)
    assert lf.same_bits(rest.state, whole.state)
    assert lf.same_bits(rest.best[1:], whole.best[1:])
    assert (rest.changes, rest.curve[1:]) == (whole.changes, whole.curve[1:])


def test_several_states_change_each_by_its_own_seed() -> None:
    plain = lf.from_module(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)))
    trainer = lf.make_trainer(plain, data(), optimizer=lf.sgd(0.1), batch_size=5)
    how: dict[str, Any] = {"until": STEPS, "eval_every": EVERY, "updates": UPDATES}
    starts = [lf.prune(density=0.5, score=lf.random_scores(seed))(lf.init(plain, seed)) for seed in (0, 1)]
    both = fit_together(trainer, starts, seeds=[0, 1], **how)
    for seed, (state, found) in enumerate(zip(starts, both, strict=True)):
        alone = lf.fit(trainer, state, seed=seed, **how)
        assert lf.same_bits(found.state.masks, alone.state.masks)
        assert found.changes == alone.changes
        torch.testing.assert_close(found.state.params, alone.state.params)


def test_updates_before_the_start_and_from_the_end_on_are_left_out() -> None:
    late = start()._replace(step=torch.tensor(4))
    found = lf.fit(a_trainer(), late, seed=SEED, until=7, eval_every=9, updates=UPDATES)
    assert [each.step for each in found.changes] == [4]  # where it starts, and not where it ends


def test_a_users_change_is_checked_and_masked() -> None:
    def unmasked(state: TrainState, now: UpdateContext) -> TrainState:
        return state._replace(masks={name: mask & (mask.cumsum(0) < 2) for name, mask in state.masks.items()})

    how: dict[str, Any] = {"seed": 0, "until": 4, "eval_every": 4}
    found = lf.fit(a_trainer(), start(), updates=MaskUpdates((2,), unmasked), **how)
    for name, mask in found.state.masks.items():
        assert not found.state.params[name][~mask].any()
        assert mask.sum() < start().masks[name].sum()
    for wrong, error, words in (
        (lambda state, now: None, ArgumentError, "change returned NoneType .expected a TrainState."),
        (lambda state, now: state._replace(params={}), UserError, "change returned another network"),
    ):
        with pytest.raises(error, match=f"^MaskUpdates: {words}"):
            lf.fit(a_trainer(), start(), updates=MaskUpdates((2,), wrong), **how)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="updates must be a MaskUpdates"):
        lf.fit(a_trainer(), start(), updates=[2], **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("asking", [True, False])
def test_global_generators_are_seeded_for_an_update_when_it_asks_for_the_network(asking: bool) -> None:
    """As before everything, where it does not say that it draws later; and they are as before afterwards."""
    seen: list[list[float]] = []

    def exchange(network: Any, now: UpdateContext) -> Any:
        if asking:
            network()
        seen.append([random.random(), float(np.random.rand()), float(torch.rand(()))])
        return lf.random_growth(now.seed, now.step), 0.5

    with seeded_generators(8):
        expected = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    for late in (False, True):
        updates = MaskUpdates((2,), change, exchange=exchange, draws_after_network=late)
        with seeded_generators(8):
            lf.fit(a_trainer(lf.sparse_engine), start(), seed=SEED, until=4, eval_every=4, updates=updates)
            after = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        assert (after == expected) == (asking or not late)
    with seeded_update(UpdateContext(SEED, 2, True), torch.device("cpu")):
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    assert seen == [drawn, drawn if asking else expected]


def test_functions_of_ones_own_draw_the_numbers_of_their_update_and_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where survivors alone are kept as on dense trees, whatever was drawn before; no score is NaN."""
    (tmp_path / "package_of_updates.py").write_text(
        "import torch\n\ndef share(initial, step, steps):\n    return initial * float(torch.rand(()))\n\n"
        "def growth(step):\n    return lambda params, masks: {name: params[name] / 0 for name in masks}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    added(monkeypatch, ("drop-schedules", "drawn", "package_of_updates:share"))
    given: dict[str, Any] = {"steps": STEPS, "eval_every": 4, "batch_size": 5, "density": 0.5, "update_every": 3}
    (updates,) = plan_for("set", MODEL, data(), **given, drop_schedule="drawn").updates
    assert updates.exchange is not None
    found = []
    for number, each in ((1, updates), (2, updates), (1, updates._replace(exchange=None))):
        with seeded_generators(number):
            fit = lf.fit(a_trainer(lf.sparse_engine), start(), seed=SEED, until=4, eval_every=4, updates=each)
        found.append((fit.state.params, fit.state.masks))
    assert lf.same_bits(found[0], found[1])
    assert lf.same_bits(found[0], found[2])
    (updates,) = plan_for("set", MODEL, data(), **given, growth=f"{tmp_path}/package_of_updates.py:growth").updates
    state = start()
    zeros = {name: torch.zeros_like(leaf) for name, leaf in state.params.items()}
    with pytest.raises(UserError, match=r"^growth: .*scores of 0.weight are NaN"):
        updates.change(state._replace(params=zeros), UpdateContext(SEED, 3, False))


def test_digests_are_of_every_bit_name_and_shape() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    packed = hashlib.sha256(b"w(2, 3)" + bytes([0b10100100])).hexdigest()
    assert masks_digest({"w": mask}) == packed == masks_digest({"w": mask_on(torch.tensor([0, 2, 5]), mask.shape)})
    others = [{"w": mask ^ (torch.arange(6).view(2, 3) == at)} for at in range(6)]
    digests = {masks_digest(each) for each in (*others, {"w": mask}, {"v": mask}, {"w": mask.view(3, 2)})}
    assert len(digests) == 9


def test_the_last_update_is_the_last_that_takes_place() -> None:
    """One at the step at which training ends does not."""
    told: list[tuple[int, bool]] = []

    def noted(state: TrainState, now: UpdateContext) -> TrainState:
        told.append((now.step, now.last))
        return state

    updates = MaskUpdates((2, 4, STEPS, STEPS + 3), noted)
    lf.fit(a_trainer(), start(), seed=SEED, until=STEPS, eval_every=EVERY, updates=updates)
    assert told == [(2, False), (4, True)]


def test_an_exchange_draws_the_numbers_of_its_update_unless_it_says_otherwise() -> None:
    """On survivors as on dense trees, though the dense state is never asked for."""

    def exchange(network: Any, now: UpdateContext) -> Any:
        return lf.random_growth(now.seed, now.step), float(torch.rand(()))

    def drawing(state: TrainState, now: UpdateContext) -> TrainState:
        return lf.drop_and_grow(state, *exchange(None, now))

    updates = MaskUpdates((4, 7), drawing, exchange=exchange)
    found: list[Any] = []
    for each in (updates, updates._replace(exchange=None)):
        with seeded_generators(len(found)):
            fit = lf.fit(a_trainer(lf.sparse_engine), start(), seed=SEED, until=9, eval_every=9, updates=each)
        found.append((fit.state.params, fit.state.masks))
    assert lf.same_bits(*found)
