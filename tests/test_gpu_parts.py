"""What is done for GPUs, where no GPU is needed to tell: graphs kept, chunks measured in place, cards found by UUID."""

from __future__ import annotations

import gc
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import NET
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.distributed.collectives import Collectives
from lthfunc.energy.gpus import Card, card_of
from lthfunc.errors import UserError
from lthfunc.experiments.engine_choice import flops_per_step
from lthfunc.training.batches import batches
from lthfunc.training.engines.evaluation_graphs import EvaluationGraph, evaluation_graph
from lthfunc.training.engines.interface import Work, _flops, chunk_of
from lthfunc.training.engines.memory_formats import MemoryFormats
from lthfunc.training.engines.reused_memory import GraphPools, Reusable
from lthfunc.training.evaluation import chunk_on_gpu
from lthfunc.training.prefetch import Prefetcher, _Staging
from lthfunc.trees.types import Split


def test_memory_is_kept_for_what_fits() -> None:
    kept: Reusable[str] = Reusable()
    assert kept.take("a") is None
    kept.leave("a", "first")
    kept.leave("b", "second")  # the last alone
    assert kept.take("b") == "second"
    assert kept.take("b") is None  # whoever takes it has it for itself
    kept.leave("b", "third")
    assert kept.take("a") is None
    assert kept.take("b") is None  # given up, to make room
    kept.leave("c", "fourth")
    kept.clear()
    assert kept.take("c") is None


def test_a_pool_lives_as_long_as_a_graph_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = iter(range(10))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))

    class Graph:
        """In place of a captured one."""

    pools, first, second = GraphPools(), torch.device("cuda:0"), torch.device("cuda:1")
    assert pools.on(first) == 0
    assert pools.on(first) == 1  # nothing was captured in the one before
    one, other = Graph(), Graph()
    pools.captured(first, one)  # type: ignore[arg-type]
    assert pools.on(first) == 1
    assert pools.on(second) == 2
    pools.captured(first, other)  # type: ignore[arg-type]
    del one
    gc.collect()
    assert pools.on(first) == 1
    del other
    gc.collect()
    assert pools.on(first) == 3


def test_forms_of_memory() -> None:
    image, row = torch.zeros(1, 2, 3, 4), torch.zeros(2, 3)
    form = MemoryFormats()
    assert (form.floating_masks, form.channels_last) == (True, True)
    assert form.of(image, 1) == torch.channels_last
    assert form.of(image, 2) == form.of(row, 1) == torch.contiguous_format
    assert MemoryFormats(channels_last=False).of(image, 1) == torch.contiguous_format


@pytest.mark.parametrize("networks", [1, 2])
def test_chunks_are_measured_in_memory_that_stays(networks: int) -> None:
    made: list[Any] = []

    def program(kind: str, function: Any, example: Any) -> Any:
        made.append((kind, [tuple(leaf.shape) for leaf in example]))
        return function

    def flat(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        axes = () if networks == 1 else (1, 2)
        value = (weight.unsqueeze(-2) * x + bias.unsqueeze(-2)) if networks > 1 else weight * x + bias
        return value.sum(axes) if axes else value.sum(), (value * 0 + y[:, None]).mean(axes) if axes else y.mean()

    def of(scale: float) -> list[Tensor]:
        shape = (3,) if networks == 1 else (networks, 3)
        return [torch.full(shape, scale), torch.full(shape, 1.0)]

    def found(measuring: EvaluationGraph, x: Tensor, y: Tensor) -> list[Any]:
        return [number.tolist() for number in measuring.metrics_of((x, y))]

    kept: Reusable[EvaluationGraph] = Reusable()
    x, y = torch.ones(4, 3), torch.arange(4.0)

    def begin(scale: float, batch: Any = (x, y)) -> EvaluationGraph:
        return evaluation_graph(kept, flat, program, of(scale), networks, batch, GraphPools())

    first = begin(2.0)
    many = (lambda number: number) if networks == 1 else (lambda number: [number] * networks)
    assert found(first, x, y) == [many(12 * 3.0), many(1.5)]
    assert found(first, 2 * x, y + 1) == [many(12 * 5.0), many(2.5)]
    assert first.found[0].dtype == first.found[1].dtype == torch.float64
    shape = [(3,)] * 2 if networks == 1 else [(networks, 3)] * 2
    numbers = [()] * 2 if networks == 1 else [(networks,)] * 2
    assert made == [("eval", [*shape, (4, 3), (4,), *numbers])]
    assert first.batch[0] is not x
    kept.leave(first.fit, first)
    again = begin(5.0)
    assert again is first
    assert found(again, x, y)[0] == many(12 * 6.0)
    assert len(made) == 1
    for other in ((x[:3], y[:3]), (x.double(), y), (x, y.double())):
        kept.leave(first.fit, first)
        assert begin(5.0, other) is not first
    assert len(made) == 4


class NVMLError(Exception):
    pass


def nvml(*cards: tuple[Any, list[Any] | None], most: int = 3) -> Any:
    """In NVML's place: each card's UUID, and those of its parts (None: it cannot be divided)."""
    told: list[str] = []

    def divided(card: Any) -> tuple[int, int]:
        if card[1] is None:
            raise NVMLError
        return (1 if card[1] else 0), 0

    def part(card: Any, number: int) -> Any:
        if card[1][number] is None:
            raise NVMLError
        return card[1][number], []

    return SimpleNamespace(
        NVMLError=NVMLError, told=told, nvmlInit=lambda: told.append("init"), nvmlShutdown=lambda: told.append("end"),
        nvmlDeviceGetCount=lambda: len(cards), nvmlDeviceGetHandleByIndex=lambda index: cards[index],
        nvmlDeviceGetUUID=lambda card: card[0], nvmlDeviceGetMigMode=divided,
        nvmlDeviceGetMaxMigDeviceCount=lambda card: most, nvmlDeviceGetMigDeviceHandleByIndex=part,
    )  # fmt: skip


def test_a_card_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = nvml((b"GPU-AA-1", None), ("GPU-bb-2", []), ("GPU-cc-3", [None, "MIG-dd-4", "MIG-GPU-ee-5"]))
    monkeypatch.setitem(sys.modules, "pynvml", cards)
    asked: list[str] = []

    def at(uuid: str) -> Any:
        def properties(device: str) -> Any:
            asked.append(device)
            return SimpleNamespace(uuid=uuid)

        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        return card_of("cuda:1")

    assert at("aa-1") == Card(0, False)
    assert at("bb-2") == Card(1, False)
    assert at("cc-3") == at("dd-4") == at("ee-5") == Card(2, True)
    assert set(asked) == {"cuda:1"}
    assert cards.told == ["init", "end"] * 5
    with pytest.raises(UserError, match=r"--energy: NVML finds no GPU with the UUID of cuda:1 .ff-6."):
        at("ff-6")
    assert cards.told[-1] == "end"
    broken = nvml()
    broken.nvmlInit = lambda: (_ for _ in ()).throw(NVMLError("no driver"))
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    with pytest.raises(UserError, match=r"--energy: NVML doesn't start .no driver."):
        at("aa-1")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UserError, match=r"--energy: metering a GPU needs NVML \(pip install nvidia-ml-py\)"):
        at("aa-1")


def test_chunks_on_a_gpu_are_powers_of_two() -> None:
    """Of 1e11 FLOPs in all networks, 8,192 of each at the most; not below a CPU's, and no more than the examples."""
    assert chunk_on_gpu(1, 10**8, 10**6) == 512  # of 1000
    assert chunk_on_gpu(1, 10**11 // 1024, 10**6) == 1024
    assert chunk_on_gpu(1, 10**11 // 1023, 10**6) == 512
    assert chunk_on_gpu(2, 10**8, 10**6) == 256  # of 500
    assert chunk_on_gpu(1, 10**10, 10**6) == 256  # of a CPU's 500
    assert chunk_on_gpu(1, 1, 10**6) == 8192
    assert chunk_on_gpu(1, 0, 10**6) == 256
    assert [chunk_on_gpu(1, 1, examples) for examples in (1, 63, 64, 65)] == [1, 32, 64, 64]
    work = Work(lf.from_module(NET), lf.cross_entropy, lf.sgd(0.1), None, None, "fp32")
    split = Split(torch.zeros(700, 6), torch.zeros(700, dtype=torch.int64))
    cuda = torch.device("cuda")
    assert chunk_of(work, 3, split, torch.device("cpu")) == 166
    assert chunk_of(work, 1, split, cuda) == chunk_on_gpu(1, 90, 700)
    two = work._replace(collectives=Collectives(0, 3, lambda vector: vector))
    assert chunk_of(two, 1, split, cuda) == chunk_on_gpu(1, 90, 234)
    embedding = lf.from_module(nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 7)), tokens=True)
    words = Split(torch.zeros(700, 3, dtype=torch.int64), torch.zeros(700, dtype=torch.int64))
    assert _flops(embedding, (3,)) == 2 * 12 * 7
    assert chunk_of(work._replace(model=embedding), 1, words, cuda) == chunk_on_gpu(1, 168, 700)
    assert _flops(lf.from_module(NET), (9,)) == 0  # which it does not run on
    unknown = Split(torch.zeros(700, 9), torch.zeros(700, dtype=torch.int64))
    assert chunk_of(work, 3, unknown, cuda) == chunk_on_gpu(3, 0, 700) == 128
    assert flops_per_step(embedding, (3,), 5) == 3 * 5 * 2 * 12 * 7


def test_indices_go_to_a_device_by_way_of_memory_that_stays() -> None:
    split = Split(torch.arange(74).float().view(37, 2), torch.arange(37))
    prefetcher = Prefetcher(split, 6, [5], torch.device("cpu"))
    prefetcher._staging = _Staging([prefetcher._index])  # as on a GPU
    for start, stop in ((0, 4), (4, 6), (6, 7)):
        prefetcher.fill(start, stop, 7)
        for slot, (x, y) in enumerate(batches(split, 6, 5, start, stop)):
            assert torch.equal(prefetcher.batches[slot][0], x)
            assert torch.equal(prefetcher.batches[slot][1], y)
