"""Programs of the sparse engine that are copied, pickled, and called with many sizes of batches."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_programs import kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse import inference
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.trees.model import apply_evaluating

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))


def made() -> tuple[lf.Model, lf.TrainState]:
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = lf.from_module(net)
    state = lf.prune(density=0.6)(lf.init(model))
    for name, buffer in state.buffers.items():
        if "running" in name:
            buffer.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return model, state


def inputs(examples: int) -> Tensor:
    return torch.randn(examples, 5, generator=torch.Generator().manual_seed(examples))


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))],
    ids=["copy", "deepcopy", "pickle"],
)
@pytest.mark.parametrize("used", [False, True])
def test_copies_compute_the_same(copied: Callable[[Any], Any], used: bool) -> None:
    model, state = made()
    run = lf.sparse_program(model, state)
    before = [run(inputs(examples)) for examples in (1, 20)] if used else []
    other = copied(run)
    assert other._lock is not run._lock
    after = [other(inputs(examples)) for examples in (1, 20)]
    assert lf.same_bits(after, before or [run(inputs(examples)) for examples in (1, 20)])
    torch.testing.assert_close(after[1], apply_evaluating(model, state.params, state.buffers, inputs(20)))
    assert not {map(id, other._workspaces.values())} & {map(id, run._workspaces.values())}
    again = copied(other)
    assert lf.same_bits([again(inputs(examples)) for examples in (1, 20)], after)


def test_a_copy_by_pickle_draws_no_values() -> None:
    """Its model is that of the program, without the functions that a module's author wrote."""
    model, state = made()
    other = pickle.loads(pickle.dumps(lf.sparse_program(model, state)))
    with pytest.raises(UserError, match=r"^sparse_program: draws no values for another seed"):
        other._model.init(0)


def test_it_keeps_its_own_weights() -> None:
    """Also for sizes that come later."""
    model, state = made()
    run, x = lf.sparse_program(model, state), inputs(20)
    expected = apply_evaluating(model, state.params, state.buffers, x)
    for leaf in (*state.params.values(), *state.masks.values(), *state.buffers.values()):
        leaf.zero_()
    torch.testing.assert_close(run(x), expected)


def test_those_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_KEPT", 3)
    model, state = made()
    run = lf.sparse_program(model, state)

    def check(examples: int) -> Any:
        expected = apply_evaluating(model, state.params, state.buffers, inputs(examples))
        torch.testing.assert_close(run(inputs(examples)), expected)
        return weakref.ref(run._ready[torch.Size((examples, 5)), torch.float32].workspace)

    first, second, third = check(10), check(20), check(40)
    assert check(12)() is first()  # as many tiles
    assert check(10)() is first()
    assert check(1)() is not first()
    assert second() is None
    assert len(run._workspaces) == 3
    assert {len(x) for x in map(inputs, (1, 10, 12, 20, 40)) if (x.shape, x.dtype) in run._ready} == {1, 10, 12, 40}
    assert third() is check(40)()
    check(20)
    assert first() is None
    assert len(run._workspaces) == 3


def test_a_shape_has_room_for_each_size_of_batch() -> None:
    kinds = {(examples == 1, -(-examples // LANES)) for examples in range(1, inference._CHUNK + 1)}
    assert len(kinds) == inference._KEPT


def test_lengths_of_few_sequences_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_KEPT", 2)
    model = lf.models.char_transformer((40,), 9, layers=1, heads=2, width=8)
    state = lf.prune(density=0.5)(lf.init(model))
    run = lf.sparse_program(model, state)
    for length in (20, 24, 20, 28):
        tokens = torch.randint(0, 9, (1, length), generator=torch.Generator().manual_seed(length))
        expected = apply_evaluating(model, lf.apply_masks(state.params, state.masks), state.buffers, tokens)
        torch.testing.assert_close(run(tokens), expected, rtol=1e-4, atol=1e-5)
    assert [*run._lanes] == [(1, 20), (1, 28)]
