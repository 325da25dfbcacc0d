"""One training on several ranks: the same as on one but for rounding, with the same bits on every rank."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from conftest import HANG, NormedNet, noted, shorter, until
from lthfunc_cli.main import main
from test_runs import metrics
from threads_as_ranks import Ranks
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import lthfunc as lf
from lthfunc.data.augment import shift_and_mirror
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
    """200; fewer where every BatchNorm layer of processes that share two cores would wait for the others."""
    return 200 if arch == "lenet300" else 40 // ranks


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


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2])  # more as threads, above
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


SMALL = ["prune", "--rounds", "1", "--steps", "60", "--batch-size", "60", "--engine", "eager", "--eval-every", "30"]
LONG = ["prune", "--rounds", "1", "--steps", "1200", "--batch-size", "60", "--engine", "eager", "--checkpoint-every"]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Crew:
    """Ranks of the command line, started as torchrun would, each with its own arguments."""

    def __init__(self, commands: Sequence[Sequence[object]]) -> None:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(commands))}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "lthfunc_cli", *map(str, command)],
                env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank, command in enumerate(commands)
        ]  # fmt: skip

    def ended(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each."""
        said = [process.communicate(timeout=HANG) for process in self.processes]
        return [(process.returncode, *texts) for process, texts in zip(self.processes, said, strict=True)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def trainings(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(folder) if line["kind"] == "training"]


def test_a_run_on_two_ranks_is_a_run(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert main([*SMALL, "--out", str(alone)]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lthfunc_cli"]
    done = subprocess.run([*command, *SMALL, "--out", str(both)], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert "on 2 ranks" in done.stderr
    assert done.stderr.count("seed 0 round 1:") == 1
    assert "Winning ticket" in done.stdout or "winning ticket" in done.stdout
    assert main(["verify", str(both)]) == 0
    for mine, theirs in zip(trainings(alone), trainings(both), strict=True):
        assert mine["kept"] == theirs["kept"]
        assert mine["val_accuracy"] == pytest.approx(theirs["val_accuracy"], abs=0.02)
    tickets = [lf.load_ticket(folder / "last_round.safetensors")[0] for folder in (alone, both)]
    same = [(one == other).float().mean() for one, other in zip(*(leaves(each.masks) for each in tickets), strict=True)]
    assert min(same) > 0.99
    begun = json.loads((both / "environment.jsonl").read_text().splitlines()[0])
    assert begun["ranks"] == 2


def test_a_killed_rank_ends_the_others_and_the_run_goes_on_with_another_number(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Crew([[*LONG, "100", "--out", folder]] * 3) as crew:
        until(lambda: list(folder.glob("**/checkpoint-*.safetensors")))
        crew.processes[2].send_signal(signal.SIGKILL)
        (code, _, first), (other, _, second), _ = crew.ended()
    assert (code, other) == (3, 3)
    assert first.count("another rank is gone") == 1
    assert "lthfunc resume" in first
    assert second.startswith("lthfunc: rank 1: another rank is gone")
    assert len(second.splitlines()) == 1
    assert "Traceback" not in first + second
    left = set(folder.glob("**/checkpoint-*.safetensors"))
    with Crew([["resume", folder]] * 2) as crew:
        until(lambda: set(folder.glob("**/checkpoint-*.safetensors")) - left)
        crew.processes[0].send_signal(signal.SIGTERM)  # one rank is asked; all stop after the same step
        ends = crew.ended()
    assert [code for code, _, _ in ends] == [143, 0]
    assert "everything is saved" in ends[0][2]
    assert main(["resume", str(folder)]) == 0
    assert [line["round"] for line in trainings(folder)] == [0, 1]
    assert main(["verify", str(folder)]) == 0


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder where nothing must be left."""
    folder = tmp_path / "none"
    yield folder
    assert not folder.exists()


def refused(commands: Sequence[Sequence[object]]) -> str:
    """The one line in which ranks say why they don't begin."""
    with Crew(commands) as crew:
        ends = crew.ended()
    assert ends[0][0] == 2, ends
    said = [err for _, _, err in ends]
    assert [len(err.splitlines()) for err in said] == [1, *[0] * (len(said) - 1)], said
    return said[0]


def test_what_ranks_cannot_do_is_one_line(out: Path) -> None:
    for options, expected in (
        (["--batch-size", "7"], "--batch-size: 7 examples don't divide among 2 ranks; take 6 or 8, or 1 rank"),
        (
            ["--engine", "sparse"],
            "--engine: invalid value 'sparse' (expected auto, eager or compile on several ranks",
        ),
        (["--device", "cuda"], "--device"),
        (["--frobnicate"], "No such option"),
    ):
        assert expected in refused([[*SMALL, "--out", out, *options]] * 2)


def test_ranks_that_differ_are_refused_before_any_step(out: Path) -> None:
    command = [*SMALL, "--out", out, "--lr"]
    said = refused([[*command, "0.1"], [*command, "0.2"]])
    assert "rank 1 was started with '0.2' where rank 0 has '0.1'" in said


def test_other_commands_are_for_one_process() -> None:
    assert "runs prune, train, resume, branch, transfer on several ranks, not methods" in refused([["methods"]] * 2)


def test_ranks_of_other_versions_and_data_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from lthfunc.experiments.config import Config
    from lthfunc.experiments.plan import prepare
    from lthfunc.experiments.resolve import resolved
    from lthfunc.runs.environment import versions
    from lthfunc.scheduling import ranks

    config = prepare(resolved(Config(steps=20, engine="eager"))).config
    two = Collectives(1, 2, lambda vector: vector)
    monkeypatch.setattr(sys, "argv", ["lthfunc", "prune"])
    theirs = ranks._fingerprint(config, prepare(config, collectives=two).plan)
    order = ranks._Begin(config, ["prune"], versions(), theirs)
    plan, problem = ranks._like(order, two)
    assert problem is None
    assert plan is not None
    for other, told in (
        (
            order._replace(about={**order.about, "torch": "1.0"}),
            f"rank 1 has torch {torch.__version__}, and rank 0 has 1.0",
        ),
        (order._replace(command=["prune", "--lr", "1"]), "rank 1 was started with 'nothing' where rank 0 has '--lr'"),
        (order._replace(command=[]), "rank 1 was started with 'prune' where rank 0 has nothing"),
        (order._replace(found={**theirs, "data (digits)": "other"}), "rank 1 finds data (digits) that differs"),
        (order._replace(config=config.__class__(dataset="npz:none.npz", steps=20)), "rank 1: --dataset"),
    ):
        plan, problem = ranks._like(other, two)
        assert plan is None
        assert problem is not None
        assert told in problem
