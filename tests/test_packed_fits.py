"""Trainings on survivors alone between evaluations, updates of masks and checkpoints: the bits of dense trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_exchanges import MODEL, NET, OPTIMIZERS, images, same, ticket, updates_of
from torch import Tensor

import lthfunc as lf
from lthfunc.experiments.iterative import Progress
from lthfunc.runs.checkpoints import load_checkpoint, save_checkpoint
from lthfunc.sparse import loops
from lthfunc.sparse.kernels import build
from lthfunc.training.loop import fit_together
from lthfunc.training.packed_fits import PackedFit, dense_fit, packed_fit
from lthfunc.training.results import BestNetwork, Fit, Point
from lthfunc.training.trainer import measure
from lthfunc.trees import ops, packed_trees, packing
from lthfunc.trees.packing import masks_of

needs_kernels = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))
END = 12


def saved_on_the_way(trainer: lf.Trainer, updates: lf.MaskUpdates | None, *, packed: bool) -> tuple[list[Any], Any]:
    """(the fits that were saved after each second step, of two seeds; the fits at the end)."""
    kept: list[Any] = []
    checkpointer = lf.Checkpointer[Any](
        kept.extend, due=lambda step: step % 2 == 0, next_check=lambda step: step + 2 - step % 2, packed=packed
    )
    found = fit_together(
        trainer, [ticket(seed, MODEL) for seed in (0, 1)], seeds=[0, 1], until=END, eval_every=3,
        checkpointer=checkpointer, updates=updates,
    )  # fmt: skip
    return kept, found


@needs_kernels
@pytest.mark.parametrize(("optimizer", "changing"), [("momentum", True), ("everything", True), ("adamw", False)])
def test_what_is_saved_on_survivors_is_what_is_saved_densely(optimizer: str, changing: bool, tmp_path: Path) -> None:
    trainer = lf.make_trainer(MODEL, images(), optimizer=OPTIMIZERS[optimizer], batch_size=8, engine=lf.sparse_engine)
    updates = updates_of(trainer, "random") if changing else None
    (ours, end), (theirs, other) = (saved_on_the_way(trainer, updates, packed=packed) for packed in (True, False))
    assert len(ours) == len(theirs) == END
    assert {type(each) for each in ours} == {PackedFit}
    assert {type(each) for each in (*theirs, *end)} == {Fit}
    moved = 0
    for number, (mine, dense) in enumerate(zip(ours, theirs, strict=True)):
        assert same(dense_fit(mine), dense)
        assert repr(mine.since) == repr(dense.since)
        names = [save_checkpoint(tmp_path / f"{number}-{kind}", Progress(each), 1.0).name
                 for kind, each in (("packed", mine), ("dense", dense))]  # fmt: skip
        assert names[0] == names[1]  # which have the checksum of all that is in it
        read = load_checkpoint(tmp_path / f"{number}-packed", dense.state, OPTIMIZERS[optimizer])
        assert read is not None
        assert lf.same_bits(dense_fit(read.progress.fit).state, dense.state)
        moved += not lf.same_bits(mine.best.network.positions, mine.state.positions)
    assert bool(moved) == changing  # the best network so far has survivors elsewhere
    assert all(map(same, end, other))


@needs_kernels
def test_nothing_dense_is_made_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = lf.make_trainer(MODEL, images(), optimizer=lf.adam(0.01), batch_size=8, engine=lf.sparse_engine)
    updates = updates_of(trainer, "random")
    made: list[int] = []
    scattered = ops.scattered

    def counted(values: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        made.append(len(values))
        return scattered(values, places, shape)

    def masks_made(positions: Any, shapes: Any) -> lf.Masks:
        made.append(0)
        return masks_of(positions, shapes)

    for module in (packing, packed_trees):
        monkeypatch.setattr(module, "scattered", counted)
    monkeypatch.setattr(loops, "masks_of", masks_made)
    kept: list[Any] = []

    def save(fits: Any) -> None:
        assert made == []
        kept.extend(fits)

    checkpointer = lf.Checkpointer[Any](save, due=lambda step: True, next_check=lambda step: step + 1, packed=True)
    fit_together(
        trainer, [ticket(0, MODEL)], seeds=[0], until=END, eval_every=3, checkpointer=checkpointer, updates=updates
    )
    assert len(kept) == END
    assert len(made) == 12  # three pruned leaves of the params, both moments, and the best network
    assert 0 not in made  # no masks, either: those at the end are made of places


@needs_kernels
def test_an_evaluation_on_survivors_is_that_of_the_dense_network() -> None:
    """Of masks with and without weights that are zero, one network after the other on the same evaluator."""
    data = images()
    trainer = lf.make_trainer(MODEL, data, optimizer=lf.adam(0.01), batch_size=8, engine=lf.sparse_engine)
    vectors = lf.from_module(NET, prunable=["0.bias", "5.bias"])
    other = lf.make_trainer(vectors, data, optimizer=lf.adam(0.01), batch_size=8, engine=lf.sparse_engine)
    for which, model in ((trainer, MODEL), (other, vectors)):
        for seed in (0, 1):
            state = lf.prune(density=0.4, score=lf.random_scores(seed))(lf.init(model, seed))
            name = next(iter(state.masks))
            first = int(state.masks[name].flatten().nonzero()[0])
            params = {**state.params, name: state.params[name].flatten().index_fill(0, torch.tensor([first]), 0.0)
                      .view_as(state.params[name])}  # fmt: skip
            for each in (state, state._replace(params=params)):
                (dense,), (packed,) = (measure(which, [network], data.test) for network in (each, lf.pack_state(each)))
                assert packed == pytest.approx(dense, rel=1e-6)
            assert measure(which, [lf.pack_state(state)], data.test) != measure(which, [lf.pack_state(each)], data.test)


@given(
    seed=st.integers(0, 99), density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    odd=st.lists(st.sampled_from([0.0, -0.0, float("nan"), float("-inf"), 1e-45]), max_size=5),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_fits_come_back_with_their_bits(seed: int, density: float, odd: list[float]) -> None:
    """Also where the best network has numbers under another mask."""
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        leaf = torch.randn(shape, generator=draw)
        leaf.view(-1)[: len(odd)] = torch.tensor(odd)[: leaf.numel()]
        return leaf

    masks = {"w": torch.rand(6, 5, generator=draw) < density, "v": torch.rand(9, generator=draw) < 0.5}
    shapes = {"w": (6, 5), "b": (6,), "v": (9,)}
    trees = [lf.apply_masks({name: drawn(*shape) for name, shape in shapes.items()}, masks) for _ in range(4)]
    trees[3] = {name: drawn(*shape) for name, shape in shapes.items()}
    opt = lf.adam(0.1).init(trees[0])._replace(mean=trees[1], variance=trees[2])
    buffers, point = {"mean": drawn(3)}, Point(4, 0.5, 0.25, 0.75)
    for best in (trees[0], trees[3]):
        state = lf.TrainState(trees[0], buffers, masks, opt, torch.tensor(7))
        fit = Fit(state, BestNetwork(point, best, buffers), (point,))
        packed = packed_fit(fit)
        back = dense_fit(packed)
        assert lf.same_bits((back.state, back.best[1:]), (fit.state, fit.best[1:]))
        assert [len(packed.state.params[name]) for name in masks] == [int(mask.sum()) for mask in masks.values()]
        assert (packed.best.network.positions["w"] is packed.state.positions["w"]) == (
            best is trees[0] or not bool((best["w"].view(torch.int32) != 0)[~masks["w"]].any())
        )
