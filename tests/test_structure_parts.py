"""Structures of masks, moments of inputs and surgery, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small import data, state_of
from test_pruning_parts import truth
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.sparsegpt import best_of_block
from lthfunc.sparsify.structures import as_matrix, from_matrix, has_blocks, has_n_of_m, has_units

# ---- structures ----


@pytest.mark.parametrize("shape", [(6,), (4, 6), (4, 6, 3), (2, 3, 4, 5)])
def test_leaves_are_matrices_of_outputs_and_inputs(shape: tuple[int, ...]) -> None:
    leaf = torch.arange(math.prod(shape)).view(shape)
    matrix = as_matrix(leaf)
    assert matrix.shape == (shape[0], leaf[0].numel())
    assert torch.equal(from_matrix(matrix, shape), leaf)
    if len(shape) > 2:  # channels innermost: neighbours are neighbouring channels at one place
        assert matrix[0, : shape[1]].tolist() == leaf[0].flatten(1)[:, 0].tolist()


def test_structures_are_recognised() -> None:
    assert has_n_of_m(truth("xx..", ".x.x", "...."), 2, 4)
    assert has_n_of_m(truth("xx..x..x"), 2, 4)
    assert not has_n_of_m(truth("xx..xxx."), 2, 4)
    assert not has_n_of_m(truth("xxx.", "...."), 2, 4)
    assert not has_n_of_m(truth("......"), 2, 4)
    assert has_n_of_m(truth("xxxxxx"), 3, 3)
    assert has_blocks(truth("xx..", "xx.."), 2, 2)
    assert has_blocks(truth("xx..", "..xx"), 1, 2)
    assert not has_blocks(truth("xx..", "x..."), 2, 2)
    assert not has_blocks(truth("xx.."), 2, 2)
    assert not has_blocks(truth("xxx", "xxx"), 2, 2)
    assert has_blocks(truth("xxx", "xxx"), 2, 3)
    assert has_units(truth("xxx", "...", "xxx"))
    assert not has_units(truth("xxx", "x.."))
    assert not has_units(truth("x..", "..."))


def select(structure: Any, scores: Tensor, mask: Tensor | None = None, keep: int = 0) -> Tensor:
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    found: Tensor = structure({"a": scores}, {"a": mask}, {"a": torch.tensor(keep)})["a"]
    return found


def test_n_of_m_by_hand() -> None:
    scores = torch.tensor([[4.0, 3, 2, 1], [1, 2, 8, 9]])
    assert torch.equal(select(lf.n_of_m(2, 4), scores, keep=4), truth("xx..", "..xx"))
    assert torch.equal(select(lf.n_of_m(2, 4), scores, keep=3), truth("x...", "..xx"))
    assert torch.equal(select(lf.n_of_m(2, 2), scores, keep=8), truth("xxxx", "xxxx"))
    assert torch.equal(select(lf.n_of_m(1, 2), scores, truth(".xxx", "xx.."), keep=3), truth(".xx.", ".x.."))
    with pytest.raises(UserError, match=r"^structure: 2:4 holds at most 4 of the 8 weights of a, but 5 are to be kept"):
        select(lf.n_of_m(2, 4), scores, keep=5)
    with pytest.raises(UserError, match=r"^structure: 2:3 doesn't divide the 4 inputs of a \(2, 4\); exempt the layer"):
        select(lf.n_of_m(2, 3), scores)
    with pytest.raises(UserError, match=r"^structure: 1:2 doesn't divide the 1 inputs of a \(4,\)"):
        select(lf.n_of_m(1, 2), scores[0])
    with pytest.raises(UserError, match=r"^structure: 1:4 doesn't divide the 2 inputs of a \(1, 2, 4\)"):
        select(lf.n_of_m(1, 4), torch.ones(1, 2, 4))
    for n, m in ((0, 4), (5, 4), (-1, 2)):
        with pytest.raises(UserError, match=f"^structure: invalid value '{n}:{m}' .*N:M with 1 ≤ N ≤ M"):
            lf.n_of_m(n, m)


def test_blocks_by_hand() -> None:
    scores = torch.tensor([[1.0, 1, 5, 0], [1, 1, 0, 0], [0, 0, 9, 9], [0, 3, 9, 9]])
    assert torch.equal(select(lf.blocks(2, 2), scores, keep=4), truth("....", "....", "..xx", "..xx"))
    assert torch.equal(select(lf.blocks(2, 2), scores, keep=9), truth("..xx", "..xx", "..xx", "..xx"))
    assert torch.equal(select(lf.blocks(2, 2), scores, keep=11), truth("xxxx", "xxxx", "..xx", "..xx"))
    assert torch.equal(select(lf.blocks(1, 4), scores, keep=4), truth("....", "....", "....", "xxxx"))
    assert torch.equal(select(lf.blocks(4, 1), scores, keep=4), truth("..x.", "..x.", "..x.", "..x."))
    lost = truth("xxxx", "xxxx", "xx..", "xx..")
    assert torch.equal(select(lf.blocks(2, 2), scores, lost, keep=12), truth("xxxx", "xxxx", "xx..", "xx.."))
    for structure, words in (
        (lf.blocks(3, 2), r"3x2 doesn't divide the 4 outputs"), (lf.blocks(2, 3), r"2x3 doesn't divide the 4 inputs"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"^structure: {words} of a \(4, 4\); exempt the layer \('a'\)$"):
            select(structure, scores)
    for rows, columns in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match=f"^structure: invalid value '{rows}x{columns}' .*a block of at least 1x1"):
            lf.blocks(rows, columns)
    lf.blocks(1, 1)
    with pytest.raises(UserError, match=r"^exempt: invalid value 'b' .*a pattern that matches one of a"):
        select(lf.blocks(1, 1, ["b"]), scores)


def test_units_by_hand() -> None:
    scores = torch.tensor([[1.0, 1], [5, 0], [9, 9]])
    assert torch.equal(select(lf.units(), scores, keep=2), truth("..", "..", "xx"))
    assert torch.equal(select(lf.units(), scores, keep=4), truth("..", "xx", "xx"))
    assert torch.equal(select(lf.units(), scores, keep=3), truth("..", "..", "xx"))  # as near as two: the fewer
    assert torch.equal(select(lf.units(), scores, keep=0), truth("..", "..", "xx"))  # at least one
    # The mean of what is left: of the second unit 5, though its sum is less than the first's.
    assert torch.equal(
        select(lf.units(), torch.tensor([[3.0, 3], [5, 0]]), truth("xx", "x."), keep=1), truth("..", "x.")
    )
    assert torch.equal(select(lf.units(), scores, truth("xx", "xx", ".."), keep=2), truth("..", "xx", ".."))


def test_rows_keep_equally_many() -> None:
    scores = torch.tensor([[1.0, 2, 3], [9, 8, 7], [4, 6, 5]])
    assert torch.equal(select(lf.per_output(), scores, keep=3), truth("..x", "x..", ".x."))
    assert torch.equal(select(lf.per_output(), scores, keep=5), truth(".xx", "xx.", ".x."))
    assert torch.equal(select(lf.per_output(), scores, truth("x..", "xxx", "xxx"), keep=5), truth("x..", "xx.", ".xx"))


def test_a_block_of_columns_keeps_its_best() -> None:
    scores = torch.tensor([[1.0, 5, 5], [5, 0, 2]])
    assert torch.equal(best_of_block(scores, 1 / 3), truth(".xx", "..."))  # equals in their order
    assert torch.equal(best_of_block(scores, 0.4), truth(".xx", "..."))  # 2.4 are 2
    assert torch.equal(best_of_block(scores, 0.5), truth(".xx", "x.."))
    assert torch.equal(best_of_block(scores, 0.0), truth("...", "..."))
    assert torch.equal(best_of_block(scores, 1.0), truth("xxx", "xxx"))
    for density in (0.0, -0.5, 1.5):
        with pytest.raises(UserError, match=r"density: .*a number in \(0, 1\]"):
            lf.sparsegpt({}, density)
    _, state = state_of()
    with pytest.raises(UserError, match="moments: invalid value"):
        lf.sparsegpt({}, 1.0)(state)


def test_moments_are_in_float64() -> None:
    model, state = state_of()
    x = 1e4 + torch.randn(40, 6)
    moments = lf.input_moments(model, state, [x[:30], x[30:]])
    wide = x.double()
    torch.testing.assert_close(moments["1.weight"], wide.T @ wide / 40, rtol=1e-14, atol=0)
    hidden = torch.relu(x @ (state.params["1.weight"] * state.masks["1.weight"]).T + state.params["1.bias"]).double()
    torch.testing.assert_close(moments["3.weight"], hidden.T @ hidden / 40, rtol=1e-5, atol=1e-3)


def test_moments_are_over_every_row_that_a_layer_reads() -> None:
    """Of tokens (n, length, features), and of batches of unlike sizes, all count the same."""
    model = lf.from_module(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    state = lf.init(model)
    x, y = torch.randn(6, 3, 4), torch.randn(2, 3, 4)
    moments = lf.input_moments(model, state, [x, y])
    rows = torch.cat([x.reshape(18, 4), y.reshape(6, 4)]).double()
    torch.testing.assert_close(moments["0.weight"], rows.T @ rows / 24)
    hidden = torch.relu(rows.float() @ state.params["0.weight"].T + state.params["0.bias"]).double()
    torch.testing.assert_close(moments["2.weight"], hidden.T @ hidden / 24, rtol=1e-5, atol=1e-6)


def test_surgery_leaves_the_state_that_it_was_given() -> None:
    model, state = state_of()
    moments = lf.input_moments(model, state, [data().train.x])
    before = {name: leaf.clone() for name, leaf in {**state.params, **state.masks}.items()}
    second = {name: leaf.clone() for name, leaf in moments.items()}
    after = lf.sparsegpt(moments, 0.4)(state._replace(opt=("moments",)))
    assert after.opt == ()
    assert lf.count(after.masks).kept == 18
    assert lf.same_bits({**state.params, **state.masks}, before)
    assert lf.same_bits(dict(moments), second)
    whole = lf.sparsegpt(moments, 0.4, block=2)(state)
    assert lf.count(whole.masks).kept == 18
    with pytest.raises(UserError, match=r"^damping: 0 is too small for these inputs; try 0\.1"):
        lf.sparsegpt({"1.weight": torch.ones(6, 6, dtype=torch.float64)}, 0.4, damping=0)(state)
    mixed = 3 * torch.ones(6, 6, dtype=torch.float64) - 2 * torch.eye(6, dtype=torch.float64)  # no inputs have these
    with pytest.raises(UserError, match=r"^damping: 0 is too small for these inputs; try 0\.1"):
        lf.sparsegpt({"1.weight": mixed}, 0.4, damping=0)(state)


def test_surgery_takes_128_columns_at_a_time_and_a_damping_of_a_hundredth() -> None:
    """As Frantar & Alistarh 2023, sec. 4; block by block, too."""
    model = lf.from_module(nn.Sequential(nn.Linear(200, 3, bias=False)).double())
    state, x = lf.init(model), torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).double()
    moments = lf.input_moments(model, state, [x])
    given = lf.sparsegpt(moments, 0.4, block=128, damping=0.01)(state)
    counts = {"0.weight": lf.count(given.masks).kept}
    for found in (lf.sparsegpt(moments, 0.4), lf.sparsegpt_pruning().prune(moments, counts)):
        assert lf.same_bits(found(state), given)
    others: list[dict[str, Any]] = [{"block": 129}, {"block": 64}, {"damping": 0.02}]
    for other in others:
        assert not lf.same_bits(lf.sparsegpt(moments, 0.4, **other)(state), given)
    told: list[tuple[int, ...]] = []

    def best(scores: Tensor, share: float) -> Tensor:
        told.append(tuple(scores.shape))
        return best_of_block(scores, share)

    lf.sparsegpt_pruning(best, block=50).prune(moments, counts)(state)
    assert told == [(3, 50)] * 4
