"""Generators, processes and sizes of loaders and samplers, which streams leave alone and seed on their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_streams import Lines, X, Y, cache, loader, read, streamed  # noqa: F401
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

import lthfunc as lf
from lthfunc.data.iterable_streams import IterableStream
from lthfunc.data.map_streams import MapStream
from lthfunc.errors import UserError


def test_two_seeds_share_no_processes() -> None:
    mine = loader(Lines(), 1, persistent_workers=True)
    assert len(list(mine)) == 6  # its processes go on
    stream = IterableStream(mine, None, None)
    both = read(stream, 0, 3, (3, 4))
    for place, seed in enumerate((3, 4)):
        alone = [batch for (batch,) in read(stream, 0, 3, (seed,))]
        assert lf.same_bits(alone, [batches[place] for batches in both])


def test_generators_of_what_a_function_makes_are_seeded() -> None:
    kept = torch.Generator()
    before = kept.get_state()
    of_sampler = WeightedRandomSampler([1.0] * 22, 22, generator=kept)
    for made in (lambda: loader(generator=kept), lambda: loader(sampler=of_sampler)):
        stream = IterableStream(made, None, 22)
        whole = read(stream, 0, 9)
        assert lf.same_bits(read(stream, 2, 7), whole[2:])
        assert not torch.equal(whole[0][0][0], whole[7][0][0])
    assert torch.equal(kept.get_state(), before)


def test_an_epoch_has_the_examples_that_its_batches_hold() -> None:
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]  # the last is shorter
    counts = {
        "list": IterableStream(batches, None, None).examples,
        "dropped": IterableStream(loader(Lines(), drop_last=True), None, None).examples,
        "kept": IterableStream(loader(Lines()), None, None).examples,
        "whole": IterableStream(DataLoader(batches, batch_size=None), None, 22).examples,  # type: ignore[arg-type]
    }
    assert counts == {"list": 22, "dropped": 20, "kept": 22, "whole": 22}


def test_decoding_a_loader_draws_from_no_generator_of_the_caller() -> None:
    state = torch.get_rng_state()
    data = streamed(val=DataLoader(InOrder(), 4))
    assert torch.equal(data.val.x, X)
    assert torch.equal(torch.get_rng_state(), state)


class InOrder(Lines):
    def __iter__(self) -> Iterator[Any]:
        return iter(TensorDataset(X, Y))


def test_held_out_examples_leave_an_epoch_of_its_samplers_size() -> None:
    keep = torch.arange(3, 20)
    stream = MapStream(loader(sampler=RandomSampler(X, num_samples=10)), None, keep)
    assert stream.examples == len(set(stream.order(0, 0))) == 10
    with pytest.raises(UserError, match="its Reversed chooses among all examples"):
        MapStream(loader(sampler=Reversed(X)), None, keep)


class Reversed(RandomSampler):
    def __iter__(self) -> Iterator[int]:
        return iter(range(21, -1, -1))
