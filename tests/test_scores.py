"""Scores against independent references: plain autograd, finite differences, conservation laws, cases by hand."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.activations import input_moments
from lthfunc.training.loss_of_params import forward_of, loss_of
from lthfunc.trees.model import apply_evaluating, apply_training
from lthfunc.trees.types import Batch, Masks, Params


@pytest.fixture(scope="module")
def model() -> lf.Model:
    return lf.from_module(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double())


@pytest.fixture(scope="module")
def trees(model: lf.Model) -> tuple[Params, Masks]:
    state = lf.prune(fraction=0.3, score=lf.random_scores(1))(lf.init(model, 3))
    return state.params, state.masks


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(7, 6, generator=generator, dtype=torch.float64), torch.randint(0, 3, (7,), generator=generator))
        for _ in range(3)
    ]


def gradients(model: lf.Model, params: Params, batch: Batch) -> Params:
    """By plain autograd."""
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    F.cross_entropy(apply_training(model, leaves, {}, batch[0])[0], batch[1]).backward()
    return {name: gradient_of(leaf) for name, leaf in leaves.items()}


def mean(trees: list[Params]) -> Params:
    return {name: torch.stack([tree[name] for tree in trees]).mean(0) for name in trees[0]}


def close(left: Params, right: Params, **tolerance: Any) -> None:
    for name, leaf in left.items():
        torch.testing.assert_close(leaf, right[name], msg=f"{name}: {{}}".format, **tolerance)


def test_snip_is_the_sensitivity_by_plain_autograd(
    model: lf.Model, trees: tuple[Params, Masks], batches: list[Batch]
) -> None:
    params, masks = trees
    g = mean([gradients(model, params, batch) for batch in batches])
    close(lf.snip(loss_of(model, {}), batches)(params, masks), {n: (g[n] * params[n]).abs() for n in params})


def test_grasp_is_the_hessian_product_by_finite_differences(
    model: lf.Model, trees: tuple[Params, Masks], batches: list[Batch]
) -> None:
    params, masks = trees
    g = mean([gradients(model, params, batch) for batch in batches])
    g = {name: leaf * masks[name] if name in masks else torch.zeros_like(leaf) for name, leaf in g.items()}
    epsilon = 1e-5

    def along(sign: float) -> Params:
        moved = {name: leaf + sign * epsilon * g[name] for name, leaf in params.items()}
        return mean([gradients(model, moved, batch) for batch in batches])

    ahead, behind = along(1), along(-1)
    expected = {name: params[name] * (ahead[name] - behind[name]) / (2 * epsilon) for name in params}
    close(lf.grasp(loss_of(model, {}), batches, temperature=1)(params, masks), expected, atol=1e-9, rtol=1e-5)
    flattened = lf.grasp(loss_of(model, {}), batches, temperature=200.0)(params, masks)
    close(lf.grasp(loss_of(model, {}), batches)(params, masks), flattened)


def test_taylor_and_fisher_are_means_of_squares(
    model: lf.Model, trees: tuple[Params, Masks], batches: list[Batch]
) -> None:
    params, masks = trees
    each = [{n: (g * params[n]) ** 2 for n, g in gradients(model, params, batch).items()} for batch in batches]
    close(lf.taylor(loss_of(model, {}), batches)(params, masks), mean(each))
    examples = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    squares = mean([{n: g**2 for n, g in gradients(model, params, example).items()} for example in examples])
    expected = {name: squares[name] * params[name] ** 2 / 2 for name in params}
    close(lf.fisher(loss_of(model, {}), batches)(params, masks), expected)


@pytest.mark.parametrize("lr", [0.0, 0.5])
def test_movement_sums_along_gradient_descent(
    model: lf.Model, trees: tuple[Params, Masks], batches: list[Batch], lr: float
) -> None:
    params, masks = trees
    at, total = dict(params), {name: torch.zeros_like(params[name]) for name in masks}
    for batch in batches:
        g = gradients(model, at, batch)
        total = {name: total[name] - g[name] * at[name] for name in masks}
        at = lf.apply_masks({name: leaf - lr * g[name] for name, leaf in at.items()}, masks)
    close(lf.movement(loss_of(model, {}), batches, lr)(params, masks), total)
    if lr == 0:
        close(lf.movement(loss_of(model, {}), batches)(params, masks), total)


@pytest.mark.parametrize("arch", ["lenet300", "lenet5", "conv2"])
def test_synaptic_flow_is_conserved(arch: str) -> None:
    """Every layer's scores sum to the same: what flows in flows out (Tanaka et al. 2020, theorem 2)."""
    shape = (1, 28, 28) if arch.startswith("lenet") else (3, 32, 32)
    from lthfunc.models.factory import build

    model = build(arch, shape, 10)
    state = lf.prune(density=0.4, score=lf.random_scores(0))(lf.init(model, 0))
    scores = lf.synflow(forward_of(model, state.buffers), shape)(state.params, state.masks)
    totals = [float(leaf.sum()) for leaf in scores.values()]
    assert totals == pytest.approx([totals[0]] * len(totals), rel=1e-9)
    assert totals[0] > 0
    assert all((leaf >= 0).all() and (leaf[~state.masks[name]] == 0).all() for name, leaf in scores.items())


def test_iterated_synflow_empties_no_layer_where_one_shot_does() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2), nn.ReLU(), nn.Linear(2, 40)))
    start = lf.init(model, 0)
    score = lf.synflow(forward_of(model, {}), (40,))
    iterated = lf.prune_to_densities(lf.geometric(0.02, 100), score=score)(start)
    assert lf.collapsed_layers(iterated.masks) == ()
    assert lf.count(iterated.masks).kept == round(0.02 * 1760)


def test_scores_that_look_back() -> None:
    now, then = {"w": torch.tensor([1.0, -3.0, 0.5])}, {"w": torch.tensor([2.0, 1.0, -0.5])}
    masks = {"w": torch.tensor([True, True, True])}
    assert lf.large_init(then)(now, masks)["w"].tolist() == [2, 1, 0.5]
    assert lf.magnitude_increase(then)(now, masks)["w"].tolist() == [-1, 2, 0]
    assert lf.distance_moved(then)(now, masks)["w"].tolist() == [1, 4, 1]
    assert lf.large_init_large_final(then)(now, masks)["w"].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert lf.inverted_score(lf.magnitude)(now, masks)["w"].tolist() == [-1, -3, -0.5]
    for make in (lf.large_init, lf.magnitude_increase, lf.distance_moved, lf.large_init_large_final):
        for other, fault in (({"v": then["w"]}, "missing in it"), ({"w": torch.ones(1)}, r"of shape \(1,\) in it")):
            with pytest.raises(
                UserError, match=rf"^anchor: belongs to another network: 'w', of shape \(3,\), is {fault}"
            ):
                make(other)(now, masks)


def test_wanda_by_hand() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(2, 2, bias=False)))
    state = lf.init(model, 0)
    weights = {"0.weight": torch.tensor([[1.0, -2.0], [3.0, 0.5]])}
    x = torch.tensor([[3.0, 0.0], [4.0, 1.0]])
    moments = input_moments(model, state, [x])
    scores = lf.wanda(moments)(weights, state.masks)["0.weight"]
    norms = (x**2).mean(0).sqrt()
    torch.testing.assert_close(scores, weights["0.weight"].abs() * norms)


def error(weight: Tensor, new: Tensor, x: Tensor) -> float:
    return float(((x @ (weight - new).T) ** 2).sum())


def compensated(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """The definition: each pruned weight in turn, those to its right take the values that make up for it best."""
    w = weight.clone()
    for column in range(w.shape[1]):
        right = torch.arange(column + 1, w.shape[1])
        share = torch.linalg.solve(hessian[right][:, right], hessian[right, column])
        gone = torch.where(mask[:, column], 0, w[:, column])
        w[:, right] += gone[:, None] * share
        w[:, column] -= gone
    return w


def test_sparsegpt_makes_up_for_what_it_prunes() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 16, bias=False).double()
    weight = layer.weight.detach().clone()
    model = lf.from_module(nn.Sequential(layer), init=lf.as_built)
    state = lf.init(model, 0)
    x = (torch.randn(400, 8) @ torch.randn(8, 32) + torch.randn(400, 32)).double()
    pruned = lf.sparsegpt(input_moments(model, state, [x]), 0.5, block=16, damping=0.0)(state)
    new, mask = pruned.params["0.weight"], pruned.masks["0.weight"]
    assert lf.count(pruned.masks).kept == 256
    assert (new[~mask] == 0).all()
    torch.testing.assert_close(new, compensated(weight, mask, x.T @ x))
    assert error(weight, new, x) < 0.6 * error(weight, weight * mask, x)
    assert error(weight, new, x) < 0.5 * error(weight, lf.prune(density=0.5)(state).params["0.weight"], x)


def test_sparsegpt_of_two_columns_is_the_closed_form() -> None:
    """With one column to make up for the other: w2 += w1 · H12 / H22."""
    model = lf.from_module(nn.Sequential(nn.Linear(2, 1, bias=False)).double())
    state = lf.init(model, 0)
    state = state._replace(params={"0.weight": torch.tensor([[0.1, 2.0]], dtype=torch.float64)})
    moments = {"0.weight": torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)}
    found = lf.sparsegpt(moments, 0.5, damping=0.0)(state)
    assert found.masks["0.weight"].tolist() == [[False, True]]
    torch.testing.assert_close(found.params["0.weight"], torch.tensor([[0.0, 2.0 + 0.1 * 0.6 / 2.0]]).double())


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_sparsegpt_does_not_depend_on_the_unit_of_its_inputs(unit: float) -> None:
    """Damping is a share of the Hessian's diagonal; a number of its own would outweigh small inputs."""
    model = lf.from_module(nn.Sequential(nn.Linear(12, 6, bias=False)).double())
    state = lf.init(model, 0)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, other = (lf.sparsegpt(input_moments(model, state, [x * u]), 0.5)(state) for u in (1.0, unit))
    assert lf.same_bits(plain.masks, other.masks)
    close(other.params, plain.params, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "make",
    [lf.snip, *(pytest.param(make, marks=pytest.mark.long) for make in (lf.grasp, lf.taylor, lf.fisher, lf.movement))],
)
def test_scores_of_data_compile(
    make: Callable[..., lf.Score], model: lf.Model, trees: tuple[Params, Masks], batches: list[Batch]
) -> None:
    params, masks = trees
    score = make(loss_of(model, {}), batches)
    compiled = torch.compile(lambda p: score(p, masks), backend="aot_eager", fullgraph=True)
    close(compiled(params), score(params, masks))


def test_compiled_functions_do_not_depend_on_other_networks_in_use(
    model: lf.Model, trees: tuple[Params, Masks], batches: list[Batch]
) -> None:
    """Which may go while one is compiled."""
    params, masks = trees
    others = [lf.from_module(nn.Linear(2, 2)) for _ in range(3)]
    for other in others:
        apply_evaluating(other, *other.init(0), torch.zeros(1, 2))

    def backend(graph: Any, example: Any) -> Any:
        others.clear()
        gc.collect()
        return graph

    fresh = lf.from_module(model.training)  # called last, and so found behind the others
    score = lf.snip(loss_of(fresh, {}), batches)
    wanted = score(params, masks)
    close(torch.compile(lambda p: score(p, masks), backend=backend, fullgraph=True)(params), wanted)


def test_synflow_compiles(trees: tuple[Params, Masks], model: lf.Model) -> None:
    params, masks = trees
    score = lf.synflow(forward_of(model, {}), (6,))
    compiled = torch.compile(lambda p: score(p, masks), backend="aot_eager", fullgraph=True)
    close(compiled(params), score(params, masks))


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (lambda p, m: {n: torch.full_like(p[n], torch.nan) for n in m}, "30 of 30 scores of 0.weight are NaN"),
        (lambda p, m: {"0.weight": p["0.weight"]}, "one leaf for each of 0.weight, 2.weight"),
        (lambda p, m: {n: p[n].flatten() for n in m}, r"a leaf of shape \(5, 6\)"),
        (lambda p, m: [p[n] for n in m], "invalid value 'list'"),
    ],
)
def test_scores_of_another_kind_are_refused(score: lf.Score, words: str, model: lf.Model) -> None:
    with pytest.raises(UserError, match=words):
        lf.prune(density=0.5, score=score)(lf.init(model, 0))


def test_no_batches_are_refused(model: lf.Model) -> None:
    with pytest.raises(UserError, match=r"batches: invalid value .*at least one"):
        lf.snip(loss_of(model, {}), [])
