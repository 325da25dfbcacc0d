"""Pruning on parts: the same bits as in one place, whatever the ranks, ties and cuts; DTensors and gloo among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from threads_as_ranks import Ranks
from torch import Tensor
from torch.multiprocessing.spawn import spawn

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.errors import UserError
from lthfunc.sparsify.sharded_pruning import best_of_groups
from lthfunc.trees.types import TrainState

Tree = dict[str, Tensor]


def part(tree: Tree, rank: int, ranks: int) -> Tree:
    """A rank's shards, cut as DTensor cuts them: the last ranks may hold less, or nothing."""
    found = {}
    for name, leaf in tree.items():
        pieces = leaf.chunk(ranks)
        found[name] = pieces[rank] if rank < len(pieces) else leaf[:0]
    return found


def whole(parts: list[Tree]) -> Tree:
    return {name: torch.cat([each[name] for each in parts]) for name in parts[0]}


@st.composite
def trees(draw: st.DrawFn) -> tuple[Tree, Tree]:
    """Scores with many ties, both zeros and infinities, and masks that have gone through rounds before."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    distinct = draw(st.sampled_from([1, 3, 50, 10**6]))
    scores, masks = {}, {}
    for number in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 9)), draw(st.integers(1, 6)))
        leaf = (torch.randint(-distinct, distinct, shape, generator=generator) / distinct).to(kind)
        leaf = torch.where(torch.rand(shape, generator=generator) < 0.1, leaf * -0.0, leaf)
        if draw(st.booleans()):
            leaf[0, 0] = draw(st.sampled_from([float("inf"), -float("inf"), 1e-40, -1e-40]))
        scores[f"l{number}.weight"] = leaf
        masks[f"l{number}.weight"] = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.4, 1.0]))
    return scores, masks


@settings(max_examples=60, deadline=None)
@given(trees(), st.floats(0, 0.999), st.integers(1, 5), st.booleans())
def test_masks_of_parts_are_the_parts_of_the_masks(
    tree: tuple[Tree, Tree], fraction: float, ranks: int, everywhere: bool
) -> None:
    scores, masks = tree
    allocate = lf.globally if everywhere else lf.layerwise()
    expected = lf.unstructured(scores, masks, allocate(scores, masks, fraction))

    def work(rank: int, collectives: Collectives) -> Tree:
        choose = lf.globally_on(collectives) if everywhere else lf.layerwise_on(collectives)
        return choose(part(scores, rank, ranks), part(masks, rank, ranks), fraction)

    found = whole(Ranks(ranks).run(work))
    assert lf.same_bits(found, expected)


def test_little_is_exchanged() -> None:
    """A number a bit for one threshold, and one a layer and rank for ties: not a score."""
    state = lf.init(lf.models.lenet300(), 0)
    ranks = Ranks(4)

    def work(rank: int, collectives: Collectives) -> Any:
        mine = state._replace(
            params={name: part({name: leaf}, rank, 4)[name] for name, leaf in state.params.items()},
            masks=part(state.masks, rank, 4),
        )
        return lf.prune_sharded(collectives, fraction=0.2)(mine)

    found = ranks.run(work)
    expected = lf.prune(fraction=0.2)(state)
    assert lf.same_bits(whole([each.masks for each in found]), expected.masks)
    assert lf.same_bits(whole([each.params for each in found]), expected.params)
    assert ranks.numbers == 3 + 32 + 3 * (1 + 4)
    assert ranks.calls == 1 + 32 + 1


def test_densities_rounds_and_mistakes() -> None:
    state = lf.init(lf.models.lenet300((1, 8, 8)), 0)

    def partial(params: lf.Params, masks: lf.Masks) -> lf.Scores:
        return dict(list(params.items())[:1])

    once = lf.prune_sharded(SINGLE_RANK, density=0.5)(state)
    assert lf.same_bits(once, lf.prune(density=0.5)(state))
    again = lf.prune_sharded(SINGLE_RANK, fraction=0.3, choose=lf.layerwise_on(SINGLE_RANK))(once)
    assert lf.same_bits(again, lf.prune(fraction=0.3, allocate=lf.layerwise())(once))
    with pytest.raises(UserError, match=r"density: invalid value 0\.9"):
        lf.prune_sharded(SINGLE_RANK, density=0.9)(once)
    with pytest.raises(
        UserError, match=r"^score: 'partial': invalid value .* \(expected a function that returns one leaf"
    ):
        lf.prune_sharded(SINGLE_RANK, density=0.3, score=partial)(once)
    with pytest.raises(UserError, match="give either fraction or density"):
        lf.prune_sharded(SINGLE_RANK)
    with pytest.raises(UserError, match="no process group"):
        lf.collectives()
    assert lf.globally_on(SINGLE_RANK)({}, {}, 0.5) == {}
    masks = {"a": torch.ones(3, 2, dtype=torch.bool)}
    nothing = best_of_groups({"a": torch.ones(3, 2)}, masks, torch.tensor([0]), {"a": 0}, SINGLE_RANK)
    assert not nothing["a"].any()
    scores, budgets = {"a": torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]], requires_grad=True)}, torch.tensor([3])
    found = best_of_groups(scores, masks, budgets, {"a": 0}, SINGLE_RANK)
    assert found["a"].tolist() == [[True, False], [True, False], [False, True]]
    assert budgets.tolist() == [3]


def _check_parts(found: TrainState, expected: TrainState) -> None:
    """DTensors, which together are what was expected."""
    from torch.distributed.tensor import DTensor

    for tree, wanted in ((found.params, expected.params), (found.masks, expected.masks)):
        for name, leaf in tree.items():
            assert isinstance(leaf, DTensor)
            assert torch.equal(leaf.full_tensor(), wanted[name]), name


def _on_gloo(rank: int, ranks: int, folder: str) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    state = lf.init(lf.models.lenet5(), 0)
    state = state._replace(params={name: (leaf * 16).round() / 16 for name, leaf in state.params.items()})  # ties

    def cut(tree: Tree) -> dict[str, Any]:
        return {name: distribute_tensor(leaf, mesh, [Shard(0)]) for name, leaf in tree.items()}

    mine: Any = TrainState(cut(state.params), {}, cut(state.masks), (), state.step)
    for _ in range(2):
        mine = lf.prune_sharded(lf.collectives(), fraction=0.4)(mine)
        state = lf.prune(fraction=0.4)(state)
    _check_parts(mine, state)
    replicated = {name: DTensor.from_local(leaf, mesh) for name, leaf in state.params.items()}
    with pytest.raises(UserError, match=r"expected Shard\(0\)"):
        lf.prune_sharded(lf.collectives(), fraction=0.4)(mine._replace(params=replicated))
    Path(folder, f"done{rank}").touch()
    distributed.barrier()  # Gloo may abort in a rank whose peer is gone
    distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])  # of other numbers as threads, above
def test_dtensors_over_gloo_are_pruned_as_in_one_place(ranks: int, tmp_path: Path) -> None:
    spawn(_on_gloo, (ranks, str(tmp_path)), nprocs=ranks)
    assert len(list(tmp_path.glob("done*"))) == ranks


def test_dtensors_of_one_rank_stay_dtensors(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    state = lf.init(lf.from_module(torch.nn.Linear(6, 5)))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        parts: list[dict[str, Any]] = [
            {name: distribute_tensor(leaf.clone(), mesh, [Shard(0)]) for name, leaf in tree.items()}
            for tree in (state.params, state.masks)
        ]
        cut = state._replace(params=parts[0], masks=parts[1])
        found = lf.prune_sharded(lf.collectives(), fraction=0.4)(cut)
        expected = lf.prune(fraction=0.4)(state)
        _check_parts(found, expected)
    finally:
        distributed.destroy_process_group()


def test_pruning_in_parts_drops_the_optimisers_state_too() -> None:
    """Its moments belong to the network before, as with `prune`."""
    model = lf.from_module(torch.nn.Linear(6, 5))
    state = lf.with_optimizer(lf.init(model), lf.adam(1e-3))
    found = lf.prune_sharded(SINGLE_RANK, fraction=0.5)(state)
    assert found.opt == ()
    assert lf.same_bits(found, lf.prune(fraction=0.5)(state))
