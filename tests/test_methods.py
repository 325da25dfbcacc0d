"""Every method ends at the density, the same seed gives the same bits, and what methods are made of, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import gradient_of
from hypothesis import given, settings, strategies as st
from method_plans import is_once, outcome, plan_for
from small import NET, data
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.pruning import ALLOCATIONS
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.functions import allocation_of, growth_of
from lthfunc.experiments.iterative import Plan, Round, Task, rounds
from lthfunc.experiments.methods import during_training
from lthfunc.experiments.task_schedules import in_turn
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.queue import Execution
from lthfunc.training.mask_updates import UpdateContext
from lthfunc.training.parametrize import parametrized, straight_through, top_k_mask
from lthfunc.training.results import Stopped
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.model import apply_training
from lthfunc.trees.rng import key


def test_names_are_those_of_the_functions() -> None:
    state = lf.init(lf.from_module(nn.Linear(20, 10)))
    for name in ALLOCATIONS:
        keep = allocation_of(Config(allocate=name))(lf.magnitude(state.params, state.masks), state.masks, 0.2)
        assert int(keep["weight"]) == (180 if name == "layerwise" else 160)


DATA, MODEL, STEPS = data(), lf.from_module(NET), 12


def plan(name: str) -> Plan:
    """A method on a network of 45 weights, most of them to be pruned; two rounds of iterative ones."""
    once = is_once(name)
    given = {} if name == "dense" else {"density": 0.3} if once else {"density": 0.3, "rounds": 2}
    schedule = {} if name == "imp-cyclic" else {"schedule": "step"}
    return plan_for(name, MODEL, DATA, steps=STEPS, eval_every=5, batch_size=5, **given, **schedule)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_ends_at_the_density_however_often_it_is_stopped(name: str, tmp_path: Path) -> None:
    """Every training is stopped four times, and resumed from its checkpoint; it ends in the bits of one without."""
    mine = plan(name)
    whole = list(lf.iterative(mine, 1))
    last = whole[-1]
    total = lf.count(last.fit.state.masks).total
    assert lf.count(last.fit.state.masks).kept == (total if name == "dense" else pytest.approx(0.3 * total, abs=1))
    for leaf, mask in last.fit.state.masks.items():
        assert (last.fit.state.params[leaf][~mask] == 0).all()
    chosen = sum(int((last.fit.best.params[leaf] != 0).sum()) for leaf in last.fit.state.masks)
    assert chosen <= lf.count(last.fit.state.masks).kept  # layers may have had others when validation chose
    trainings = 1 if name == "dense" or METHODS[name].at_init else 2 if is_once(name) else 3
    assert [each.number for each in whole] == list(range(mine.first, mine.rounds + 1))
    assert len(whole) == trainings

    now = {"step": 0, "stop": 0}

    def observe(step: int, points: Any) -> None:
        now["step"] = step

    def interrupted(task: Task) -> Round:
        begun, end = int(task.start.step), mine.end_of(task)
        stopping = Execution(Config(checkpoint_every="never"), mine, tmp_path, lambda: now["step"] >= now["stop"])
        for stop in (begun + 1, begun + 2, (begun + end) // 2, end - 1):
            now.update(step=begun, stop=stop)
            with pytest.raises(Stopped):
                train_with_checkpoints(stopping, [task], observe)
        (result,), _ = train_with_checkpoints(Execution(Config(), mine, tmp_path), [task])
        found: Round = result
        return found

    for again, once in zip(in_turn(rounds(mine, 1), interrupted), whole, strict=True):
        assert lf.same_bits(again.fit.state[:3], once.fit.state[:3])
        assert lf.same_bits(again.fit.best[1:], once.fit.best[1:])
        assert (again.test, again.fit.changes, again.fit.curve[1:]) == (once.test, once.fit.changes, once.fit.curve[1:])


def test_masks_move_only_where_methods_say_so() -> None:
    dense = lf.init(MODEL, 1)
    masks = {name: outcome(plan(name), 1).masks for name in ("snip", "snip-reinit", "snip-shuffled")}
    assert lf.same_bits(masks["snip-reinit"], masks["snip"])
    assert lf.layer_counts(masks["snip-shuffled"]) == lf.layer_counts(masks["snip"])
    assert lf.mask_overlap(masks["snip-shuffled"], masks["snip"]) < 0.8
    popup = outcome(plan("edge-popup"), 1).last.fit.state  # which trains no weight
    for name, mask in popup.masks.items():
        kept = popup.params[name][mask]
        assert len(kept.abs().unique()) == 1
        assert torch.equal(kept.sign(), dense.params[name][mask].sign())


# ---- drop and regrow ----


@settings(max_examples=50, deadline=None)
@given(share=st.floats(0, 1), density=st.floats(0.05, 0.95), seed=st.integers(0, 20))
def test_exchanging_keeps_every_layers_count(share: float, density: float, seed: int) -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 4)))
    state = lf.prune(density=density, score=lf.random_scores(seed))(lf.init(model, seed))
    promise = lf.random_scores(seed, "new")(state.params, state.masks)
    after = lf.drop_and_grow(state, promise, share)
    assert lf.layer_counts(after.masks) == lf.layer_counts(state.masks)
    for name, mask in state.masks.items():
        went, came = mask & ~after.masks[name], after.masks[name] & ~mask
        assert (after.params[name][~after.masks[name]] == 0).all()
        assert (after.params[name][came] == 0).all()
        stayed = mask & (after.params[name] != 0)
        assert torch.equal(after.params[name][stayed], state.params[name][stayed])
        if went.any() and stayed.any():
            assert state.params[name][went].abs().max() <= state.params[name][stayed].abs().min()
        never = ~mask & ~after.masks[name]
        if came.any() and never.any():
            assert promise[name][came].min() >= promise[name][never].max()


def test_moments_of_new_weights_begin_at_zero(few_digits: lf.Dataset) -> None:
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    trainer = make_trainer(model, few_digits, optimizer=lf.adam(1e-2), batch_size=40)
    start = lf.prune(density=0.5, score=lf.random_scores(0))(lf.init(model, 0))
    state, _ = lf.take_steps(trainer, start, seed=0, until=4)
    after = lf.drop_and_grow(state, lf.random_scores(1)(state.params, state.masks), 0.5)
    name = "1.weight"
    stayed = lf.drop({name: state.params[name].abs()}, state.masks, 0.5)[name]
    for moments, before in ((after.opt.mean, state.opt.mean), (after.opt.variance, state.opt.variance)):
        assert torch.equal(moments[name][stayed], before[name][stayed])
        assert (moments[name][~stayed] == 0).all()
        assert torch.equal(moments["1.bias"], before["1.bias"])
    assert torch.equal(after.opt.powers, state.opt.powers)
    lf.take_steps(trainer, after, seed=0, until=6)  # and training goes on


def test_rigl_grows_where_the_dense_gradient_is_largest() -> None:
    state = lf.prune(density=0.3, score=lf.random_scores(0))(lf.init(MODEL, 0))
    now = UpdateContext(0, 5, False)
    promise = during_training.growth_scores(plan("rigl").trainer, growth_of("gradient"), state, now)
    (batch,) = lf.sample_batches(DATA, 5, 1, key(0, "growth", 5))
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
    outputs, _ = apply_training(MODEL, leaves, state.buffers, batch[0])
    nn.functional.cross_entropy(outputs, batch[1]).backward()
    for name, leaf in promise.items():
        torch.testing.assert_close(leaf, gradient_of(leaves[name]).abs())
        assert (leaf[~state.masks[name]] > 0).any()


# ---- schedules ----


def test_schedules_by_hand() -> None:
    assert lf.one_shot(0.2) == [0.2]
    assert lf.geometric(0.125, 3) == pytest.approx([0.5, 0.25, 0.125])
    assert lf.by_rate(0.2, 3) == pytest.approx([0.8, 0.64, 0.512])
    steps = lf.cubic(0.1, start=100, end=500, every=100)
    assert [item.step for item in steps] == [100, 200, 300, 400, 500]
    expected = [1.0, 0.1 + 0.9 * 0.75**3, 0.1 + 0.9 * 0.5**3, 0.1 + 0.9 * 0.25**3, 0.1]
    assert [item.density for item in steps] == pytest.approx(expected)
    assert lf.periodic(0, 7, 3) == [0, 3, 6, 7]
    assert lf.cosine_drop_fraction(0.3, 0, 10) == pytest.approx(0.3)
    assert lf.cosine_drop_fraction(0.3, 5, 10) == pytest.approx(0.15)
    assert lf.cosine_drop_fraction(0.3, 12, 10) == 0
    table = lf.cyclic(1.0, 10, 2)
    assert torch.equal(table, torch.cat([lf.cosine(1.0, 5)[:5], lf.cosine(1.0, 5)]))
    for wrong in (lambda: lf.geometric(0.0, 2), lambda: lf.cubic(0.1, 5, 5, 1), lambda: lf.cyclic(1.0, 3, 4)):
        with pytest.raises(UserError):
            wrong()


# ---- rewinding ----


def test_rewindings_by_hand() -> None:
    anchor = lf.init(MODEL, 0)
    trained = lf.prune(density=0.5)(lf.train(MODEL, DATA, optimizer=lf.adam(1e-3), steps=5, batch_size=5)(anchor))
    sign = lf.constant_sign(trained, anchor)
    for name, mask in trained.masks.items():
        spread = anchor.params[name].std(correction=0)
        torch.testing.assert_close(sign.params[name], anchor.params[name].sign() * spread * mask)
    rate = lf.learning_rate_rewound(trained, 3)
    assert (int(rate.step), rate.opt) == (3, ())
    assert lf.same_bits(rate.params, trained.params)
    assert int(lf.finetuned(trained).step) == 5
    loaded = MODEL._replace(init=lambda seed: (anchor.params, anchor.buffers), redraw=MODEL.init)  # weights of a file
    for model in (MODEL, loaded):
        fresh = lf.reinitialised(trained, model, 7)
        assert lf.same_bits(fresh.params, lf.apply_masks(MODEL.init(7)[0], trained.masks))
        assert (int(fresh.step), fresh.opt) == (0, ())
    flipped = lf.inverted_masks(trained.masks)
    assert all(torch.equal(flipped[name], ~mask) for name, mask in trained.masks.items())
    assert lf.mask_distance(flipped, trained.masks) == 1
    assert lf.mask_overlap(flipped, trained.masks) == 0
    assert lf.mask_overlap(trained.masks, trained.masks) == 1
    empty = {name: torch.zeros_like(mask) for name, mask in trained.masks.items()}
    assert lf.mask_overlap(empty, empty) == 1


# ---- reparametrised networks ----


def test_the_mask_computes_and_the_weight_learns() -> None:
    """Values of the masked network; gradients that reach masked weights as if they were there."""
    model = lf.from_module(nn.Sequential(nn.Linear(4, 3)))

    def weights(trained: Any, fixed: Any) -> Any:
        hard = {"0.weight": trained["0.weight"] * top_k_mask(trained["0.weight"].abs(), 5)}
        return {**trained, "0.weight": straight_through(hard["0.weight"], trained["0.weight"])}

    def draw(seed: int) -> Any:
        params, buffers = model.init(seed)
        return params, {}, buffers

    made = parametrized(model, "test", draw, weights, weights)
    params, buffers = made.init(3)
    assert made.prunable == ("trained_0:weight",)
    x = torch.randn(8, 4)

    def value(params: dict[str, Tensor]) -> Tensor:
        total: Tensor = (apply_training(made, params, buffers, x)[0] ** 2).sum()
        return total

    gradient = torch.func.grad(value)(params)["trained_0:weight"]
    weight, bias = params["trained_0:weight"], params["trained_0:bias"]
    kept = torch.zeros(12).index_fill(0, weight.abs().flatten().topk(5).indices, 1).view(3, 4)
    hard = (weight * kept).requires_grad_()
    expected = ((x @ hard.T + bias) ** 2).sum()
    torch.testing.assert_close(value(params), expected)
    expected.backward()
    torch.testing.assert_close(gradient, hard.grad)
    assert (gradient[kept == 0] != 0).all()
