"""One network over several ranks: a step on parts is the step on the whole; files that any number of ranks reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ranks import Ordinary, far, wide
from test_sharded import part, whole
from threads_as_ranks import Ranks
from torch.multiprocessing.spawn import spawn

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.errors import DamagedError, UserError
from lthfunc.trees.types import TrainState

OPTIMIZERS = [lf.sgd(0.1, momentum=0.9, weight_decay=1e-2), lf.adam(1e-2)]


def parts(state: TrainState, rank: int, ranks: int, optimizer: lf.Optimizer) -> TrainState:
    mine = state._replace(params=part(state.params, rank, ranks), masks=part(state.masks, rank, ranks))
    return lf.with_optimizer(mine, optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adam"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_step_on_parts_is_the_step_on_the_whole(ranks: int, optimizer: lf.Optimizer) -> None:
    model = lf.from_module(Ordinary())
    start = wide(lf.prune(density=0.5)(lf.init(model, 2)))
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(3, 12, 6, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (3, 12), generator=draw)
    step = lf.make_train_step(model, lf.cross_entropy, optimizer)
    alone, told = lf.with_optimizer(start, optimizer), []
    for batch in zip(x, y, strict=True):
        alone, said = step(alone, batch)
        told.append(said)

    def one(rank: int, collectives: Collectives) -> tuple[TrainState, Any]:
        state, said = parts(start, rank, ranks, optimizer), []
        mine = slice(rank * 12 // ranks, (rank + 1) * 12 // ranks)
        step = lf.make_sharded_step(model, lf.cross_entropy, optimizer, collectives)
        for inputs, targets in zip(x, y, strict=True):
            before = lf.tree_map(torch.clone, state)
            after, numbers = step(state, (inputs[mine], targets[mine]))
            assert lf.same_bits(state, before)
            state = after
            said.append(numbers)
        return state, said

    found = Ranks(ranks).run(one)
    assert far(whole([state.params for state, _ in found]), alone.params) < 1e-11
    assert far(found[0][1], told) < 1e-11
    for state, _ in found:
        assert far(state.buffers, alone.buffers) < 1e-11
        for name, mask in state.masks.items():
            assert not state.params[name][~mask].any()


def test_what_parts_cannot_do_is_said() -> None:
    model = lf.models.lenet300((1, 8, 8))
    with pytest.raises(UserError, match="mix a layer's weights"):
        lf.make_sharded_step(model, lf.cross_entropy, lf.muon(0.1), SINGLE_RANK)
    with pytest.raises(UserError, match="no process group"):
        lf.sharded(lf.init(model, 0))
    state = lf.init(model, 0)
    with pytest.raises(UserError, match="gain is a scalar"):
        lf.sharded(state._replace(params={**state.params, "gain": torch.tensor(1.0)}), _Mesh())


def test_a_state_of_another_network_is_not_read(tmp_path: Path) -> None:
    state = lf.init(lf.models.lenet300((1, 8, 8)), 0)
    lf.save_sharded(state, tmp_path / "kept")  # one process may do without a group
    fresh = lf.init(lf.models.lenet300((1, 8, 8)), 1)
    before = lf.tree_map(torch.clone, fresh)
    assert lf.same_bits(lf.load_sharded(tmp_path / "kept", fresh), state)
    assert lf.same_bits(fresh, before)
    with pytest.raises(DamagedError, match="no state like this one"):
        lf.load_sharded(tmp_path / "kept", lf.init(lf.models.lenet300((1, 9, 9)), 0))


class _Mesh:
    def size(self) -> int:
        return 2


def _on_gloo(rank: int, ranks: int, folder: str) -> None:
    from torch import distributed
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    model, collectives = lf.models.lenet300((1, 8, 8)), lf.collectives()
    data = lf.data.load("digits")
    x, y = data.train.x[:120].float().view(10, 12, 1, 8, 8) / 16, data.train.y[:120].view(10, 12)
    dense = lf.init(model, 0)

    def trained(state: TrainState, step: Any, mine: slice) -> TrainState:
        state = lf.with_optimizer(state, lf.adam(1e-2))
        for inputs, targets in zip(x, y, strict=True):
            state, _ = step(state, (inputs[mine], targets[mine]))
        return state

    # Train, prune, rewind: once in parts, once in one place.
    step = lf.make_sharded_step(model, lf.cross_entropy, lf.adam(1e-2), collectives)
    mine = slice(rank * 12 // ranks, (rank + 1) * 12 // ranks)
    anchor = lf.sharded(dense)
    state = trained(anchor, step, mine)
    for leaf in (*state.params.values(), *state.masks.values(), *state.opt.mean.values()):
        assert isinstance(leaf, DTensor)
    pruned = lf.prune_sharded(collectives, fraction=0.4)(state)
    assert lf.same_bits(lf.unsharded(pruned).masks, lf.prune(fraction=0.4)(lf.unsharded(state)).masks)  # bit for bit
    ticket = lf.rewound(pruned, anchor)
    assert lf.same_bits(lf.unsharded(ticket), lf.rewound(lf.unsharded(pruned), dense))
    again = trained(ticket, step, mine)
    make = lf.make_train_step(model, lf.cross_entropy, lf.adam(1e-2))
    alone = trained(lf.unsharded(ticket), make, slice(None))
    assert far(lf.unsharded(again).params, alone.params) < 1e-4
    # What other ranks have written, and what these write.
    kept = Path(folder, "kept")
    if kept.exists():
        like = lf.sharded(lf.with_optimizer(dense, lf.adam(1e-2)))
        read = lf.load_sharded(kept, like)
        assert isinstance(read.params["fc1.weight"], DTensor)
        assert lf.same_bits(tuple(lf.unsharded(read)), torch.load(Path(folder, "whole.pt"), weights_only=False))
        with pytest.raises(DamagedError, match="holds no state"):
            lf.load_sharded(Path(folder, "nothing"), like)
    else:
        lf.save_sharded(again, kept)
        together = lf.unsharded(again)
        if rank == 0:
            torch.save(tuple(together), Path(folder, "whole.pt"))
    Path(folder, f"done{ranks}-{rank}").touch()
    distributed.barrier()
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 1), pytest.param((4, 2), marks=pytest.mark.long)], ids=["2-1", "4-2"])
def test_a_state_over_some_ranks_is_read_by_fewer(counts: tuple[int, ...], tmp_path: Path) -> None:
    for ranks in counts:
        spawn(_on_gloo, (ranks, str(tmp_path)), nprocs=ranks)
        assert len(list(tmp_path.glob(f"done{ranks}-*"))) == ranks
