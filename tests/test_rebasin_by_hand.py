"""Rebasin by hand: the mask of one training in the order of another one's units."""

from __future__ import annotations

import pytest
import torch
from method_plans import outcome
from scipy.optimize import linear_sum_assignment
from test_methods_by_hand import (
    DENSITY,
    LAYERS,
    SEED,
    STEPS,
    Setting,
    a_setting,  # noqa: F401
    by_hand,
    dense_of,
    largest,
    quality,
)

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK
from lthfunc.errors import UserError
from lthfunc.experiments.methods.rebasin import rebasin
from lthfunc.experiments.rewinding_and_controls import RoundContext
from lthfunc.reports.method_costs import NetworkFlops, training_flops
from lthfunc.trees.rng import key


@pytest.mark.parametrize("late", [0, 6])
def test_the_mask_is_trained_in_the_order_of_other_weights(setting: Setting, late: int) -> None:
    """Adnan et al. 2025: two dense trainings, the first's mask in the second's order, from its early weights."""
    ours, seed = dense_of(setting), key(SEED, "rebasin")
    theirs = lf.init(setting.model, seed)
    trained = by_hand(setting, ours.params, ours.masks).last
    start, _ = lf.take_steps(setting.trainer, theirs, seed=seed, until=late) if late else (theirs, 0)
    other = lf.take_steps(setting.trainer, theirs, seed=seed, until=STEPS)[0].params
    closeness = other["1.weight"] @ trained["1.weight"].T + other["3.weight"].T @ trained["3.weight"]
    closeness = closeness + torch.outer(other["1.bias"], trained["1.bias"])
    places = torch.from_numpy(linear_sum_assignment(closeness.numpy(), maximize=True)[1])
    masks = largest({name: trained[name].abs() for name in LAYERS}, round(DENSITY * 1480), ours.masks)
    masks = {"1.weight": masks["1.weight"][places], "3.weight": masks["3.weight"][:, places]}
    plan = setting.plan("rebasin", rounds=1, rewind=f"step:{late}" if late else None)
    found = outcome(plan, SEED)
    assert (lf.same_bits(found.masks, masks), found.steps) == (True, 2 * STEPS - late)
    expected = by_hand(setting, start.params, masks, first=late)
    for name, leaf in expected.last.items():
        torch.testing.assert_close(found.last.fit.state.params[name], leaf, rtol=1e-6, atol=1e-9)
    assert found.test == pytest.approx(quality(expected.chosen, setting.trainer.data.test), rel=1e-6)
    assert found.last.fit.curve[0].step == late


def test_the_second_network_is_its_average_where_weights_are_averaged(setting: Setting) -> None:
    """The first one is given; the order is that of the second one's averaged weights, not of its last ones."""
    plan, seed = setting.plan("rebasin", rounds=1, ema=0.98), key(SEED, "rebasin")
    trained, theirs = lf.init(setting.model, 11), lf.init(setting.model, seed)
    end, _ = lf.take_steps(plan.trainer, theirs, seed=seed, until=STEPS)
    relations = lf.dependencies(setting.model, plan.trainer.data.shape)
    orders = [lf.align_units(trained.params, other.params, relations)["1.weight"] for other in (end, lf.averaged(end))]
    assert not torch.equal(*orders)
    assert plan.pruner is not None
    found = plan.pruner(trained, RoundContext(setting.model, SEED, 1, theirs), DENSITY)
    masks = lf.prune(density=DENSITY)(trained).masks
    assert torch.equal(found.masks["1.weight"], masks["1.weight"][orders[1]])
    assert torch.equal(found.masks["3.weight"], masks["3.weight"][:, orders[1]])
    assert found.opt == ()


def test_it_takes_one_density_and_early_weights(setting: Setting) -> None:
    with pytest.raises(UserError, match=r"^--rewind: --method rebasin trains early weights .* takes init, step:K"):
        setting.plan("rebasin", rounds=1, rewind="lr")
    with pytest.raises(UserError, match=r"^--rounds: invalid value 2 \(expected 1 with --method rebasin"):
        setting.plan("rebasin", density=None, densities="0.5,0.2")


def test_it_is_refused_on_several_ranks(setting: Setting) -> None:
    plan = setting.plan("imp", rounds=1)
    group = SINGLE_RANK._replace(world_size=2)
    with pytest.raises(UserError, match=r"^--method: rebasin trains its second dense network in one process"):
        rebasin(plan._replace(trainer=plan.trainer._replace(work=plan.trainer.work._replace(collectives=group))))


def test_flops_of_training_count_the_second_dense_training(setting: Setting) -> None:
    flops, plan = NetworkFlops({"1.weight": 100.0, "3.weight": 10.0}, 1.0), setting.plan("rebasin", rounds=1)
    item = {"layers": {name: {"total": 10, "density": 0.5} for name in LAYERS}, "final_step": STEPS, "curve": [[20]]}
    ticket, dense = 3 * setting.trainer.batch_size * (STEPS - 20) * 56, 3 * setting.trainer.batch_size * STEPS * 111
    for number, variant, expected in ((0, "ticket", ticket), (1, "ticket", ticket + dense), (1, "reinit", ticket)):
        record = {**item, "round": number, "variant": variant}
        assert training_flops(flops, plan, record, dense_updates=False) == expected
