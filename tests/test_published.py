"""Methods against their published definitions, each written down again from its source without any of ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.functions import Scored, score_of
from lthfunc.experiments.methods import at_init
from lthfunc.experiments.methods.prepare import setting_of
from lthfunc.experiments.methods.setting import Setting, samples
from lthfunc.experiments.resolve import resolved
from lthfunc.trees.model import apply_training
from lthfunc.trees.types import Batch, Params


@pytest.fixture(scope="module")
def setting() -> Setting:
    """LeNet-300-100 on the digits, at one half."""
    return setting_of(resolved(Config(density=0.5, rounds=2, steps=80, engine="eager")))[1]


# ---- GraSP ----


def published_grasp(setting: Setting, state: lf.TrainState, batches: list[Batch]) -> Params:
    """w · Hg by double backward, of outputs divided by 200 (Wang et al. 2020, alg. 1 and 2, and their code)."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
    weights = [leaves[name] for name in state.masks]

    def slopes(batch: Batch) -> tuple[Tensor, ...]:
        outputs, _ = apply_training(setting.model, leaves, state.buffers, batch[0])
        return torch.autograd.grad(F.cross_entropy(outputs / 200, batch[1]), weights, create_graph=True)

    each = [slopes(batch) for batch in batches]
    held = [sum(parts).detach() for parts in zip(*each, strict=True)]
    sum((g * h).sum() for parts in each for g, h in zip(parts, held, strict=True)).backward()
    return {name: leaves[name].detach() * leaves[name].grad for name in state.masks}


def same_order(left: Params, right: Params) -> bool:
    """Whether the best tenth of all weights agree, but for roundings."""
    masks = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in left.items()}
    kept = [lf.unstructured(scores, masks, lf.globally(scores, masks, 0.9)) for scores in (left, right)]
    return lf.mask_overlap(*kept) > 0.995


def test_grasp_is_one_definition_the_published_one(setting: Setting) -> None:
    """By name, as a method, and in Python."""
    state = lf.init(setting.model, 3)
    batches = samples(setting, 3, at_init._BATCHES, "grasp")
    wanted = published_grasp(setting, state, batches)
    ours = at_init.by_grasp(setting, state, 3)(state.params, state.masks)
    assert same_order(ours, wanted)
    now = Scored(setting.model, setting.trainer.data, setting.trainer.batch_size, 1e-3, 3, 1, state, state)
    assert same_order(score_of("grasp")(now)(state.params, state.masks), published_grasp(setting, state, now.batches()))
    plain = lf.grasp(lf.loss_of(setting.model, state.buffers), batches)
    assert lf.same_bits(plain(state.params, state.masks), ours)
    hot = lf.grasp(lf.loss_of(setting.model, state.buffers), batches, temperature=1)
    assert not same_order(hot(state.params, state.masks), wanted)


def test_a_loss_that_knows_no_outputs_has_no_temperature(setting: Setting) -> None:
    state = lf.init(setting.model, 3)
    batches = samples(setting, 3, 2, "grasp")
    loss = lf.loss_of(setting.model, state.buffers)
    with pytest.raises(UserError, match=r"temperature: 200 divides the network's outputs, .* give temperature=1"):
        lf.grasp(lambda params, batch: loss(params, batch), batches)
    with pytest.raises(UserError, match="temperature: 0 is not accepted; it takes a number above 0"):
        lf.grasp(loss, batches, temperature=0)
    own = lf.grasp(lambda params, batch: loss(params, batch), batches, temperature=1)
    assert lf.same_bits(
        own(state.params, state.masks), lf.grasp(loss, batches, temperature=1)(state.params, state.masks)
    )


# ---- Zhou et al. 2019, large init large final ----


@pytest.mark.parametrize("seed", range(3))
def test_large_init_large_final_aligns_percentiles(seed: int) -> None:
    """The weights of a layer whose |w_i| and |w_f| both reach the p-th percentile, as in the authors' code."""
    generator = torch.Generator().manual_seed(seed)
    then = {"a": torch.randn(30, 20, generator=generator), "b": torch.randn(10, 40, generator=generator)}
    # What training made of them, ten times as large in one layer as in the other.
    now = {name: 5 * then[name] + torch.randn(then[name].shape, generator=generator) for name in then}
    now["b"] = now["b"] / 10
    masks = {name: torch.rand(leaf.shape, generator=generator) < 0.8 for name, leaf in then.items()}
    scores = lf.large_init_large_final(then)(now, masks)
    for p in (20, 50, 85):
        wanted = {}
        for name, mask in masks.items():
            sizes = [leaf[name].abs().where(mask, torch.tensor(torch.nan)).numpy() for leaf in (then, now)]
            wanted[name] = torch.from_numpy(np.logical_and(*(size >= np.nanpercentile(size, p) for size in sizes)))
        keep = {name: leaf.sum() for name, leaf in wanted.items()}
        kept = lf.unstructured(scores, masks, keep)
        assert all(torch.equal(kept[name], wanted[name]) for name in masks), p
        # min(α |w_f|, |w_i|), α so that the percentiles are equal, says the same of each layer.
        for name, mask in masks.items():
            first, last = (leaf[name].abs() for leaf in (then, now))
            alpha = np.percentile(first[mask].numpy(), p) / np.percentile(last[mask].numpy(), p)
            order = torch.minimum(alpha * last, first).where(mask, -torch.ones(())).flatten().argsort(descending=True)
            assert set(order[: int(keep[name])].tolist()) == set(kept[name].flatten().nonzero().flatten().tolist())
