"""Structures are valid, exact and the best of their kind; dead units are found through any network."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.models.factory import build
from lthfunc.sparsify.dependencies import INPUT
from lthfunc.sparsify.structures import as_matrix, from_matrix
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.types import TrainState


def tree(*shape: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    scores = {"w": torch.randn(*shape, generator=torch.Generator().manual_seed(seed))}
    return scores, {"w": torch.ones(*shape, dtype=torch.bool)}


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3, 3)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 8), (2, 2)])
def test_n_of_m_keeps_the_best_of_each_group(shape: tuple[int, ...], n: int, m: int) -> None:
    scores, masks = tree(*shape)
    keep = {"w": torch.tensor(masks["w"].numel() * n // m)}
    mask = lf.n_of_m(n, m)(scores, masks, keep)["w"]
    assert lf.has_n_of_m(mask, n, m)
    assert int(mask.sum()) == int(keep["w"])
    # Groups run along neighbouring inputs (channels of a convolution, at one place of the kernel).
    places = itertools.product(*(range(side) for side in (shape[0], *shape[2:])))
    for out, *kernel in places:
        place: Any = (out, slice(None), *kernel)
        row = scores["w"][place].view(-1, m)
        kept = mask[place].view(-1, m)
        assert torch.equal(kept, row >= row.sort(1, descending=True).values[:, n - 1 : n])
    if n < m:
        assert not lf.has_n_of_m(torch.ones_like(mask), n, m)


def test_n_of_m_with_fewer_weights_stays_exact_and_nests() -> None:
    scores, masks = tree(6, 8)
    first = lf.n_of_m(2, 4)(scores, masks, {"w": torch.tensor(20)})
    second = lf.n_of_m(2, 4)(tree(6, 8, seed=1)[0], first, {"w": torch.tensor(7)})
    assert int(first["w"].sum()) == 20
    assert int(second["w"].sum()) == 7
    assert not (second["w"] & ~first["w"]).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.floats(0, 1), st.booleans())
def test_blocks_are_whole_and_the_best(
    rows: int, columns: int, down: int, across: int, density: float, kernel: bool
) -> None:
    shape = (rows * down, columns * across, *((3, 2) if kernel else ()))
    scores, masks = tree(*shape)
    keep = {"w": torch.tensor(round(density * masks["w"].numel()))}
    mask = lf.blocks(rows, columns)(scores, masks, keep)["w"]
    assert lf.has_blocks(mask, rows, columns)
    assert abs(int(mask.sum()) - int(keep["w"])) <= rows * columns / 2
    matrix, kept = as_matrix(scores["w"]), as_matrix(mask)
    sums = matrix.reshape(down, rows, -1, columns).sum((1, 3))
    chosen = kept.reshape(down, rows, -1, columns).any(3).any(1)
    if chosen.any() and not chosen.all():
        assert sums[chosen].min() >= sums[~chosen].max()
    assert torch.equal(from_matrix(as_matrix(scores["w"]), shape), scores["w"])


def test_pruned_weights_count_for_nothing_in_their_blocks() -> None:
    """Whatever scores they have, high or low."""
    scores = {"w": torch.tensor([[1.0, 1.0, 1.5, 50.0], [0.5, 0.4, 99.0, 99.0]])}
    masks = {"w": torch.tensor([[True, True, True, False], [True, True, False, False]])}
    best = lf.blocks(1, 2)(scores, masks, {"w": torch.tensor(2)})["w"]
    assert best.tolist() == [[True, True, False, False], [False] * 4]
    two = lf.blocks(1, 2)(scores, masks, {"w": torch.tensor(4)})["w"]
    assert two.tolist() == [[True, True, True, False], [False] * 4]
    minus = {"w": torch.tensor([[-1.0, -1.0, -1.0, -50.0]])}
    alive = {"w": torch.tensor([[True, True, True, False]])}
    kept = lf.blocks(1, 2)(minus, alive, {"w": torch.tensor(2)})["w"]
    assert kept.tolist() == [[False, False, True, False]]


def test_pruned_weights_count_for_nothing_in_their_units() -> None:
    """Whatever scores they have: of the first unit 2 is left, of the second the mean of 3 and 4."""
    scores = {"w": torch.tensor([[2.0, 90.0], [3.0, 4.0]])}
    masks = {"w": torch.tensor([[True, False], [True, True]])}
    assert lf.units()(scores, masks, {"w": torch.tensor(2)})["w"].tolist() == [[False, False], [True, True]]


def test_units_and_rows() -> None:
    scores, masks = tree(10, 4, 3, 3)
    mask = lf.units()(scores, masks, {"w": torch.tensor(100)})["w"]
    assert lf.has_units(mask)
    assert int(mask.flatten(1).any(1).sum()) == 3  # 108 weights come nearest to 100
    best = scores["w"].flatten(1).mean(1).topk(3).indices
    assert mask.flatten(1).all(1).nonzero().flatten().tolist() == sorted(best.tolist())
    assert not lf.has_units(lf.unstructured(scores, masks, {"w": torch.tensor(100)})["w"])
    even = lf.per_output()(scores, masks, {"w": torch.tensor(103)})["w"]
    assert int(even.sum()) == 103
    assert even.flatten(1).sum(1).tolist() == [11, 11, 11, *[10] * 7]


def test_what_does_not_divide_is_refused_by_name() -> None:
    scores, masks = tree(6, 10)
    keep = {"w": torch.tensor(30)}
    with pytest.raises(
        UserError, match=r"structure: 2:4 doesn't divide the 10 inputs of w \(6, 10\); exempt the layer"
    ):
        lf.n_of_m(2, 4)(scores, masks, keep)
    with pytest.raises(UserError, match="4x5 doesn't divide the 6 outputs of w"):
        lf.blocks(4, 5)(scores, masks, keep)
    with pytest.raises(UserError, match="holds at most 30 of the 60 weights of w, but 40 are to be kept"):
        lf.n_of_m(1, 2)(scores, masks, {"w": torch.tensor(40)})
    with pytest.raises(UserError, match=r"exempt: invalid value 'v\*' \(expected a pattern that matches one of w"):
        lf.n_of_m(1, 2, exempt=["v*"])(scores, masks, keep)
    plain = lf.n_of_m(2, 4, exempt=["w"])(scores, masks, keep)
    assert torch.equal(plain["w"], lf.unstructured(scores, masks, keep)["w"])


class Residual(nn.Module):
    """A branch around a grouped convolution, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        y = torch.cat([x + self.branch(x), x], 1)
        out: torch.Tensor = self.fc(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))
        return out


def test_units_are_of_weights_alone() -> None:
    """A bias that is to be pruned has no units, though its layer has."""
    model = lf.from_module(nn.Sequential(nn.Linear(4, 3)), prunable=["*.bias"])
    with pytest.raises(UserError, match=r"units prunes linear and convolution layers, but 0\.bias"):
        lf.dependencies(model, (4,))


def test_dependencies_follow_the_data_through_branches() -> None:
    found = lf.dependencies(lf.from_module(Residual()), (3, 6, 6))
    eye = torch.eye(8, dtype=torch.bool)
    assert torch.equal(found.feeds["first.weight", "norm.weight"], eye)
    assert torch.equal(found.feeds["first.weight", "branch.weight"], eye)
    assert torch.equal(found.feeds["first.weight", "fc.weight"], torch.cat([eye, eye], 1))
    assert torch.equal(found.feeds["branch.weight", "fc.weight"], torch.cat([eye, torch.zeros_like(eye)], 1))
    assert found.feeds[INPUT, "first.weight"].all()
    assert found.shown["fc.weight"].all()
    assert not found.shown["first.weight"].any()


@pytest.mark.parametrize("dead", range(8))
def test_a_dead_unit_takes_its_own_readers_with_it(dead: int) -> None:
    """In a grouped convolution those of its group alone, at its place in the group."""
    model = lf.from_module(Residual())
    state = lf.init(model, 0)
    masks = {name: mask.clone() for name, mask in state.masks.items()}
    masks["first.weight"][dead] = False
    fewer = lf.without_dead_units(state._replace(masks=masks), lf.dependencies(model, (3, 6, 6)))
    expected = {name: mask.clone() for name, mask in masks.items()}
    group, place = divmod(dead, 4)
    expected["branch.weight"][4 * group : 4 * group + 4, place] = False
    expected["fc.weight"][:, 8 + dead] = False  # the sum before it still has the branch's unit
    for name, mask in expected.items():
        assert torch.equal(fewer.masks[name], mask), name


def states_agree(model: lf.Model, left: TrainState, right: TrainState, x: torch.Tensor) -> None:
    ours = apply_evaluating(model, right.params, right.buffers, x)
    theirs = apply_evaluating(model, left.params, left.buffers, x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ["lenet300", "lenet5", "resnet20"])
def test_networks_without_dead_units_compute_the_same(arch: str) -> None:
    """Where biases are zero, a dead unit gives nothing, so that going without it changes no output."""
    shape = (1, 28, 28) if arch.startswith("lenet") else (3, 32, 32)
    model = build(arch, shape, 10)
    found = lf.dependencies(model, shape)
    state = lf.prune(density=0.3, select=lf.units(exempt=[model.prunable[-1]]), allocate=lf.uniform())(
        lf.init(model, 0)
    )
    fewer = lf.without_dead_units(state, found)
    assert lf.count(fewer.masks).kept < lf.count(state.masks).kept
    states_agree(model, state, fewer, torch.randn(5, *shape))
    # Nothing dead is read any more, and nothing unread is left.
    again = lf.without_dead_units(fewer, found)
    assert all(torch.equal(again.masks[name], mask) for name, mask in fewer.masks.items())


def test_dead_units_stay_dead_in_training(few_digits: lf.Dataset) -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))
    model = lf.from_module(net)
    found = lf.dependencies(model, few_digits.shape)
    state = lf.prune(density=0.5, select=lf.units(exempt=["4.weight"]), allocate=lf.uniform())(lf.init(model, 0))
    state = lf.without_dead_units(state, found)
    dead = ~state.masks["0.weight"].flatten(1).any(1)
    assert int(dead.sum()) == 3
    assert lf.dead_units(state.masks)["0.weight"] == 3
    assert not state.masks["4.weight"].view(10, 6, 36)[:, dead].any()
    trained = lf.train(model, few_digits, optimizer=lf.sgd(0.1, momentum=0.9, weight_decay=1e-3), steps=20)(state)
    for name in ("0.bias", "1.weight", "1.bias"):
        assert (trained.params[name][dead] == 0).all(), name
        assert (trained.params[name][~dead] != 0).any(), name


class Twice(nn.Module):
    """One layer reads what two others give, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.shared = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.shared(self.left(x)) * self.shared(self.right(x))
        return out


def test_a_layer_called_twice_reads_what_either_call_gives_it() -> None:
    model = lf.from_module(Twice())
    found = lf.dependencies(model, (3,))
    for source in ("left", "right"):
        assert torch.equal(found.feeds[f"{source}.weight", "shared.weight"], torch.eye(4, dtype=torch.bool))
    state = lf.init(model, 0)
    masks = {name: mask.clone() for name, mask in state.masks.items()}
    masks["left.weight"][:2] = False
    masks["right.weight"][1:3] = False
    fewer = lf.without_dead_units(state._replace(masks=masks), found)
    assert fewer.masks["shared.weight"].tolist() == [[True, False, True, True]] * 2  # the second alone has no source
