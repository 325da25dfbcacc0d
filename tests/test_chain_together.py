"""Chains as a whole: on ranks and shards, under vmap, in order, with a user's parts, and beside optax's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from test_chain import DRAW, MODEL, ONE, RATE, X, Y, ours, start, wide
from test_sharded import part, whole
from threads_as_ranks import Ranks
from torch import nn

import lthfunc as lf
from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.training.chain import ChainState
from lthfunc.trees.ops import tree_map
from lthfunc.trees.types import TrainState

#: With everything that sees more than its own weight.
EVERYTHING = lf.chain(
    lf.accumulate(2), lf.sam(0.1), lf.clip_by_value(0.05), lf.clip_by_global_norm(0.1), lf.sgd(RATE, 0.9),
    lf.scale_rates({"fc2*": 0.5}), lf.decay_weights(0.1, RATE), lf.lookahead(3), lf.ema(0.8),
)  # fmt: skip


@pytest.mark.parametrize("cut", [False, True], ids=["whole states", "shards"])
def test_ranks_take_the_step_of_one(cut: bool) -> None:
    """Norms are those of the mean gradient, and of all shards together."""
    # A rank takes its half of the batch in two parts: the same parts, in another order.
    order = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
    layers = OrderedDict(fc1=nn.Linear(6, 8), tanh=nn.Tanh(), fc2=nn.Linear(8, 4))
    model = lf.from_module(nn.Sequential(layers))
    begin = lf.with_optimizer(wide(lf.prune(fraction=0.4)(lf.init(model, 1))), EVERYTHING)
    alone, step = begin, lf.make_train_step(model, lf.cross_entropy, EVERYTHING)
    for x, y in zip(X, Y, strict=True):
        alone, _ = step(alone, (x, y))

    def one(rank: int, collectives: Collectives) -> TrainState:
        state = begin
        if cut:
            cuts = begin._replace(params=part(begin.params, rank, 2), masks=part(begin.masks, rank, 2), opt=())
            state = lf.with_optimizer(cuts, EVERYTHING)
        make = lf.make_sharded_step if cut else lf.make_train_step
        step: Any = make(model, lf.cross_entropy, EVERYTHING, collectives=collectives)
        for x, y in zip(X, Y, strict=True):
            state, _ = step(state, (x[order][4 * rank : 4 * rank + 4], y[order][4 * rank : 4 * rank + 4]))
        return state

    found = Ranks(2).run(one)
    for tree in (lambda state: state.params, lambda state: lf.averaged(state).params):
        theirs = whole([tree(state) for state in found]) if cut else tree(found[0])
        torch.testing.assert_close(theirs, tree(alone), rtol=1e-9, atol=1e-12)
    assert cut or lf.same_bits(*found)


def test_states_side_by_side_are_those_alone() -> None:
    """Under vmap, each with a norm of its own."""
    step = lf.make_train_step(MODEL, lf.cross_entropy, EVERYTHING)
    states = [wide(lf.with_optimizer(lf.init(MODEL, seed), EVERYTHING)) for seed in (0, 1)]
    together = tree_map(lambda *leaves: torch.stack(leaves), *states)
    batches = X[:2], Y[:2]
    found, _ = torch.vmap(step)(together, batches)
    for number, state in enumerate(states):
        alone, _ = step(state, (X[number], Y[number]))
        each = tree_map(lambda leaf, number=number: leaf[number], found)
        torch.testing.assert_close(tuple(each[:2]), tuple(alone[:2]), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(lf.averaged(each).params, lf.averaged(alone).params, rtol=1e-9, atol=1e-12)


def test_a_chain_is_flat_and_in_order() -> None:
    clip, adam, ema = lf.clip_by_global_norm(1.0), lf.adam(0.1), lf.ema(0.9)
    assert lf.chain(lf.chain(clip, adam), ema).parts == (clip, adam, ema)
    for wrong, words in (
        ((clip,), "takes one optimiser, such as lf.adam.1e-3., not none"),
        ((adam, adam), "takes one optimiser, .* not 2"),
        ((adam, clip), "clip_by_global_norm works on the gradient, so it comes before the optimiser"),
        ((ema, adam), "ema works on the weights, so it comes after the optimiser"),
        ((lf.accumulate(2), lf.accumulate(2), adam), "accumulate is given twice"),
    ):
        with pytest.raises(UserError, match=f"^chain: {words}"):
            lf.chain(*wrong)
    with pytest.raises(TypeError, match=r"chain: parts must be a part of a chain, .* not "):
        lf.chain(clip, torch.optim.Adam)  # type: ignore[arg-type]
    for make, words in (
        (lambda: lf.clip_by_global_norm(0.0), "max_norm: invalid value 0.0"),
        (lambda: lf.ema(1.0), "decay: invalid value 1.0"),
        (lambda: lf.scale_rates({"fc1*": -1.0}), "factors: invalid value -1.0"),
        (lambda: lf.layerwise_decay(MODEL, 0.5, ["fc1*"]), "layers: invalid value 'fc1"),
        (lambda: lf.with_optimizer(start(), lf.chain(adam, lf.scale_rates({"fc9*": 1.0}))), "invalid value 'fc9"),
        (lambda: lf.chain(lf.sam(), adam).update(ONE, ChainState(((), ())), ONE, torch.tensor(0)),
         "asks for a second gradient"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            make()


def test_what_is_mixed_or_a_users_own_is_masked_before_the_average() -> None:
    """Muon moves pruned weights, and so may a user's part."""
    shifted = lf.Part("shifted", lambda p, b: (), lambda tree, state, now: ({n: g + 1 for n, g in tree.items()}, state))
    for optimizer in (lf.chain(lf.muon(0.1), lf.ema(0.5)), lf.chain(shifted, lf.sgd(0.1), lf.ema(0.5)),
                      lf.chain(lf.sgd(0.1), shifted._replace(follows=True), lf.ema(0.5))):  # fmt: skip
        found = lf.averaged(ours(optimizer))
        assert all(not found.params[name][~mask].any() for name, mask in found.masks.items())
    wrong = shifted._replace(update=lambda tree, state, now: (None, state))  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=r"^optimizer: 'shifted' returned a NoneType"):
        ours(lf.chain(wrong, lf.sgd(0.1)))


def test_optax_gives_the_same() -> None:
    """Clipping, Adam's decay of some weights, and a debiased average."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    params = {"w": torch.randn(4, 3, generator=DRAW), "b": torch.randn(3, generator=DRAW)}
    grads = [{name: torch.randn(leaf.shape, generator=DRAW) for name, leaf in params.items()} for _ in range(6)]
    theirs = optax.chain(
        optax.clip_by_global_norm(1.5), optax.adamw(RATE, weight_decay=0.1, mask={"w": True, "b": False})
    )
    average = optax.ema(0.9, debias=True)

    @jax.jit  # type: ignore[untyped-decorator]
    def their_step(other: Any, state: Any, mean: Any, grads: Any) -> Any:
        moves, state = theirs.update(grads, state, other)
        other = optax.apply_updates(other, moves)
        return other, state, average.update(other, mean[1])

    optimizer = lf.chain(
        lf.clip_by_global_norm(1.5), lf.adamw(RATE, weight_decay=0.1, decays=lf.is_matrix), lf.ema(0.9)
    )
    state, now = optimizer.init(params), params
    other = {name: leaf.numpy() for name, leaf in params.items()}
    their_state, mean = theirs.init(other), (other, average.init(other))
    for step, each in enumerate(grads):
        now, state = optimizer.update(each, state, now, torch.tensor(step))
        other, their_state, mean = their_step(
            other, their_state, mean, {key: leaf.numpy() for key, leaf in each.items()}
        )
    for name, leaf in now.items():
        np.testing.assert_allclose(leaf, other[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.parts[2].params[name], mean[0][name], rtol=1e-5, atol=1e-6)
