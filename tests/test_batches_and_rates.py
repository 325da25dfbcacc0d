"""What each step gets: its batch, at the same place in memory or not, and its learning rate."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from small import data
from torch import nn

import lthfunc as lf
from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.training import prefetch
from lthfunc.training.batches import BatchOrder, batches, steps_per_epoch
from lthfunc.training.loop import take_steps
from lthfunc.training.optimizers import table_like
from lthfunc.training.prefetch import Prefetcher
from lthfunc.training.schedules import as_schedule, ends_at, rate_at
from lthfunc.training.trainer import examples, make_trainer
from lthfunc.trees.rng import permutation
from lthfunc.trees.types import Scale, Split

CPU = torch.device("cpu")


def test_the_order_of_examples_is_a_permutation_an_epoch() -> None:
    assert [steps_per_epoch(17, size) for size in (1, 5, 8, 9, 17)] == [17, 3, 2, 1, 1]
    for size in (0, 18):
        with pytest.raises(UserError, match=f"^batch_size: invalid value {size} .*a whole number from 1 to 17"):
            steps_per_epoch(17, size)
    expected = torch.cat([permutation(17, 3, "order", epoch)[:15].view(3, 5) for epoch in range(4)])
    order = BatchOrder(17, 5, 3)
    for start, stop in ((0, 1), (1, 3), (2, 9), (0, 12), (11, 12), (3, 3 + 1)):
        assert torch.equal(order.rows(start, stop), expected[start:stop]), (start, stop)
    split = Split(torch.arange(34).view(17, 2), torch.arange(17))
    for step, (x, y) in enumerate(batches(split, 5, 3, 2, 6), 2):
        assert torch.equal(y, expected[step])
        assert torch.equal(x, split.x[expected[step]])


def test_sampled_batches_are_scaled_and_no_larger_than_the_data() -> None:
    numbers = data()._replace(scale=Scale(2, (1.0,), (0.5,)))
    found = lf.sample_batches(numbers, 7, 4, seed=3)
    assert len(found) == 4
    for (x, y), (stored, targets) in zip(found, batches(numbers.train, 7, 3, 0, 4), strict=True):
        torch.testing.assert_close(x, (stored / 2 - 1) / 0.5)
        assert torch.equal(y, targets)
    x, y = torch.randn(90, 1, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
    few = lf.data.from_tensors("few", (x, y), (x[:2], y[:2]), val=3)
    for size, count in ((2, 2), (2, 3), (4, 1)):  # up to a twentieth of an epoch, whose permutation is not made
        for ours, theirs in zip(
            lf.sample_batches(few, size, count, seed=3), batches(few.train, size, 3, 0, count), strict=True
        ):
            assert lf.same_bits(ours, theirs)
    ((x, _),) = lf.sample_batches(numbers, 10**6, 1)
    assert len(x) == len(numbers.train.x)
    torch.testing.assert_close(examples(numbers), (numbers.train.x[:2] / 2 - 1) / 0.5)
    assert len(examples(numbers, 3)) == 3


def test_a_feed_holds_four_megabytes_of_steps() -> None:
    def slots(numbers: int, batch: int, seeds: int = 1) -> int:
        split = Split(torch.zeros(8, numbers), torch.zeros(8, dtype=torch.int64))
        return Prefetcher(split, batch, list(range(seeds)), CPU).slots

    assert slots(1024, 2) == 64  # 8 kB a step: as many as there are at most
    assert slots(64 * 1024, 2) == 8  # 512 kB
    assert slots(64 * 1024, 2, seeds=3) == 2
    assert slots(64 * 1024 - 1, 8) == 2
    assert slots(1024 * 1024, 2) == 1
    assert slots(16 * 1024, 1, seeds=1) == 64  # 64 kB: exactly 64
    assert slots(17 * 1024, 1) == 60  # 68 kB


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_feeds_hold_the_batches_of_their_steps(mapped: bool, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_MOST", 3)
    warnings.simplefilter("error")  # PyTorch's, of memory of another size
    split = Split(torch.arange(74).float().view(37, 2), torch.arange(37))
    for rank in range(ranks):
        prefetcher = Prefetcher(
            split, 6, [5, 8], CPU, mapped=mapped, collectives=Collectives(rank, ranks, lambda vector: vector)
        )
        assert prefetcher.slots == 3
        assert prefetcher.slotted[0].shape == (3, 2, 6 // ranks, 2)
        places = [prefetcher.batches[slot][0].data_ptr() for slot in range(3)]
        for start, stop in ((0, 3), (3, 5), (5, 8), (8, 11), (11, 12)):
            prefetcher.fill(start, stop, 12)
            for k, seed in enumerate((5, 8)):
                for slot, (x, y) in enumerate(batches(split, 6, seed, start, stop)):
                    mine = slice(rank * 6 // ranks, (rank + 1) * 6 // ranks)
                    assert torch.equal(prefetcher.batches[slot][0][k], x[mine])
                    assert torch.equal(prefetcher.batches[slot][1][k], y[mine])
        assert places == [prefetcher.batches[slot][0].data_ptr() for slot in range(3)]
        prefetcher.close()
        if mapped:
            assert prefetcher._stream is not None
            with pytest.raises(RuntimeError):
                prefetcher._stream.order(torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(("features", "batch"), [(5, 5), (6, 7), (13, 50), (17, 10), (16, 4)])
def test_a_training_has_the_same_bits_wherever_it_is_parted(features: int, batch: int) -> None:
    """A batch of odd size too, whose products have other bits at another place in memory."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(140, features, generator=random), torch.randint(0, 3, (140,), generator=random)
    numbers = lf.data.from_tensors("odd", (x[:120], y[:120]), (x[120:], y[120:]), val=20)
    model = lf.from_module(nn.Sequential(nn.Linear(features, 5), nn.ReLU(), nn.Linear(5, 3)))
    trainer = make_trainer(model, numbers, optimizer=lf.sgd(0.1), batch_size=batch)
    whole = parted = lf.init(model)
    whole = take_steps(trainer, whole, seed=0, until=12)[0]
    for until in (3, 4, 9, 12):
        parted = take_steps(trainer, parted, seed=0, until=until)[0]
    assert lf.same_bits(whole, parted)


def test_rates_go_on_at_the_last() -> None:
    table = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    assert [float(rate_at(table, torch.tensor(step))) for step in range(5)] == [1.0, 0.5, 0.25, 0.25, 0.25]
    assert as_schedule(table) is table
    assert as_schedule(0.5).tolist() == [0.5]
    assert as_schedule(0.5).dtype == torch.float64


@pytest.mark.parametrize(
    ("table", "until", "end"),
    [
        ([1.0, 0.5, 0.0], 2, None),  # the entry at 0 is one more than the steps
        ([1.0, 0.5, 0.0], 3, 2),
        ([1.0, 0.5, 1e-5], 3, None),
        ([1.0, 0.5, 1e-5], 4, 3),
        ([1.0, 0.5, 1.0000001e-5], 9, None),
        ([1.0, 0.5, 0.25], 9, None),
        ([0.0], 5, 0),
        ([1.0], 5, None),
    ],
)
def test_a_schedule_ends_where_its_rate_is_next_to_nothing(table: list[float], until: int, end: int | None) -> None:
    assert ends_at(torch.tensor(table, dtype=torch.float64), until) == end


def test_stepwise_cosine_and_cycles_by_hand() -> None:
    assert lf.stepwise(0.4, (2, 3), 0.5).tolist() == pytest.approx([0.4, 0.4, 0.2, 0.1])
    assert lf.stepwise(0.4, (2, 3), 0.5, final=0.15).tolist() == pytest.approx([0.4, 0.4, 0.2, 0.15])
    assert lf.stepwise(0.4, ()).tolist() == [0.4]
    assert lf.cosine(0.4, 4, 0.2).tolist() == pytest.approx([0.3 + 0.1 * math.cos(math.pi * t / 4) for t in range(5)])
    cycle = lf.cyclic(0.4, 7, 2, 0.1)
    assert cycle.tolist() == pytest.approx([*lf.cosine(0.4, 4, 0.1)[:-1].tolist(), *lf.cosine(0.4, 3, 0.1).tolist()])
    assert lf.cyclic(0.4, 7, 1, 0.1).tolist() == lf.cosine(0.4, 7, 0.1).tolist()
    assert lf.cyclic(0.4, 3, 3).tolist() == pytest.approx([0.4, 0.4, 0.4, 0.0])
    assert lf.warmup(lf.stepwise(0.4, (1,)), 4).tolist() == pytest.approx([0.1, 0.02, 0.03, 0.04])
    plain = lf.constant(0.4)
    assert lf.warmup(plain, 0) is plain
    before = lf.cosine(0.4, 9)
    copied = before.clone()
    lf.warmup(before, 3)
    assert torch.equal(before, copied)


def test_rises_and_falls_by_hand() -> None:
    """Straight lines and half cosines between the corners that the docstrings name."""

    def rise(way: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * way)

    steps, up = 11, 0.4 * 11 - 1
    cycle = [0.1 + 0.9 * rise(t / up) if t <= up else 1 + (0.01 - 1) * rise((t - up) / (10 - up)) for t in range(steps)]
    assert lf.one_cycle(2.0, 11, rise=0.4, start=0.1, end=0.01).tolist() == pytest.approx([2 * each for each in cycle])
    found = lf.one_cycle(2.0, 5, rise=0.0, start=0.1, end=0.5).tolist()
    assert found == pytest.approx([2 - 1.0 * rise((t + 1) / 5) for t in range(5)])
    assert len(lf.one_cycle(1.0, 1)) == 1
    triangle = lf.triangular(2.0, 10, rise=0.5, start=0.2, end=0.1).tolist()
    assert triangle == pytest.approx([2 * (0.2 + 0.16 * t) if t < 5 else 2 * (1 - 0.18 * (t - 5)) for t in range(11)])
    assert lf.triangular(2.0, 4, rise=0.0, end=0.0).tolist() == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert lf.triangular(2.0, 4, rise=1.0, start=0.0).tolist() == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    trapeze = lf.trapezoidal(2.0, 10, rise=0.4, fall=0.5, final=0.5).tolist()
    assert trapeze == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 1.7, 1.4, 1.1, 0.8, 0.5])
    assert lf.trapezoidal(2.0, 4, rise=0.0, fall=0.0).tolist() == pytest.approx([2.0, 2.0, 2.0, 2.0, 0.0])
    lf.trapezoidal(2.0, 4, rise=0.5, fall=0.5)


def test_defaults_of_schedules_are_the_published() -> None:
    assert torch.equal(lf.one_cycle(1.0, 50), lf.one_cycle(1.0, 50, 0.3, 0.04, 4e-6))
    assert torch.equal(lf.triangular(1.0, 50), lf.triangular(1.0, 50, 0.23, 0.2, 0.07))
    assert torch.equal(lf.trapezoidal(1.0, 50), lf.trapezoidal(1.0, 50, 0.05, 0.2, 0.0))
    assert torch.equal(lf.stepwise(1.0, (3,)), lf.stepwise(1.0, (3,), 0.1, 0.0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lf.constant(0.0), "lr: invalid value 0.0 .*a number above 0"),
        (lambda: lf.constant(-1.0), "lr: invalid value -1.0"),
        (lambda: lf.cosine(1.0, 4, final=1.1), "final: invalid value 1.1 .*a number from 0 to lr, 1"),
        (lambda: lf.cosine(1.0, 4, final=-0.1), "final: invalid value -0.1"),
        (lambda: lf.stepwise(1.0, (2,), final=1.1), "final: invalid value 1.1"),
        (lambda: lf.trapezoidal(1.0, 4, final=1.1), "final: invalid value 1.1"),
        (lambda: lf.warmup(lf.cosine(1.0, 4), 5), "steps: invalid value 5 .*from 0 to 4, where the schedule ends"),
        (lambda: lf.cyclic(1.0, 4, 5), "cycles: invalid value 5 .*from 1 to 4"),
        (lambda: lf.cyclic(1.0, 4, 0), "cycles: invalid value 0"),
        (lambda: lf.one_cycle(1.0, 4, rise=1.1), "rise: invalid value 1.1 .*a number in .0, 1."),
        (lambda: lf.trapezoidal(1.0, 4, rise=0.0, fall=-0.1), "fall: invalid value -0.1"),
        (lambda: lf.trapezoidal(1.0, 4, rise=0.6, fall=0.5), r"fall: invalid value 0.5 .*room for rise, 0.6"),
    ],
)
def test_schedules_that_are_none_are_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
    lf.cosine(1.0, 4, final=1.0), lf.cosine(1.0, 1, final=0.0), lf.cyclic(1.0, 4, 4), lf.one_cycle(1.0, 4, rise=1.0)


def test_numbers_of_optimisers_have_their_ranges() -> None:
    given: Any
    for given in ({"momentum": 0.0}, {"betas": (0.0, 0.999)}, {"weight_decay": 0.0}, {"weight_decay": 1e6}):
        (lf.adam if "betas" in given else lf.sgd)(0.1, **given)
    for given, words in (
        ({"momentum": -1e-9}, "sgd: momentum: invalid value -1e-09 .*in \\[0, 1\\)"),
        ({"betas": (0.9, 1.0)}, "adam: betas: invalid value 1.0 .*in \\[0, 1\\)"),
        ({"weight_decay": -1e-9}, "sgd: weight_decay: invalid value -1e-09 .*of at least 0"),
        ({"weight_decay": math.inf}, "sgd: weight_decay must be a number, not inf"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            (lf.adam if "betas" in given else lf.sgd)(0.1, **given)
    for make, given in (
        (lf.sgd, {"momentum": 1.0}), (lf.sgd, {"weight_decay": -1.0}), (lf.adam, {"betas": (1.0, 0.9)}),
        (lf.adam, {"betas": (0.9, 1.0)}), (lf.adam, {"weight_decay": -1.0}), (lf.adamw, {"weight_decay": -1.0}),
        (lf.lion, {"betas": (1.0, 0.9)}), (lf.lion, {"betas": (0.9, -0.1)}), (lf.lion, {"weight_decay": -1.0}),
        (lf.muon, {"momentum": 1.0}), (lf.muon, {"weight_decay": -1.0}),
    ):  # fmt: skip
        name = next(iter(given))
        with pytest.raises(UserError, match=rf"{name}: invalid value .* \(expected a number"):
            make(0.1, **given)
    complex_: dict[str, torch.Tensor] = {"w": torch.ones(2, dtype=torch.complex64)}
    for name, optimizer in (("lion", lf.lion(0.1)), ("muon", lf.muon(0.1))):
        with pytest.raises(UserError, match=f"^optimizer: {name} requires real parameters, but w is torch.complex64"):
            optimizer.init(complex_)
    table = lf.constant(0.5)
    assert table_like(table, {"a": torch.ones(1, dtype=torch.complex64), "b": torch.ones(1)}).dtype == torch.float32
    assert table_like(table, {"a": torch.ones(1, dtype=torch.complex128)}).dtype == torch.float64
    assert table_like(table, {"a": torch.ones(1, dtype=torch.float64)}).dtype == torch.float64
    with pytest.raises(UserError, match=r"nesterov: invalid value True .*a momentum above 0"):
        lf.sgd(0.1, nesterov=True)
