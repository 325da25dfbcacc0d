"""Methods against their published definitions, each written down again from its source without any of ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from method_plans import outcome
from torch import Tensor

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.functions import ScoreContext, score_of
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods import during_training, trained_masks
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.resolve import resolved
from lthfunc.training.parametrize import trained_and_fixed
from lthfunc.trees.model import apply_training
from lthfunc.trees.types import Batch, Params


@pytest.fixture(scope="module")
def setting() -> Plan:
    """LeNet-300-100 on the digits, pruned to one half as soon as an early bird emerges."""
    return prepare(resolved(Config(method="early-bird", density=0.5, steps=80, engine="eager"))).plan


def samples(setting: Plan, count: int) -> list[Batch]:
    return lf.sample_batches(setting.trainer.data, setting.trainer.batch_size, count, 3)


# ---- GraSP ----


def published_grasp(setting: Plan, state: lf.TrainState, batches: list[Batch]) -> Params:
    """w · Hg by double backward, of outputs divided by 200 (Wang et al. 2020, alg. 1 and 2, and their code)."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
    weights = [leaves[name] for name in state.masks]

    def slopes(batch: Batch) -> tuple[Tensor, ...]:
        outputs, _ = apply_training(setting.model, leaves, state.buffers, batch[0])
        return torch.autograd.grad(F.cross_entropy(outputs / 200, batch[1]), weights, create_graph=True)

    each = [slopes(batch) for batch in batches]
    held = [sum(parts).detach() for parts in zip(*each, strict=True)]
    sum((g * h).sum() for parts in each for g, h in zip(parts, held, strict=True)).backward()
    return {name: leaves[name].detach() * gradient_of(leaves[name]) for name in state.masks}


def same_order(left: Params, right: Params) -> bool:
    """Whether the best tenth of all weights agree, but for roundings."""
    masks = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in left.items()}
    kept = [lf.unstructured(scores, masks, lf.globally(scores, masks, 0.9)) for scores in (left, right)]
    return lf.mask_overlap(*kept) > 0.995


def test_grasp_is_one_definition_the_published_one(setting: Plan) -> None:
    """By name and in Python."""
    state = lf.init(setting.model, 3)
    batches = samples(setting, 10)
    wanted = published_grasp(setting, state, batches)
    now = ScoreContext(setting.model, setting.trainer.data, setting.trainer.batch_size, 1e-3, 3, 1, state, state)
    assert same_order(score_of("grasp")(now)(state.params, state.masks), published_grasp(setting, state, now.batches()))
    plain = lf.grasp(lf.loss_of(setting.model, state.buffers), batches)
    assert same_order(plain(state.params, state.masks), wanted)
    hot = lf.grasp(lf.loss_of(setting.model, state.buffers), batches, temperature=1)
    assert not same_order(hot(state.params, state.masks), wanted)


def test_a_loss_that_knows_no_outputs_has_no_temperature(setting: Plan) -> None:
    state = lf.init(setting.model, 3)
    batches = samples(setting, 2)
    loss = lf.loss_of(setting.model, state.buffers)
    with pytest.raises(UserError, match=r"temperature: 200 divides the network's outputs, .* pass temperature=1"):
        lf.grasp(lambda params, batch: loss(params, batch), batches)
    with pytest.raises(UserError, match=r"temperature: invalid value 0 \(expected a number above 0"):
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


# ---- masks that are trained ----


def test_edge_popups_gradient_goes_to_the_size_of_scores() -> None:
    """Ramanujan et al. 2020: top k of |s|, straight through, and on to s by the sign."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 5, generator=generator, requires_grad=True)
    weight, x = torch.randn(6, 5, generator=generator), torch.randn(9, 5, generator=generator)
    (x @ (weight * trained_masks.popped(scores, 11)).T).square().sum().backward()

    mask = (
        torch.zeros(30).index_fill(0, scores.detach().abs().flatten().topk(11).indices, 1).view(6, 5).requires_grad_()
    )
    (x @ (weight * mask).T).square().sum().backward()
    assert int(mask.sum()) == 11
    torch.testing.assert_close(scores.grad, gradient_of(mask) * scores.detach().sign())


def test_edge_popups_scores_are_drawn_as_published(setting: Plan) -> None:
    """Kaiming-uniform with a = √5: within 1 / √fan-in, of both signs."""
    through = trained_masks.edge_popup(setting._replace(densities=(0.5,))).through[0]
    begun = through.begin(lf.init(setting.model, 0), 0)
    seen, _ = trained_and_fixed(begun.params, begun.buffers)
    assert len(seen) == 3
    for leaf in seen.values():
        bound = leaf.shape[1] ** -0.5
        assert leaf.abs().max() <= bound
        assert float(leaf.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert abs(float(leaf.mean())) < 0.1 * bound


def test_supermasks_are_scaled_by_layer() -> None:
    """Zhou et al. 2019, sec. 5.2: weights times (all / ones) of their layer, gradients too, as in their code."""
    generator = torch.Generator().manual_seed(0)
    odds = torch.randn(7, 4, generator=generator, requires_grad=True)
    weight, drawn = torch.randn(7, 4, generator=generator), torch.rand(7, 4, generator=generator)
    hard = (drawn < odds.sigmoid()).float()
    chances = odds.sigmoid()
    (weight * trained_masks.rescaled(lf.straight_through(hard, chances))).pow(3).sum().backward()

    again = odds.detach().clone().requires_grad_()
    mask = hard + again.sigmoid() - again.sigmoid().detach()
    (mask.numel() / mask.sum() * mask * weight).pow(3).sum().backward()
    torch.testing.assert_close(odds.grad, again.grad)
    torch.testing.assert_close(trained_masks.rescaled(hard), hard * 28 / hard.sum())


# ---- early bird ----


class PublishedEarlyBird:
    """The first five masks in a row of which the last differs from each before it in at most a tenth (their code)."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []

    def emerges(self, mask: Tensor) -> bool:
        self.masks = [*self.masks, mask][-5:]
        distances = [1 - float((mask == other).sum()) / len(mask) for other in self.masks[:-1]]
        return len(self.masks) == 5 and not any(distance > 0.1 for distance in distances)


def test_early_birds_emerge_as_published_at_one_half(setting: Plan) -> None:
    """The same look, the weights and the schedule going on from there, to the bit."""
    found = outcome(setting, 2)
    theirs, state = PublishedEarlyBird(), lf.init(setting.model, 2)
    every = setting.steps // 40
    for step in range(every, setting.steps, every):
        state, _ = lf.take_steps(setting.trainer, state, seed=2, until=step)
        sparse = lf.prune(density=0.5)(state)
        if theirs.emerges(torch.cat([mask.flatten() for mask in sparse.masks.values()])):
            break
    assert every * 5 <= step < setting.steps - every
    end = lf.fit(setting.trainer, sparse, seed=2, until=setting.steps, eval_every=setting.eval_every)
    assert lf.same_bits(found.last.fit.state[:3], end.state[:3])
    assert [each.step for each in found.last.fit.changes if each.exchanged] == [step]
    assert found.steps == setting.steps


def test_the_threshold_of_early_birds_is_a_tenth() -> None:
    """On either side of it, in any of the masks before the last."""
    for density, most, place in ((0.5, 100, 0), (0.2, 40, 3), (0.9, 20, 1)):
        first = torch.arange(100) < 100 * density
        for changed in range(0, most + 1, 2):
            other = first.clone()
            other[first.nonzero()[: changed // 2]] = False
            other[(~first).nonzero()[: changed // 2]] = True
            queue = [{"w": first}] * 5
            queue[place] = {"w": other}
            assert during_training.settled(queue) == (changed <= 10), (density, changed)
    assert not during_training.settled([{"w": first}] * 4)


# ---- SynFlow ----


@pytest.mark.parametrize("rounds", [None, 7])
def test_synflow_prunes_in_as_many_rounds_as_it_is_told(rounds: int | None) -> None:
    """Tanaka et al. 2020, alg. 1: to density^(k / n) in round k, by |w| ∂R/∂|w|, 100 rounds unless told otherwise."""
    config = resolved(Config(method="synflow", density=0.01, steps=4, engine="eager", score_rounds=rounds))
    setting = prepare(config).plan
    found = outcome(setting, 4).masks
    params = lf.init(setting.model, 4).params
    sizes = {name: leaf.abs().double() for name, leaf in params.items()}
    masks = {name: torch.ones_like(params[name], dtype=torch.bool) for name in found}
    total = sum(mask.numel() for mask in masks.values())
    for k in range(1, (rounds or 100) + 1):
        leaves = {n: (leaf * masks[n] if n in masks else leaf).requires_grad_() for n, leaf in sizes.items()}
        x = torch.ones(1, 64, dtype=torch.float64)
        for layer in ("fc1", "fc2", "fc3"):
            x = x @ leaves[f"{layer}.weight"].T + leaves[f"{layer}.bias"]
        gradients = torch.autograd.grad(x.sum(), [leaves[name] for name in masks])
        scores = torch.cat([(leaves[n].detach() * g).flatten() for n, g in zip(masks, gradients, strict=True)])
        alive = torch.cat([mask.flatten() for mask in masks.values()])
        kept = torch.zeros_like(alive)
        kept[scores.where(alive, -1.0).topk(round(total * 0.01 ** (k / (rounds or 100)))).indices] = True
        parts = kept.split([mask.numel() for mask in masks.values()])
        masks = {name: part.view_as(mask) for (name, mask), part in zip(masks.items(), parts, strict=True)}
        sizes = {name: leaf.detach() for name, leaf in sizes.items()}
    assert lf.mask_overlap(found, masks) > 0.99
