"""What pruning block by block hands to its parts, against the papers' loop over the blocks, written down here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.activations import Moments
from lthfunc.sparsify.sparsegpt import best_of_block
from lthfunc.trees.ops import Count
from lthfunc.trees.types import Masks, Params

SIZES = ((5, 8), (8, 8), (8, 4))
NAMES = [f"{number}.0.weight" for number in range(3)]
X = [torch.randn(count, 5, generator=torch.Generator().manual_seed(count), dtype=torch.float64) for count in (9, 6)]


def start() -> tuple[lf.Model, lf.TrainState]:
    """Three blocks in turn, a tenth of whose weights are pruned, and an optimiser's state."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(*size), nn.Tanh()) for size in SIZES)).double()
    model = lf.from_module(net, init=lf.as_built)
    state = lf.prune(density=0.9, score=lf.random_scores(2))(lf.init(model))
    return model, state._replace(opt=("moments",))


def through(params: Params, masks: Masks, until: int) -> Tensor:
    """What reaches a block, of all batches."""
    x = torch.cat(X)
    for number in range(until):
        weight = params[NAMES[number]] * masks[NAMES[number]]
        x = torch.tanh(x @ weight.T + params[f"{number}.0.bias"])
    return x


class Seen(list[Any]):
    """A pruning that keeps each layer's largest weights, and notes what it was called with."""

    def prune(self, moments: Moments, keep: Mapping[str, int]) -> Any:
        def transformation(state: lf.TrainState) -> lf.TrainState:
            self.append((moments, dict(keep), state))
            masks = {
                name: torch.zeros_like(mask).view(-1).index_fill(
                    0, (leaf * mask).abs().flatten().argsort(descending=True, stable=True)[: keep[name]], True
                ).view(mask.shape)
                for (name, mask), leaf in zip(state.masks.items(), state.params.values(), strict=True)
            }  # fmt: skip
            return state._replace(params=lf.apply_masks(state.params, masks), masks=masks)

        return transformation


@pytest.mark.parametrize("diagonal", [False, True])
def test_each_block_is_pruned_for_what_the_pruned_ones_give_it(diagonal: bool) -> None:
    model, state = start()
    measured, told, seen = list[Any](), list[Any](), Seen()

    def measure(params: Params, masks: Masks, moments: Mapping[str, Tensor]) -> float:
        measured.append((params, masks, moments))
        return float(len(measured))

    def densities(measures: Sequence[float], sizes: Sequence[int], density: float) -> list[float]:
        told.append((list(measures), list(sizes), density))
        return [0.2, 1.5, 0.4]  # a density above 1 is 1

    budgets = lf.BlockBudgets(measure, densities, inputs=True)
    pruning = lf.LayerPruning(seen.prune, diagonal)
    blocks = list[Any]()
    pruned = lf.prune_sequentially(
        model, X, 0.5, pruning=pruning, budgets=budgets, on_block=lambda *each: blocks.append(each)
    )(state)
    assert told == [([1, 2, 3], [40, 64, 32], 0.5)]
    assert (lf.count(pruned.masks).kept, pruned.opt) == (68, ())  # half of 136
    for number, name in enumerate(NAMES):
        params, masks, moments = measured[number]
        assert [*params] == [*masks] == [*moments] == [name]
        assert torch.equal(masks[name], state.masks[name])
        rows = through(state.params, state.masks, number)  # of the network before it is pruned
        torch.testing.assert_close(moments[name], rows.square().mean(0))
        moments, keep, part = seen[number]
        rows = through(pruned.params, pruned.masks, number)
        whole = rows.T @ rows / len(rows)
        torch.testing.assert_close(moments[name], whole.diagonal() if diagonal else whole)
        assert ([*part.params], [*part.masks], part.opt) == ([name], [name], ())
        assert [*keep.values()] == [int(pruned.masks[name].sum())]
        assert blocks[number] == (f"{number}.0", lf.count({name: pruned.masks[name]}))
    counts = [int(pruned.masks[name].sum()) for name in NAMES]
    # In proportion to 0.2 · 40, 1 · 64 and 0.4 · 32 weights, of which the second layer has not that many left.
    assert counts[1] == pytest.approx(min(68 * 64 / 84.8, int(state.masks[NAMES[1]].sum())), abs=1)
    assert counts[0] / counts[2] == pytest.approx(8 / 12.8, abs=0.1)


def test_parts_have_the_defaults_of_their_docstrings() -> None:
    """SparseGPT at one density; and each of its arguments reaches it."""
    model, state = start()
    plain = lf.prune_sequentially(model, X, 0.5)(state)
    given: dict[str, Any] = {"pruning": lf.sparsegpt_pruning(), "budgets": lf.same_density()}
    assert lf.same_bits(lf.prune_sequentially(model, X, 0.5, **given)(state), plain)
    assert [lf.count({name: plain.masks[name]}).kept for name in NAMES] == [20, 32, 16]
    assert (lf.sparsegpt_pruning().diagonal, lf.wanda_pruning().diagonal, lf.LayerPruning(Seen().prune).diagonal) == (
        False, True, False,
    )  # fmt: skip

    def worst(scores: Tensor, density: float) -> Tensor:
        return best_of_block(-scores, density)

    for how in ({"block": 3}, {"damping": 0.4}, {"choose": worst}):
        found = lf.prune_sequentially(model, X, 0.5, pruning=lf.sparsegpt_pruning(**how))(state)
        by_hand = state
        for name in NAMES:
            moments = {name: lf.input_moments(model, by_hand, X)[name]}
            by_hand = lf.sparsegpt(moments, 0.5, **how)(by_hand)
        assert lf.same_bits(found.masks, by_hand.masks), how
        assert not lf.same_bits(found.masks, plain.masks) or not lf.same_bits(found.params, plain.params), how


@pytest.mark.parametrize(
    "select", [None, lf.blocks(2, 1), lf.n_of_m(2, 4, exempt=[NAMES[0]]), lf.units(exempt=["2.*"])]
)
def test_wanda_selects_by_output_unless_told_otherwise(select: Any) -> None:
    model, state = start()
    state = state._replace(masks={name: torch.ones_like(mask) for name, mask in state.masks.items()})
    pruning = lf.wanda_pruning() if select is None else lf.wanda_pruning(select)
    found = lf.prune_sequentially(model, X, 0.5, pruning=pruning)(state)
    masks = dict(state.masks)
    for number, name in enumerate(NAMES):
        root = through(state.params, masks, number).square().mean(0).sqrt()
        scores = {**state.params, name: state.params[name].abs() * root}
        half = {each: mask.sum() // 2 for each, mask in state.masks.items()}
        masks[name] = (select or lf.per_output())(scores, state.masks, half)[name]
    assert lf.same_bits(found.masks, masks)
    assert lf.same_bits(found.params, lf.apply_masks(state.params, masks))


def test_an_exempt_layer_need_not_be_in_each_block() -> None:
    """But in the network."""
    model, state = start()
    pruning = lf.wanda_pruning(lf.n_of_m(2, 4, exempt=["3.*"]))
    with pytest.raises(
        UserError, match=r"^exempt: invalid value '3\.\*' .*a pattern that matches one of 0.0.weight, 1.0"
    ):
        lf.prune_sequentially(model, X, 0.5, pruning=pruning)(state)


def test_layers_whose_inputs_nobody_reads_are_refused() -> None:
    """An embedding within a block is left as it is where it is not to be pruned."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc = nn.Embedding(7, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.words(x))
            return out

    model, inputs = lf.from_module(nn.Sequential(Words()), init=lf.as_built, tokens=True), [torch.arange(6).view(2, 3)]
    prune = lf.prune_sequentially(model, inputs, 0.5, blocks=["0"])
    with pytest.raises(UserError, match=r"^blocks: the inputs of 0.words.weight can't be read, .*'0.words.weight'"):
        prune(lf.init(model))
    spared = lf.with_prunable(model, never_prune=["*.words.*"])
    pruned = lf.prune_sequentially(spared, inputs, 0.5, blocks=["0"])(lf.init(spared))
    assert lf.count(pruned.masks) == Count(8, 16)
