"""Graphs on pretended GPUs: captured once, replayed by every training and every look, in one memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretended import Machine

import lthfunc as lf
from lthfunc.deployment import compiled as execution
from lthfunc.deployment.candidates import masked_module
from lthfunc.training.engines import compiled as compiled_engine
from lthfunc.training.engines.compiled import compile_engine
from lthfunc.training.engines.eager import eager
from lthfunc.training.engines.interface import Work
from lthfunc.training.engines.memory_formats import MemoryFormats
from lthfunc.training.evaluation import chunk_on_gpu
from lthfunc.training.loop import take_steps
from lthfunc.training.steps import Carry, LoopBody
from lthfunc.training.trainer import Trainer, measure
from lthfunc.trees.ops import data_to_device, to_device
from lthfunc.trees.types import Batch, Dataset, TrainState

MODEL = lf.models.lenet300((1, 8, 8), 10)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are the functions that they are compiled from: no compiler knows a pretended device."""
    monkeypatch.setattr(compiled_engine, "compiled", lambda function, example, name: function)


class Moving(Work):
    """Steps without a gradient, which a pretended GPU has none of: weights move by what their batch holds."""

    __slots__ = ()

    @property
    def advance(self) -> LoopBody:
        def advance(carry: Carry, batch: Batch) -> Carry:
            state, (x, y) = carry.state, batch
            moved = {
                name: leaf + x.float().mean() * state.masks[name] if name in state.masks else leaf - y.float().mean()
                for name, leaf in state.params.items()
            }
            return carry._replace(
                state=state._replace(params=moved, step=state.step + 1), loss=carry.loss + x.double().mean()
            )

        return advance


def trainer(data: Dataset, making: Any, **settings: Any) -> Trainer:
    work = Moving(MODEL, lf.cross_entropy, lf.sgd(0.1), None, None, "fp32")
    return Trainer(data, 24, making(work, **settings), work)


def segments(trainer: Trainer, state: TrainState, *ends: int) -> tuple[TrainState, list[float]]:
    """Training in segments, each under other masks, as drop and regrow has them."""
    losses = []
    for number, end in enumerate(ends):
        state, loss = take_steps(trainer, state, seed=3, until=end)
        losses.append(loss)
        state = state._replace(masks={name: mask.roll(number + 1, 0) for name, mask in state.masks.items()})
    return state, losses


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("forms", [MemoryFormats(), MemoryFormats(floating_masks=False, channels_last=False)])
def test_segments_of_a_training_go_on_with_the_graphs_of_the_first(
    gpus: Machine, few_digits: Dataset, device: str, forms: MemoryFormats
) -> None:
    start = lf.prune(fraction=0.5)(lf.init(MODEL))
    ends = (40, 80, 120, 160)
    wanted, losses = segments(trainer(few_digits, eager), start, *ends)
    on_gpu = trainer(data_to_device(few_digits, device), compile_engine, formats=forms)
    found, same_losses = segments(on_gpu, to_device(start, device), *ends)
    assert same_losses == pytest.approx(losses)
    for name, leaf in wanted.params.items():
        torch.testing.assert_close(found.params[name].cpu(), leaf)
    assert lf.same_bits(to_device(found.masks, "cpu"), wanted.masks)
    assert len(gpus.captures) == 1, "one graph of 40 steps, though trainings began four times"


def test_trainings_at_the_same_time_do_not_share_memory(gpus: Machine, few_digits: Dataset) -> None:
    """And one of another kind takes none that was left, nor leaves more than its own."""
    from lthfunc.training.session import TrainingSession

    work = trainer(data_to_device(few_digits, "cuda:0"), compile_engine)
    starts = [to_device(lf.init(MODEL, seed), "cuda:0") for seed in (0, 1)]
    alone = [take_steps(work, start, seed=3, until=30)[0] for start in starts]
    with TrainingSession(work, [starts[0]], [3], 30) as one, TrainingSession(work, [starts[1]], [3], 30) as other:
        for step in (10, 20, 30):
            one.to(step)
            other.to(step)
        together = [one.now()[0][0], other.now()[0][0]]
    for here, there in zip(alone, together, strict=True):
        assert lf.same_bits(to_device(here.params, "cpu"), to_device(there.params, "cpu"))
    fewer = work._replace(batch_size=12)
    torch.testing.assert_close(
        take_steps(fewer, starts[0], seed=3, until=30)[0].params["fc1.weight"].cpu(),
        take_steps(trainer(few_digits, eager)._replace(batch_size=12), lf.init(MODEL), seed=3, until=30)[0].params[
            "fc1.weight"
        ],
    )


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_evaluations_replay_one_graph_in_the_trainings_memory(
    gpus: Machine, few_digits: Dataset, seeds: tuple[int, ...]
) -> None:
    """60 digits: a chunk of 32 by a graph, the rest as it is written."""
    device = torch.device("cuda:1")
    work = trainer(data_to_device(few_digits, device), compile_engine)
    cpu = trainer(few_digits, eager)
    for number in range(4):
        states = [lf.init(MODEL, 10 * number + seed) for seed in seeds]
        there = to_device(states, device)
        if len(seeds) == 1:
            take_steps(work, there[0], seed=0, until=20)
        wanted = measure(cpu, states, few_digits.val)
        found = measure(work, there, work.data.val)
        for here, same in zip(wanted, found, strict=True):
            assert same == pytest.approx(here, rel=1e-5)
    assert len(gpus.captures) == 1 + (len(seeds) == 1), "of the evaluation, and of the training's steps"
    assert len(gpus.pools) == 1
    assert None not in gpus.pools


def test_steps_can_be_launched_one_by_one(gpus: Machine, few_digits: Dataset) -> None:
    """For comparison."""
    data, start = data_to_device(few_digits, "cuda:0"), to_device(lf.init(MODEL), "cuda:0")
    ends = [segments(trainer(data, compile_engine, graphs=graphs), start, 20, 40)[0] for graphs in (False, True)]
    assert len(gpus.captures) == 1
    assert lf.same_bits(*(to_device(end.params, "cpu") for end in ends))


def test_memory_that_is_kept_can_be_given_up(gpus: Machine, few_digits: Dataset) -> None:
    work = trainer(data_to_device(few_digits, "cuda:0"), compile_engine)
    start = to_device(lf.init(MODEL), "cuda:0")
    for captured in (0, 1, 1):
        take_steps(work, start, seed=0, until=20)
        assert len(gpus.captures) == captured
    work.engine.forget()
    take_steps(work, start, seed=0, until=20)
    assert len(gpus.captures) == 1, "new memory, whose first steps are not captured"
    take_steps(work, start, seed=0, until=20)
    assert len(gpus.captures) == 2


def test_a_compiled_network_replays_a_graph_for_each_size_of_batch(
    gpus: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs are nobody else's: a later batch does not change an earlier one's."""
    monkeypatch.setattr(execution, "compiled", lambda function, example, name: function)
    monkeypatch.setattr(execution, "why_not", lambda device: None)
    ticket = lf.ticket(lf.prune(fraction=0.5)(lf.init(MODEL)))
    program = execution.Compiled(masked_module(MODEL, to_device(ticket, "cuda:1"), "cuda:1"), "lenet300")
    whole = masked_module(MODEL, ticket)
    draw = torch.Generator().manual_seed(0)
    batches = [torch.rand(size, 1, 8, 8, generator=draw) for size in (8, 8, 3, 8, 3, 8)]
    with torch.no_grad():
        outputs = [program(x.to("cuda:1")) for x in batches]
        for x, found in zip(batches, outputs, strict=True):
            torch.testing.assert_close(found.cpu(), whole(x))
    assert len(gpus.captures) == 2
    assert len(gpus.pools) == 1


@pytest.mark.parametrize(
    ("networks", "flops", "examples", "chunk"),
    [
        (1, 532_000, 5000, 4096),  # LeNet-300-100: as much of the split as a power of two holds
        (1, 532_000, 60_000, 8192),
        (256, 532_000, 60_000, 512),
        (1, 1_100_000_000, 10_000, 256),  # ResNet-18: no more than on a CPU
        (64, 1_100_000_000, 10_000, 64),
        (1, 0, 10_000, 256),
        (1, 532_000, 60, 32),
        (4, 532_000, 1, 1),
    ],
)
def test_chunks_on_a_gpu_hold_milliseconds_of_work(networks: int, flops: int, examples: int, chunk: int) -> None:
    assert chunk_on_gpu(networks, flops, examples) == chunk
