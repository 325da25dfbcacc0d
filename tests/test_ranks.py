"""One training on several ranks: the same as on one but for rounding, with the same bits on every rank."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NormedNet, noted, shorter
from threads_as_ranks import Ranks
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import lthfunc as lf
from lthfunc.data.augment.shifts import shift_and_mirror
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.data_parallel import rank_batch_size, surviving_indices
from lthfunc.errors import UserError
from lthfunc.training.steps import Carry, make_loop_body, make_train_step, with_optimizer
from lthfunc.training.trainer import Trainer
from lthfunc.trees.model import Model
from lthfunc.trees.ops import leaves, tree_map
from lthfunc.trees.rng import counter_key
from lthfunc.trees.types import Dataset, TrainState

#: How far losses of several ranks may be from those of one, over 200 steps: relative, in float32 and in float64.
ROUNDING = {"lenet300": 1e-5, "resnet20": 1e-9}


class Ordinary(nn.Module):
    """BatchNorm of each kind: tracked with a momentum, by a plain mean, and not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8, bias=False)
        self.norms = nn.ModuleList(
            [nn.BatchNorm1d(8), nn.BatchNorm1d(8, momentum=None, affine=False),
             nn.BatchNorm1d(8, track_running_stats=False)]
        )  # fmt: skip
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for norm in self.norms:
            x = torch.tanh(norm(x) + 0.3)
        out: Tensor = self.fc2(x)
        return out


def wide(state: TrainState) -> TrainState:
    """In float64, where rounding is far below what a mistake would change."""
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)


def far(left: Any, right: Any) -> float:
    pairs = zip(leaves(left), leaves(right), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_a_step_on_ranks_is_the_step_on_the_whole_batch(ranks: int, density: float) -> None:
    model = lf.from_module(Ordinary())
    optimizer = lf.sgd(0.1, momentum=0.9, weight_decay=1e-2)
    start = lf.init(model, 3)
    if density < 1:
        start = lf.prune(density=density)(start)
    start = wide(with_optimizer(start, optimizer))
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(5, 12, 6, generator=draw, dtype=torch.float64) + 2
    y = torch.randint(0, 3, (5, 12), generator=draw)

    def trained(collectives: Collectives) -> tuple[TrainState, list[Any]]:
        step = make_train_step(model, lf.cross_entropy, optimizer, collectives=collectives)
        mine = slice(
            collectives.rank * 12 // collectives.world_size, (collectives.rank + 1) * 12 // collectives.world_size
        )
        state, told = start, []
        for inputs, targets in zip(x, y, strict=True):
            state, metrics_ = step(state, (inputs[mine], targets[mine]))
            told.append(metrics_)
        return state, told

    alone, told = trained(SINGLE_RANK)
    found = Ranks(ranks).run(lambda rank, collectives: trained(collectives))
    for state, said in found:
        assert far(state, alone) < 1e-10
        assert far(said, told) < 1e-10
        assert lf.same_bits(state, found[0][0])


def test_a_loop_on_ranks_augments_as_one(few_digits: Dataset) -> None:
    model = lf.from_module(NormedNet())
    optimizer = lf.sgd(0.1)
    start = wide(with_optimizer(lf.init(model, 0), optimizer))
    x, y = few_digits.train.x[:12].double(), few_digits.train.y[:12]

    def trained(collectives: Collectives) -> Carry:
        step = make_train_step(model, lf.cross_entropy, optimizer, collectives=collectives)
        advance = make_loop_body(step, None, shift_and_mirror, collectives)
        mine = slice(
            collectives.rank * 12 // collectives.world_size, (collectives.rank + 1) * 12 // collectives.world_size
        )
        travels = surviving_indices(start) if collectives.world_size > 1 else ()
        carry = Carry(start, counter_key(5, "step"), torch.zeros(1, dtype=torch.float64), travels)
        for _ in range(3):
            carry = advance(carry, (x[mine], y[mine]))
        return carry

    alone = trained(SINGLE_RANK)
    for carry in Ranks(3).run(lambda rank, collectives: trained(collectives)):
        assert far(carry.state, alone.state) < 1e-12
        assert far(carry.loss, alone.loss) < 1e-12
    moved = shift_and_mirror(few_digits.train.x[:4].float(), counter_key(1, "step"), 8)
    whole = shift_and_mirror(few_digits.train.x[:12].float(), counter_key(1, "step"))
    assert not torch.equal(moved, whole[:4])


def test_gradients_of_survivors_alone_travel() -> None:
    model = lf.models.lenet300()
    optimizer = lf.sgd(0.1, momentum=0.9)
    dense = with_optimizer(lf.init(model, 0), optimizer)
    sparse = with_optimizer(lf.prune(density=0.1)(lf.init(model, 0)), optimizer)
    x, y = torch.randn(4, 1, 28, 28), torch.randint(0, 10, (4,))
    numbers = []
    for start in (dense, sparse):
        ranks = Ranks(2)

        def one(rank: int, collectives: Collectives, start: TrainState = start) -> TrainState:
            part = x[2 * rank : 2 * rank + 2], y[2 * rank : 2 * rank + 2]
            return make_train_step(model, lf.cross_entropy, optimizer, collectives=collectives)(start, part)[0]

        ranks.run(one)
        numbers.append(ranks.numbers)
    weights = sum(leaf.numel() for leaf in dense.params.values())
    assert numbers[0] == weights + 2
    assert numbers[1] == len(surviving_indices(sparse))
    assert numbers[1] <= 0.12 * numbers[0]


def test_a_batch_that_does_not_divide_is_refused_with_what_would(few_digits: Dataset) -> None:
    assert rank_batch_size(60, Collectives(0, 4, lambda vector: vector)) == 15
    with pytest.raises(UserError, match="60 examples don't divide among 7 ranks; take 56 or 63, or 6 ranks"):
        rank_batch_size(60, Collectives(0, 7, lambda vector: vector))
    with pytest.raises(UserError, match="3 examples don't divide among 4 ranks; take 4, or 3 ranks"):
        rank_batch_size(3, Collectives(0, 4, lambda vector: vector))
    model, two = lf.models.lenet300((1, 8, 8)), Collectives(0, 2, lambda vector: vector)
    trainer = lf.make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=60, collectives=two)
    state = lf.init(model, 0)
    with pytest.raises(UserError, match="one state together"):
        lf.fit_together(trainer, [state, state], seeds=[0, 1], until=5, eval_every=5)


class Doubling(nn.Module):
    """A network in float64, on inputs that are not."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.double())
        return out


def made(collectives: Collectives, arch: str) -> tuple[Model, Trainer]:
    """LeNet-300-100 compiled, in float32; ResNet-20 with its BatchNorm in float64, eagerly."""
    digits = lf.data.load("digits")
    data = digits._replace(val=shorter(digits.val, 60), test=shorter(digits.test, 60))
    model = lf.models.build(arch, data.shape, 10)
    if arch == "resnet20":
        model = lf.from_module(Doubling(model.training).double())
    optimizer, engine = (lf.sgd(0.02), "compile") if arch == "lenet300" else (lf.sgd(0.01, momentum=0.9), "eager")
    return model, lf.make_trainer(
        model, data, optimizer=optimizer, batch_size=12, engine=engine, collectives=collectives
    )  # fmt: skip


def steps_of(arch: str, ranks: int) -> int:
    """80; fewer where every BatchNorm layer of processes that share two cores would wait for the others."""
    return 80 if arch == "lenet300" else 16 // ranks


def trained(model: Model, trainer: Trainer, steps: int) -> tuple[TrainState, list[tuple[float, ...]]]:
    """(the last state, the curve) of a ticket's training."""
    state = lf.prune(density=0.5)(lf.init(model, 0))
    if trainer.engine.name == "eager":
        state = wide(state)
    found = lf.fit(trainer, state, seed=0, until=steps, eval_every=steps // 4)
    return found.state, [tuple(point) for point in found.curve]


def _on_gloo(rank: int, ranks: int, folder: str) -> None:
    from torch import distributed

    from lthfunc.training.engines import compiled, tracing

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    programs: list[str] = []
    compiled.compiled = lambda *given: (noted(programs, "one"), tracing.compiled(*given))[1]  # type: ignore[attr-defined]
    for arch in ROUNDING:
        model, trainer = made(lf.collectives(), arch)
        state, curve = trained(model, trainer, steps_of(arch, ranks))
        torch.save((tuple(state[:3]), curve), Path(folder, f"{arch}-{rank}.pt"))
        if arch == "lenet300":  # a program serves whatever travels: the gradients of this ticket and of others
            before = len(programs)
            for density in (0.9, 0.2):
                lf.take_steps(trainer, lf.prune(density=density)(lf.init(model, 0)), seed=0, until=3)
            assert len(programs) == before > 0
    Path(folder, f"done{rank}").touch()
    distributed.barrier()
    os._exit(0)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2])  # more as threads, above; test_rank_commands.py has a run over gloo
def test_ranks_over_gloo_train_as_one_process(ranks: int, tmp_path: Path) -> None:
    spawn(_on_gloo, (ranks, str(tmp_path)), nprocs=ranks)
    assert len(list(tmp_path.glob("done*"))) == ranks
    for arch, rounding in ROUNDING.items():
        _, expected = trained(*made(SINGLE_RANK, arch), steps_of(arch, ranks))
        states, curves = zip(
            *(torch.load(tmp_path / f"{arch}-{rank}.pt", weights_only=False) for rank in range(ranks)), strict=True
        )
        for state, curve in zip(states, curves, strict=True):
            assert lf.same_bits(state, states[0])
            assert str(curve) == str(curves[0])
        losses = [torch.tensor([point[1:3] for point in curve[1:]]) for curve in (expected, curves[0])]
        torch.testing.assert_close(losses[1], losses[0], rtol=rounding, atol=0)
