"""SparseGPT against the published algorithm, written down again without any of ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.activations import Moments

ROWS, COLUMNS = 16, 32


def published(
    weight: Tensor, hessian: Tensor, density: float, block: int, damping: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Frantar & Alistarh 2023, alg. 1, with the dead inputs and the damping of their code. (weights, mask).

    The damping is a share of the diagonal's mean before dead inputs get their 1.
    """
    w, damp = weight.clone(), damping * hessian.diagonal().mean()
    hessian = hessian.clone()
    for column in range(len(hessian)):
        if hessian[column, column] == 0:
            hessian[column, column] = 1
            w[:, column] = 0
    hessian += damp * torch.eye(len(hessian), dtype=hessian.dtype)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    mask = torch.ones_like(w, dtype=torch.bool)
    for first in range(0, w.shape[1], block):
        columns = range(first, min(first + block, w.shape[1]))
        worth = torch.stack([w[:, column] ** 2 / upper[column, column] ** 2 for column in columns], 1)
        gone = worth.flatten().sort().indices[: round((1 - density) * worth.numel())]
        mask[:, columns] = torch.ones(worth.numel(), dtype=torch.bool).index_fill(0, gone, False).view_as(worth)
        for column in columns:
            error = torch.where(mask[:, column], 0, w[:, column]) / upper[column, column]
            w[:, column:] -= error[:, None] * upper[column, column:]
    return w * mask, mask


def case(dead: list[int]) -> tuple[lf.TrainState, Tensor, dict[str, Tensor]]:
    """A linear layer, inputs of which some are always zero, and their moments."""
    torch.manual_seed(0)
    model = lf.from_module(nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False).double()), init=lf.as_built)
    x = (torch.randn(400, 8) @ torch.randn(8, COLUMNS) + torch.randn(400, COLUMNS)).double()
    x[:, dead] = 0
    state = lf.init(model, 0)
    return state, x, lf.input_moments(model, state, [x])


def error(state: lf.TrainState, after: lf.TrainState, x: Tensor) -> float:
    """Of the outputs, relative."""
    weight, new = state.params["0.weight"], after.params["0.weight"]
    return float(((x @ (weight - new).T) ** 2).sum() / ((x @ weight.T) ** 2).sum())


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("dead", [[], [0, 3, 17, 20, 21]])
def test_it_is_the_published_algorithm(dead: list[int], damping: float) -> None:
    state, x, moments = case(dead)
    after = lf.sparsegpt(moments, 0.5, block=16, damping=damping)(state)
    weight, mask = published(state.params["0.weight"], x.T @ x / len(x), 0.5, 16, damping)
    assert torch.equal(after.masks["0.weight"], mask)
    torch.testing.assert_close(after.params["0.weight"], weight)


def test_what_stays_of_a_block_is_asked_for_by_the_papers_score() -> None:
    """(w / d)², below zero where a weight was pruned before."""
    state, x, moments = case([])
    mask = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) % 3 > 0
    weight, told = state.params["0.weight"] * mask, list[Tensor]()

    def all_that_are_left(scores: Tensor, share: float) -> Tensor:
        told.append(scores)
        return scores >= 0

    after = lf.sparsegpt(moments, 0.5, choose=all_that_are_left, block=COLUMNS, damping=0.0)(
        state._replace(params={**state.params, "0.weight": weight}, masks={"0.weight": mask})
    )
    upper = torch.linalg.cholesky(torch.linalg.inv(x.T @ x / len(x)), upper=True)
    torch.testing.assert_close(told[0][mask], (weight / upper.diagonal()).square()[mask])
    assert (told[0][~mask] < 0).all()
    assert torch.equal(after.masks["0.weight"], mask)


def test_the_unit_of_inputs_makes_no_difference() -> None:
    """The default damping is a hundredth of their mean square."""
    state, _, moments = case([2])
    after = lf.sparsegpt(moments, 0.5)(state)
    assert lf.same_bits(after, lf.sparsegpt(moments, 0.5, damping=0.01)(state))
    other = lf.sparsegpt({"0.weight": moments["0.weight"] * 1e6}, 0.5)(state)
    assert torch.equal(other.masks["0.weight"], after.masks["0.weight"])
    torch.testing.assert_close(other.params["0.weight"], after.params["0.weight"])


def test_weights_on_inputs_that_are_always_zero_go_first() -> None:
    dead = list(range(8, 24))
    state, x, moments = case(dead)
    after = lf.sparsegpt(moments, 0.5, block=16)(state)
    assert not after.masks["0.weight"][:, dead].any()
    assert error(state, after, x) == 0  # all that reads anything fits
    # Where there are too few others, some stay for the density's sake, as zeros.
    more = lf.sparsegpt(moments, 0.75, block=16)(state)
    assert lf.count(more.masks).kept == 0.75 * ROWS * COLUMNS
    assert (more.params["0.weight"][:, dead] == 0).all()
    assert error(state, more, x) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), left=st.floats(0.3, 1), share=st.floats(0.1, 1), block=st.sampled_from([5, 16, 128]))
def test_the_density_is_exact_from_any_start(seed: int, left: float, share: float, block: int) -> None:
    """Layers and blocks that are unevenly sparse, inputs that are always zero: counts are exact and masks nest."""
    generator = torch.Generator().manual_seed(seed)
    model = lf.from_module(nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 4)))
    start = lf.init(model, 0)
    slope = torch.linspace(0, 2, 20)  # the first columns are nearly empty
    masks = {
        name: torch.rand(mask.shape, generator=generator) < left * (slope if mask.shape[1] == 20 else 1)
        for name, mask in start.masks.items()
    }
    start = start._replace(masks=masks, params=lf.apply_masks(start.params, masks))
    x = torch.randn(60, 20, generator=generator)
    x[:, torch.rand(20, generator=generator) < 0.3] = 0
    density = share * lf.density(masks)
    after = lf.sparsegpt(lf.input_moments(model, start, [x]), density, block=block)(start)
    whole = lf.count(masks)
    assert lf.count(after.masks).kept == whole.kept - round(whole.kept * (1 - density * whole.total / whole.kept))
    for name, mask in masks.items():
        assert not (after.masks[name] & ~mask).any()
        assert (after.params[name][~after.masks[name]] == 0).all()


def test_a_density_above_what_is_left_is_refused() -> None:
    state, _, moments = case([])
    sparse = lf.prune(density=0.25)(state)
    with pytest.raises(UserError, match=r"density: invalid value 0.5 \(expected a number in \(0, 0.25\]"):
        lf.sparsegpt(moments, 0.5)(sparse)


def test_blocks_have_128_columns_unless_told_otherwise() -> None:
    model = lf.from_module(nn.Linear(150, 4), init=lf.as_built)
    state = lf.init(model)
    moments = lf.input_moments(model, state, [torch.randn(300, 150, generator=torch.Generator().manual_seed(1))])
    by_default, other = lf.sparsegpt(moments, 0.5)(state), lf.sparsegpt(moments, 0.5, block=129)(state)
    assert lf.same_bits(by_default, lf.sparsegpt(moments, 0.5, block=128)(state))
    assert not lf.same_bits(by_default, other)


def test_blocks_keep_one_density_as_far_as_their_inputs_are_read() -> None:
    """Of 20 columns that are read the second block has 4, which all stay: 64 weights, where its share was 128."""
    state, _, moments = case(list(range(20, 32)))
    mask = lf.sparsegpt(moments, 0.5, block=16)(state).masks["0.weight"]
    assert int(mask[:, :16].sum()) == 192
    assert mask[:, 16:20].all()
    assert not mask[:, 20:].any()


def test_groups_of_a_convolution_are_layers_of_their_own() -> None:
    """Each with the moments of its inputs, and half of its weights."""
    model = lf.from_module(nn.Conv2d(4, 8, 3, groups=2).double(), init=lf.as_built)
    state, draw = lf.init(model), torch.Generator().manual_seed(1)
    x = torch.randn(20, 4, 6, 6, generator=draw, dtype=torch.float64)
    moments = lf.input_moments(model, state, [x], convolutions=True)
    after = lf.sparsegpt(moments, 0.5, block=9)(state)
    for group in range(2):
        rows = F.unfold(x[:, 2 * group : 2 * group + 2], 3).transpose(1, 2).flatten(0, 1)
        mine = slice(4 * group, 4 * group + 4)
        weight, mask = published(state.params["weight"][mine].flatten(1), rows.T @ rows / len(rows), 0.5, 9, 0.01)
        assert torch.equal(after.masks["weight"][mine].flatten(1), mask)
        torch.testing.assert_close(after.params["weight"][mine].flatten(1), weight)


def test_layers_may_be_stored_as_inputs_and_outputs() -> None:
    """As `Conv1D` of transformers is; the diagonals of moments are too little for it."""
    state, _, found = case([3])
    turned = state._replace(
        params={"0.weight": state.params["0.weight"].T}, masks={"0.weight": state.masks["0.weight"].T}
    )
    moments = Moments(found)
    moments.transposed = frozenset(found)
    after, plain = lf.sparsegpt(moments, 0.5, block=16)(turned), lf.sparsegpt(found, 0.5, block=16)(state)
    assert lf.same_bits(after.params["0.weight"].T, plain.params["0.weight"])
    assert lf.same_bits(after.masks["0.weight"].T, plain.masks["0.weight"])
    moments.diagonal = True
    with pytest.raises(UserError, match=r"^moments: are diagonals alone; lf.input_moments"):
        lf.sparsegpt(moments, 0.5)(turned)
