"""Every method ends at the density, the same seed gives the same bits, and what methods are made of, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import gradient_of
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.pruning import ALLOCATIONS
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.functions import allocation_of
from lthfunc.experiments.methods import while_training
from lthfunc.experiments.methods.context import MethodContext
from lthfunc.experiments.methods.prepare import method_context
from lthfunc.experiments.resolve import resolved
from lthfunc.training.parametrize import parametrized, straight_through, top_k_mask
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.model import apply_training


@pytest.fixture(scope="module")
def setting() -> MethodContext:
    """LeNet-300-100 on the digits, at a tenth of its weights."""
    return method_context(resolved(Config(density=0.1, rounds=2, steps=60, engine="eager")))[1]


@pytest.fixture(scope="module")
def falling() -> MethodContext:
    """The same, at a rate that drops to a hundredth."""
    return method_context(resolved(Config(density=0.1, rounds=2, steps=60, engine="eager", schedule="step")))[1]


def test_names_are_those_of_the_functions() -> None:
    state = lf.init(lf.from_module(nn.Linear(20, 10)))
    for name in ALLOCATIONS:
        keep = allocation_of(Config(allocate=name))(lf.magnitude(state.params, state.masks), state.masks, 0.2)
        assert int(keep["weight"]) == (180 if name == "layerwise" else 160)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_ends_at_the_density_with_the_same_bits(
    name: str, setting: MethodContext, falling: MethodContext
) -> None:
    setting = falling if name == "imp-tuned" else setting
    first = METHODS.load(name)(setting, 1)
    whole = lf.count(first.ticket.masks)
    assert whole.kept == (whole.total if name == "dense" else round(0.1 * whole.total))
    for leaf, mask in first.ticket.masks.items():
        assert (first.ticket.params[leaf][~mask] == 0).all()
    second = METHODS.load(name)(setting, 1)
    assert lf.same_bits(first.ticket, second.ticket)
    assert first.test == second.test
    trainings = first.steps / setting.steps
    expected = {
        "imp": 3, "imp-lr": 3, "imp-tuned": 3, "imp-cyclic": 3, "imp-late": 3 - 0.1, "one-shot": 2,
        "iterative-random-erk": 3, "iterative-random-balanced": 3,
    }.get(name, 1)  # fmt: skip
    assert trainings == pytest.approx(expected)


def test_masks_move_only_where_methods_say_so(setting: MethodContext) -> None:
    dense = lf.init(setting.model, 1, "cpu")
    assert lf.same_bits(
        METHODS.load("snip-reinit")(setting, 1).ticket.masks, METHODS.load("snip")(setting, 1).ticket.masks
    )
    shuffled, plain = (
        METHODS.load("snip-shuffled")(setting, 1).ticket.masks,
        METHODS.load("snip")(setting, 1).ticket.masks,
    )
    assert lf.layer_counts(shuffled) == lf.layer_counts(plain)
    assert lf.mask_overlap(shuffled, plain) < 0.5
    # Supermasks and edge-popup train no weight.
    popup = METHODS.load("edge-popup")(setting, 1).ticket
    for name, mask in popup.masks.items():
        kept = popup.params[name][mask]
        assert len(kept.abs().unique()) == 1
        assert torch.equal(kept.sign(), dense.params[name][mask].sign())
    chosen = METHODS.load("supermask")(setting, 1).ticket
    for name, mask in chosen.masks.items():
        ratio = chosen.params[name][mask] / dense.params[name][mask]
        torch.testing.assert_close(ratio, torch.full_like(ratio, mask.numel() / int(mask.sum())), rtol=1e-3, atol=0)


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


def test_rigl_grows_where_the_dense_gradient_is_largest(setting: MethodContext) -> None:
    state = lf.prune(density=0.1, score=lf.random_scores(0))(lf.init(setting.model, 0))
    promise = while_training.by_gradient(setting, state, 0, 5)
    from lthfunc.experiments.methods.context import samples

    (batch,) = samples(setting, 0, 1, "regrow/5")
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
    outputs, _ = apply_training(setting.model, leaves, state.buffers, batch[0])
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


def test_rewindings_by_hand(setting: MethodContext) -> None:
    anchor = lf.init(setting.model, 0)
    trained = lf.prune(density=0.5)(
        lf.train(setting.model, setting.trainer.data, optimizer=lf.adam(1e-3), steps=5)(anchor)
    )
    sign = lf.constant_sign(trained, anchor)
    for name, mask in trained.masks.items():
        spread = anchor.params[name].std(correction=0)
        torch.testing.assert_close(sign.params[name], anchor.params[name].sign() * spread * mask)
    rate = lf.learning_rate_rewound(trained, 3)
    assert (int(rate.step), rate.opt) == (3, ())
    assert lf.same_bits(rate.params, trained.params)
    assert int(lf.finetuned(trained).step) == 5
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
