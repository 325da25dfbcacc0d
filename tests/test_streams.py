"""Streamed training examples: as plain loops read them, the same wherever reading begins."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset as TorchDataset,
    IterableDataset,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

import lthfunc as lf
from lthfunc.data.iterable_streams import IterableStream
from lthfunc.data.map_streams import MapStream
from lthfunc.distributed.collectives import Collectives
from lthfunc.training.prefetch import Prefetcher
from lthfunc.trees.streams import Stream
from lthfunc.trees.types import Batch

X = torch.arange(66.0).view(22, 3).sin()
Y = (X.sum(1) > 0).long()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))


class Noisy(TorchDataset[Any]):
    """Examples to which three global generators add their draws."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> Any:
        return X[number] + 1e-3 * (torch.rand(3) + random.random() + np.random.rand()), Y[number]


class Lines(IterableDataset[Any]):
    """Shuffled anew in each epoch, by a global generator."""

    def __iter__(self) -> Iterator[Any]:
        for number in torch.randperm(len(X)).tolist():
            yield X[number], Y[number]

    def __len__(self) -> int:
        return len(X)


def loader(data: Any = None, workers: int = 0, **more: Any) -> DataLoader[Any]:
    if workers:
        more |= {"num_workers": workers, "multiprocessing_context": "fork"}
    chosen = TensorDataset(X, Y) if data is None else data
    shuffle: dict[str, Any] = {} if "sampler" in more or isinstance(chosen, IterableDataset) else {"shuffle": True}
    return DataLoader(chosen, 4, **shuffle, **more)


def streamed(train: Any = None, **more: Any) -> lf.Dataset:
    return lf.data.from_loader("streamed", loader() if train is None else train, TensorDataset(X, Y),
                               **{"val": TensorDataset(X, Y), "classes": 2, **more})  # fmt: skip


STREAMS: dict[str, Callable[[], MapStream | IterableStream]] = {
    "map": lambda: MapStream(loader(Noisy()), None),
    "map in processes": lambda: MapStream(loader(Noisy(), 2), None),
    "map of some": lambda: MapStream(loader(Noisy()), None, torch.arange(3, 20)),
    "iterable": lambda: IterableStream(loader(Lines()), None, None),
    "function": lambda: IterableStream(lambda: ((X[i : i + 5], Y[i : i + 5]) for i in range(0, 22, 5)), None, 22),
}


def numpys() -> list[int]:
    """The state of NumPy's generator."""
    state: Any = np.random.get_state()
    found: list[int] = state[1].tolist()
    return found


def read(stream: Stream, start: int, count: int, seeds: tuple[int, ...] = (3,)) -> list[list[Batch]]:
    reading = stream.batches(3, seeds, start)
    found = list(islice(reading, count))
    reading.close()
    return found


@pytest.mark.parametrize("name", STREAMS)
def test_a_step_sees_the_same_batch_wherever_reading_began(name: str) -> None:
    state, draws, other = torch.get_rng_state(), random.getstate(), numpys()
    stream = STREAMS[name]()
    whole = read(stream, 0, 17)
    for start in (1, 6, 7, 13):
        assert lf.same_bits(read(STREAMS[name](), start, 4), whole[start : start + 4])
    for step, (mine, theirs) in enumerate(read(stream, 5, 3, (3, 4)), 5):
        assert lf.same_bits(mine, whole[step][0])
        assert not torch.equal(mine[0], theirs[0]) or name == "function"
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == draws
    assert numpys() == other
    per_epoch = stream.examples // 3
    for epoch in range(2):  # each example once
        x = torch.cat([x for ((x, _),) in whole[epoch * per_epoch : (epoch + 1) * per_epoch]])
        kept = X[3:20] if "some" in name else X
        nearest = torch.cdist(x, kept).argmin(1)
        assert len(nearest.unique()) == len(x) == per_epoch * 3
        torch.testing.assert_close(x, kept[nearest], atol=4e-3, rtol=0)
    assert name == "function" or not torch.equal(whole[0][0][0], whole[per_epoch][0][0])  # another order


def test_processes_change_nothing_and_draws_are_of_the_place_in_the_batch() -> None:
    alone, two = (read(STREAMS[name](), 0, 9) for name in ("map", "map in processes"))
    assert lf.same_bits(alone, two)
    order = MapStream(loader(), None).order(3, 0)
    assert sorted(order) == list(range(22))
    assert torch.equal(torch.cat([y for ((_, y),) in alone[:7]]), Y[order[:21]])
    noise = torch.stack([(x - X[order[3 * step : 3 * step + 3]]) for step, ((x, _),) in enumerate(alone[:7])])
    for one, other in ((noise[:, 0], noise[:, 1]), (noise[0], noise[1])):  # places in a batch, and steps
        assert bool(((one - other).abs().amax(-1) > 1e-5).all())


def test_samplers_choose_as_they_do_in_their_loader() -> None:
    weights = torch.arange(22).double()
    for generator in (None, torch.Generator()):
        sampler = WeightedRandomSampler(weights.tolist(), 40, generator=generator)
        stream = MapStream(loader(sampler=sampler), None)
        assert stream.examples == 40
        counts = torch.cat([y.new_tensor(stream.order(0, epoch)) for epoch, y in enumerate([Y] * 100)]).bincount(
            minlength=22
        )
        assert counts[0] == 0
        assert counts[21] > 3 * counts[3]
    pairs = DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [4, 5], [2, 3]])
    ((x, y),), *_ = read(MapStream(pairs, None), 0, 1)
    assert torch.equal(x, X[[0, 1, 4]])
    assert torch.equal(y, Y[[0, 1, 4]])


MODEL = lf.from_module(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)))


@pytest.mark.parametrize("name", ["map", "map in processes", "iterable"])
def test_training_goes_on_to_the_same_bits(name: str) -> None:
    loaders = {
        "map": lambda: loader(Noisy()),
        "map in processes": lambda: loader(Noisy(), 2),
        "iterable": lambda: loader(Lines()),
    }
    data = streamed(loaders[name]())
    trainer = lf.make_trainer(MODEL, data, optimizer=lf.adam(1e-2), batch_size=5)
    start = lf.init(MODEL)
    whole = lf.fit(trainer, start, seed=2, until=11, eval_every=3)
    kept: list[lf.Fit] = []
    stops: lf.Checkpointer[lf.Fit] = lf.Checkpointer(
        lambda fits: kept.extend(fits), should_stop=lambda: True, next_check=lambda step: 5
    )
    with pytest.raises(lf.Stopped):
        lf.fit_together(trainer, [start], seeds=[2], until=11, eval_every=3, checkpointer=stops)
    assert 0 < int(kept[-1].state.step) < 11
    again = lf.make_trainer(MODEL, streamed(loaders[name]()), optimizer=lf.adam(1e-2), batch_size=5)
    resumed = lf.fit(again, kept[-1].state, seed=2, until=11, eval_every=3, so_far=kept[-1])
    assert lf.same_bits(resumed.state, whole.state)
    assert resumed.curve[1:] == whole.curve[1:]
    without = lf.from_module(nn.Linear(3, 2))
    trainer = lf.make_trainer(without, data, optimizer=lf.sgd(0.1), batch_size=5)
    several = lf.fit_together(trainer, [lf.init(without, seed) for seed in (2, 3)], seeds=[2, 3], until=6, eval_every=6)
    for seed, fit in zip((2, 3), several, strict=True):
        alone = lf.fit(trainer, lf.init(without, seed), seed=seed, until=6, eval_every=6)
        torch.testing.assert_close(fit.state.params, alone.state.params)


def test_ranks_get_their_parts_of_a_batch() -> None:
    data = streamed(loader(Noisy()))
    found = []
    for collectives in (
        Collectives(0, 1, lambda each: each),
        *(Collectives(rank, 2, lambda each: each) for rank in range(2)),
    ):
        prefetcher = Prefetcher(data.train, 6, [1], torch.device("cpu"), stream=data.stream, collectives=collectives)
        prefetcher.fill(0, 2, 2)
        found.append(prefetcher.batches[1][0].clone())
        prefetcher.close()
    assert torch.equal(torch.cat(found[1:]), found[0])
    drawn = lf.sample_batches(data, 6, 2, seed=1)
    assert torch.equal(drawn[1][0], found[0])


def test_held_out_examples_are_not_trained_on() -> None:
    data = lf.data.from_loader("held", loader(), 3, val=0.25, classes=2)
    assert (data.examples, len(data.val.x), len(data.test.x)) == (13, 6, 3)
    assert data.stream is not None
    trained = torch.cat([x for ((x, _),) in islice(data.stream.batches(13, [0], 0), 1)])
    assert torch.equal(torch.cat([trained, data.val.x, data.test.x]).sort(0).values, X.sort(0).values)
    loaders = streamed(val=DataLoader(TensorDataset(X[:9], Y[:9]), 4))
    assert torch.equal(loaders.val.x, X[:9])
    of_batches = streamed(val=Batches())
    assert torch.equal(of_batches.val.x, X[:8])


class Batches:
    def __iter__(self) -> Iterator[Any]:
        yield from ((X[:5], Y[:5]), (X[5:8], Y[5:8]))


class Endless(Sampler[int]):
    """The same order again and again, drawn by a generator of its own."""

    generator = torch.Generator()

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(22, generator=self.generator).tolist()


def endless() -> Iterator[Any]:
    while True:
        yield X[:4] + torch.rand(()), Y[:4]


@pytest.mark.parametrize("make", [lambda: loader(sampler=Endless()), lambda: endless], ids=["sampler", "iterable"])
def test_of_what_has_no_end_only_what_steps_need_is_read(make: Callable[[], Any]) -> None:
    data = streamed(make(), examples=9)
    assert data.examples == 9
    assert data.stream is not None
    first, *others = read(data.stream, 0, 7)
    assert lf.same_bits(read(data.stream, 3, 4), others[2:])
    assert not torch.equal(first[0][0], others[2][0][0])  # of the next epoch


FILE = """
import torch
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset):
    classes = ["below", "above"]

    def __init__(self, first, last, noise=0.0):
        self.numbers, self.noise = range(first, last), noise

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, place):
        x = torch.sin(torch.arange(3.0) + 3 * self.numbers[place])
        return x + self.noise * torch.randn(3), int(x.sum() > 0)


def data(noise=0.1):
    train = DataLoader(Noisy(0, 150, noise), batch_size=8, shuffle=True)
    return {"train": train, "val": Noisy(150, 200), "test": DataLoader(Noisy(200, 250))}
"""


def test_a_loader_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILE)
    words = ["--arch", "lenet300", "--dataset", "mine.py:data", "--steps", 2, "--engine", "eager", "--out", "run"]
    assert run("train", *words) == 0
    assert "150 training, 50 validation and 50 test examples" in capsys.readouterr().err
    assert run("datasets", "show", "mine.py:data") == 0
    out = capsys.readouterr().out
    assert "150 training, 50 validation, 50 test" in out
    assert "first 150" in out


@pytest.mark.long
def test_a_worker_that_may_have_no_processes_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        FILE.replace("shuffle=True", "shuffle=True, num_workers=1, multiprocessing_context='fork'")
    )
    words = "prune --arch lenet300 --dataset mine.py:data --steps 12 --rounds 1 --replicates 2 --engine eager"
    for jobs in (1, 2):
        assert run(*words.split(), "--jobs", jobs, "--out", f"run{jobs}") == 0
    assert run("verify", "run2") == 0
    assert lf.same_bits(*(lf.load_tree(f"run{jobs}/last_round.safetensors")[0] for jobs in (1, 2)))
