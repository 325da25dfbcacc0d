"""Sign-In, SWAMP and the group lasso against trainings in plain PyTorch, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from method_plans import outcome, plan_for
from scipy.optimize import minimize
from test_methods_by_hand import (
    BATCH,
    DENSITY,
    EVERY,
    LAYERS,
    RATE,
    SEED,
    STEPS,
    Setting,
    a_setting,  # noqa: F401
    agree,
    by_hand,
    dense_of,
    largest,
    outputs,
    quality,
)
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.experiments.methods.group_lasso import _shrinking, by_groups, shrunk
from lthfunc.experiments.methods.swamp import repeated
from lthfunc.experiments.rewinding_and_controls import RoundContext
from lthfunc.reports.method_costs import NetworkFlops, training_flops
from lthfunc.training.batches import batches
from lthfunc.training.chain import ChainContext
from lthfunc.trees.types import Params

TOTAL = 1480


@pytest.mark.parametrize(("every", "decay"), [(None, 0.0), (7, 0.01)])
def test_sign_in_by_hand(setting: Setting, every: int | None, decay: float) -> None:
    """Products of two factors under a random mask; m² - w² is 1 at first and every few steps."""
    start = lf.prune(density=DENSITY, score=lf.random_scores(SEED, "score"), allocate=lf.erk())(dense_of(setting))
    data = setting.trainer.data

    def halves(product: Tensor) -> tuple[Tensor, Tensor]:  # m² is the positive root of m⁴ - m² - product²
        m = ((1 + (1 + 4 * product**2) ** 0.5) / 2) ** 0.5
        return m, product / m

    params: Params = {name: nn.Parameter(leaf.clone()) for name, leaf in start.params.items() if name not in LAYERS}
    pairs = {name: [nn.Parameter(leaf.clone()) for leaf in halves(start.params[name])] for name in LAYERS}
    leaves = [*params.values(), *(leaf for pair in pairs.values() for leaf in pair)]
    optimizer = torch.optim.SGD(leaves, RATE, momentum=0.9, weight_decay=decay)
    best = math.inf
    chosen: Params = {}

    def network() -> Params:
        return {**params, **{name: m * w * start.masks[name] for name, (m, w) in pairs.items()}}

    for step in range(STEPS + 1):
        if step % EVERY == 0 and (loss := quality(network(), data.val).loss) < best:
            best, chosen = loss, {name: leaf.detach().clone() for name, leaf in network().items()}
        if step < STEPS:
            ((x, y),) = batches(data.train, BATCH, SEED, step, step + 1)
            optimizer.zero_grad()
            F.cross_entropy(outputs(network(), x), y).backward()
            optimizer.step()
            if (step + 1) % (every or STEPS // 20) == 0:
                for m, w in pairs.values():
                    m.data, w.data = halves((m * w).detach())
    found = setting.outcome("sign-in", rescale_every=every, weight_decay=decay)
    assert lf.same_bits(found.masks, start.masks)
    for name, leaf in chosen.items():
        torch.testing.assert_close(found.ticket.params[name], leaf, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        found.last.fit.state.params["1.weight"], network()["1.weight"].detach(), rtol=1e-6, atol=1e-9
    )


def mean_of(networks: list[Params]) -> Params:
    return {name: torch.stack([each[name].detach() for each in networks]).mean(0) for name in networks[0]}


def test_particles_learn_from_batches_of_their_own_and_their_mean_is_pruned(setting: Setting) -> None:
    """Choi et al. 2024, alg. 1: two from the same ticket; means over them and over the steps from 90 on."""
    data, dense, many = setting.trainer.data, dense_of(setting), 2
    end = by_hand(setting, dense.params, dense.masks).last
    masks, mean = dense.masks, end
    chosen: Params = {}
    for number in (1, 2):
        masks = largest({name: mean[name].abs() for name in LAYERS}, round(DENSITY ** (number / 2) * TOTAL), masks)
        all_params: list[Params] = [
            {name: nn.Parameter(leaf * masks.get(name, 1)) for name, leaf in dense.params.items()} for _ in range(many)
        ]
        optimizers = [torch.optim.SGD(params.values(), RATE, momentum=0.9) for params in all_params]
        seen: list[Params] = []

        best = math.inf
        for step in range(STEPS + 1):
            if step >= 90:
                seen.append(mean_of(all_params))
            mean = mean_of(seen or all_params)
            if step % EVERY == 0 and (loss := quality(mean, data.val).loss) < best:
                best, chosen = loss, mean
            if step == STEPS:
                break
            ((x, y),) = batches(data.train, many * BATCH, SEED, step, step + 1)
            for params, optimizer, xs, ys in zip(all_params, optimizers, x.chunk(many), y.chunk(many), strict=True):
                optimizer.zero_grad()
                F.cross_entropy(outputs(params, xs), ys).backward()
                for name, mask in masks.items():
                    gradient_of(params[name]).mul_(mask)
                optimizer.step()
    found = setting.outcome("swamp", particles=many)
    for name, mask in masks.items():
        assert torch.equal(found.masks[name], mask)
    for name, leaf in mean.items():
        torch.testing.assert_close(found.last.fit.state.params[name], leaf, rtol=1e-6, atol=1e-9)
    for name, leaf in chosen.items():
        torch.testing.assert_close(found.ticket.params[name], leaf, rtol=1e-6, atol=1e-9)
    assert found.test == pytest.approx(quality(chosen, data.test), rel=1e-6)
    assert [each.trainer.batch_size for each in setting.plan("swamp").through] == [4 * BATCH] * 2


def test_particles_begin_alike_in_memory_of_their_own(setting: Setting) -> None:
    leaf = torch.arange(6.0).view(2, 3)
    (many,) = repeated({"w": leaf}, 3).values()
    assert torch.equal(many, torch.stack([leaf] * 3))
    many[1] += 1
    assert many.sum((1, 2)).tolist() == [15, 21, 15]
    assert float(leaf.sum()) == 15
    dense = dense_of(setting)
    for mask in setting.plan("swamp").through[0].begin(dense, SEED).masks.values():
        mask[1] = False
        assert [bool(each.all()) for each in mask] == [True, False, True, True]
    assert lf.density(dense.masks) == 1


def test_costs_are_of_all_particles_and_of_the_weights_that_compute(setting: Setting) -> None:
    flops = NetworkFlops({"1.weight": 100.0, "3.weight": 10.0}, 1.0)
    layers = {"1.weight": {"total": 10, "density": 0.2}, "3.weight": {"total": 10, "density": 0.5}}
    item = {"layers": layers, "round": 1, "final_step": 7, "curve": [[2]]}
    for name, dense, many in (("swamp", False, 4), ("sign-in", False, 1), ("group-lasso", False, 1), ("ste", True, 1)):
        each = 111.0 if dense else 26.0
        found = training_flops(flops, setting.plan(name), item, dense_updates=False)
        assert found == 3 * BATCH * many * 5 * each, name
    first = training_flops(flops, setting.plan("swamp"), {**item, "round": 0}, dense_updates=False)
    assert first == 3 * BATCH * 5 * 26.0


def test_groups_shrink_as_the_proximal_operator_says() -> None:
    """The minimum of ½ ‖x - w‖² + λ √n ‖x‖, found numerically for each group."""
    weight = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [[1.0], [0.2], [0.05], [3.0]]
    )
    for by_inputs in (False, True):
        matrix = weight.T if by_inputs else weight
        new = shrunk(weight, by_inputs, 0.3)
        for row, found in zip(matrix, new.T if by_inputs else new, strict=True):
            target = row.numpy()

            def penalised(x: np.ndarray, target: np.ndarray = target) -> float:
                return float(((x - target) ** 2).sum() / 2 + 0.3 * math.sqrt(len(target)) * np.linalg.norm(x))

            exact = minimize(penalised, target / 2, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14})
            np.testing.assert_allclose(found.numpy(), exact.x, atol=1e-4)
    assert [bool(row.any()) for row in shrunk(weight, False, 0.3)] == [True, False, False, True]
    kernel = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(shrunk(kernel, False, 0.3).flatten(1), shrunk(kernel.flatten(1), False, 0.3))
    zero = torch.zeros(2, 2)
    assert torch.equal(shrunk(zero, False, 0.1), zero)


def test_whole_groups_remain_and_the_largest_weights_of_the_last_one() -> None:
    weight = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.2, -1.1], [2.0, 2.0, 2.1]])
    for by_inputs in (False, True):
        scores = by_groups(weight.T if by_inputs else weight, by_inputs)
        order = (scores.T if by_inputs else scores).flatten().argsort(descending=True, stable=True).tolist()
        assert order == [8, 6, 7, 0, 1, 2, 4, 5, 3]
    assert by_groups(torch.randn(4, 2, 3, 3), False).shape == (4, 2, 3, 3)


@pytest.mark.parametrize("scale", [1.0, 1e9])
def test_scores_order_thousands_of_groups_exactly(scale: float) -> None:
    """In float32, too, of which a number of groups leaves no digits for the weights within one."""
    weight = scale * torch.randn(3000, 8, generator=torch.Generator().manual_seed(3))
    scores = by_groups(weight, False)
    groups = scores.floor()
    assert torch.equal(groups, groups[:, :1].expand_as(groups))
    assert sorted(groups[:, 0].tolist()) == list(range(3000))
    sizes = weight.double().square().mean(1)[groups[:, 0].argsort()]
    assert bool((sizes[1:] >= sizes[:-1] * (1 - 1e-6)).all())
    assert torch.equal(scores.argsort(1), weight.abs().argsort(dim=1, stable=True))
    alike = by_groups(torch.ones(500, 2), False)[:, 0].floor()
    assert alike.tolist() == list(range(500)), "of equal groups the last ones remain, on every machine"


@pytest.mark.parametrize(("density", "left"), [(1.0, 10), (0.25, 2), (0.01, 1)])
def test_groups_never_shrink_below_the_density(density: float, left: int) -> None:
    """However fast they shrink: of ten groups, none of a dense network, and at least one remains."""
    weight = torch.arange(1.0, 11)[:, None].expand(10, 3).contiguous()
    part = _shrinking({"w": False}, density, rate=100.0)
    params = {"w": weight, "b": torch.ones(3)}
    new, _ = part.update(params, part.init(params, {}), ChainContext(params, torch.tensor(0)))
    assert new["w"].any(1).nonzero().flatten().tolist() == list(range(10 - left, 10))
    if density == 1:
        assert lf.same_bits(new, params)
    assert torch.equal(new["b"], params["b"])


def test_the_group_lasso_by_hand(setting: Setting) -> None:
    """Rows of the hidden layer and columns of the output layer shrink, but never to less than a fifth of them."""
    data, dense = setting.trainer.data, dense_of(setting)
    params: Params = {name: nn.Parameter(leaf.clone()) for name, leaf in dense.params.items()}
    optimizer = torch.optim.SGD(params.values(), RATE, momentum=0.9)

    def sizes(name: str) -> Tensor:
        return params[name].detach().square().mean(1 if name == "1.weight" else 0).sqrt()

    def wide(name: str, each: Tensor) -> Tensor:
        return (each[:, None] if name == "1.weight" else each[None]).expand_as(params[name])

    amount, bounded = {name: 6 / STEPS * float(sizes(name).mean()) for name in LAYERS}, dict.fromkeys(LAYERS, 0)
    for step in range(STEPS):
        ((x, y),) = batches(data.train, BATCH, SEED, step, step + 1)
        optimizer.zero_grad()
        F.cross_entropy(outputs(params, x), y).backward()
        optimizer.step()
        for name in LAYERS:
            fifth = sorted(sizes(name).tolist())[-5]  # of 20; the other four remain
            bounded[name] += fifth < amount[name]
            factors = 1 - min(amount[name], fifth) / sizes(name).clamp(min=1e-99)
            params[name].data *= wide(name, torch.clamp(factors, min=0))
    assert 0 < bounded["1.weight"] < STEPS
    masks = {}
    for name in LAYERS:
        group, weight = wide(name, sizes(name)).flatten(), params[name].detach().abs().flatten()
        order = torch.from_numpy(np.lexsort([-weight.numpy(), -group.numpy()]))  # by the group first
        flat = torch.zeros(len(order), dtype=torch.bool)
        masks[name] = flat.index_fill(0, order[: len(order) // 5], True).view(params[name].shape)
    shrunken = {name: leaf.detach() for name, leaf in params.items()}
    plan = setting.plan("group-lasso", rounds=1, shrinkage=6.0)
    agree(setting, outcome(plan, SEED), by_hand(setting, shrunken, masks))
    assert (masks["1.weight"].sum(1) == 64).sum() == 4  # whole rows


def test_units_of_transposed_convolutions_are_columns(few_digits: lf.Dataset) -> None:
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 6, 2), nn.Flatten(),
        nn.Linear(54, 10),
    )  # fmt: skip
    model = lf.from_module(net)
    plan = plan_for("group-lasso", model, few_digits, steps=6, eval_every=3, batch_size=40, density=0.5)
    state = lf.init(model)
    scores = plan.score(state, RoundContext(model, 0, 1, state))(state.params, state.masks)["3.weight"].floor()
    assert scores.unique().tolist() == list(range(6))
    assert torch.equal(scores, scores[:1, :, :1, :1].expand_as(scores))
