"""The meter's readings, what inference costs, and sums of both, by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import noted
from small import data

from lthfunc.energy import gpus
from lthfunc.energy.amounts import PHASES, Amount, as_values, from_values, nothing_yet
from lthfunc.energy.breakeven import Costs, Estimate, _difference, _known, break_even, fieller, total
from lthfunc.energy.gpus import Card
from lthfunc.energy.inference import metered_inference, ready_batches
from lthfunc.energy.meter import ASSUMED, Phases, Source, _CodeCarbon, check_meter, metering
from lthfunc.errors import UserError
from lthfunc.trees.types import Scale, Split

SPENT = SimpleNamespace(
    cpu_energy=2.0, gpu_energy=4.0, ram_energy=1.0, energy_consumed=7.0, emissions=3.5, duration=60.0
)


class Tracker:
    """In codecarbon's place: writes down how it was made and what it was told."""

    made: Any

    def __init__(self, **how: Any) -> None:
        Tracker.made = self
        self.how, self.spent = how, SPENT
        self.told: list[Any] = []
        self._conf = {"hardware": ["Cpu(IntelRapl)"]}

    def start_task(self, name: str) -> None:
        self.told.append(name)

    def stop_task(self) -> Any:
        self.told.append("end")
        return self.spent

    def stop(self) -> None:
        self.told.append("stop")


def test_a_meter_reads_between_its_laps(monkeypatch: pytest.MonkeyPatch) -> None:
    codecarbon = pytest.importorskip("codecarbon")
    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", Tracker)
    with metering("cpu", "FRA") as meter:
        tracker = Tracker.made
        assert tracker.how == {
            "country_iso_code": "FRA", "output_methods": [], "log_level": "critical", "tracking_mode": "process",
            "measure_power_secs": 15, "allow_multiple_runs": True,
        }  # fmt: skip
        assert tracker.told == ["lap 0"]
        assert meter.lap() == Amount(3.0, 1.5, 60.0, 2.0, 0.0, 1.0)  # the GPU's belongs to others
        assert tracker.told == ["lap 0", "end", "lap 1"]
        assert meter.source == Source("CPU metered by its own counters, memory estimated", "FRA", False)
        tracker.spent = SimpleNamespace(**{**vars(SPENT), "energy_consumed": 0.0})
        assert meter.lap().kg == 0.0
    assert tracker.told[-2:] == ["end", "stop"]
    monkeypatch.setattr(gpus, "card_of", lambda device: gpus.Card({"cuda": 3, "cuda:2": 0}[device], shared=False))
    for device, index in (("cuda", 3), ("cuda:2", 0)):
        with metering(device, None) as meter:
            assert Tracker.made.how["gpu_ids"] == [index]
            assert Tracker.made.how["country_iso_code"] == "USA" == ASSUMED
            assert meter.lap() == Amount(7.0, 3.5, 60.0, 2.0, 4.0, 1.0)
            assert (meter.source.country, meter.source.assumed) == ("USA", True)
    with pytest.raises(KeyError), metering("cpu", None):
        raise KeyError
    assert Tracker.made.told[-1] == "stop"
    assert Source("X", "USA", True).words == (
        "X; CO₂eq for the electricity mix of USA (assumed; --country names another)"
    )
    assert Source("X", "FRA", False).words == "X; CO₂eq for the electricity mix of FRA"
    check_meter(None)
    check_meter("DEU")
    with pytest.raises(UserError, match=r"^--country: invalid value 'XXX' .*three letters"):
        check_meter("XXX")


class Counted:
    """A meter whose n-th lap is n."""

    source = Source("counted", "FRA", False)

    def __init__(self) -> None:
        self.laps = 0

    def lap(self) -> Amount:
        self.laps += 1
        return Amount(*[float(self.laps)] * 6)


def test_amounts_by_hand() -> None:
    assert Amount() == (0.0,) * 6
    assert Amount(1, 2, 3, 4, 5, 6).plus(Amount(10, 20, 30, 40, 50, 60)) == (11, 22, 33, 44, 55, 66)
    assert Amount(2, 4, 6, 8, 10, 12).over(2) == (1, 2, 3, 4, 5, 6)
    assert PHASES == ("preparation", "training", "evaluation")
    one = Amount(*[1.0] * 6)
    spent = nothing_yet().with_lap(one, "training", 2).with_lap(one, "training", 2).with_lap(one, "preparation", 2)
    assert spent.phases == {"preparation": one, "training": one.plus(one), "evaluation": Amount()}
    assert spent.epochs == {2: one.plus(one)}
    assert spent.over(2).epochs == {2: one}
    assert spent.over(2).phases["preparation"] == one.over(2)
    values = as_values(spent)
    assert values["preparation"] == {"kwh": 1, "kg": 1, "seconds": 1, "cpu": 1, "gpu": 1, "ram": 1}
    assert values["epochs"] == [[2, 2, 2, 2, 2, 2, 2]]
    assert from_values(values) == spent


def test_phases_go_on_with_what_was_drawn_before() -> None:
    before = nothing_yet().with_lap(Amount(kwh=100.0), "training", 0)
    phases = Phases(Counted(), per_epoch=4)
    phases.resume(before)
    phases.next("training", 5)  # lap 2 was preparation
    phases.next("training", 7)
    phases.next("training", 8)  # lap 3 was epoch 1
    phases.next("evaluation", 8)  # lap 4 epoch 2
    phases.next("evaluation", 12)
    found = phases.as_values(2)  # lap 5
    assert (found["source"], found["country"], found["assumed"]) == ("counted", "FRA", False)
    assert {name: found[name]["kwh"] for name in PHASES} == {"preparation": 1, "training": 53.5, "evaluation": 2.5}
    assert [each[:2] for each in found["epochs"]] == [[0, 50], [1, 1.5], [2, 2]]
    assert [phases.epoch_end(step) for step in (0, 3, 4, 9)] == [4, 4, 8, 12]


@pytest.mark.parametrize(
    ("count", "batch", "sizes"), [(20, 6, [6, 6, 6]), (20, 20, [20]), (19, 20, [19]), (20, 1, [1] * 20), (21, 20, [20])]
)
def test_whole_batches_lie_ready(count: int, batch: int, sizes: list[int]) -> None:
    numbers = data()._replace(scale=Scale(2, (0.5,), (0.25,)))
    x = torch.arange(2 * count).float().view(count, 2)
    numbers = numbers._replace(test=Split(x, torch.zeros(count, dtype=torch.int64)))
    found = ready_batches(numbers, batch, "cpu")
    assert [len(each) for each in found] == sizes
    assert torch.equal(torch.cat(found), (x[: sum(sizes)] / 2 - 0.5) / 0.25)


def test_twenty_thousand_examples_lie_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(20_003, 1)
    numbers = data()._replace(test=Split(x, torch.zeros(20_003, dtype=torch.int64)), scale=None)
    assert sum(map(len, ready_batches(numbers, 20_001, "cpu"))) == 20_001
    assert sum(map(len, ready_batches(numbers, 20_000, "cpu"))) == 20_000
    assert sum(map(len, ready_batches(numbers, 7, "cpu"))) == 19_999
    assert sum(map(len, ready_batches(numbers, 3, "cpu"))) == 19_998


@pytest.mark.parametrize(("samples", "calls"), [(1, 1), (60, 1), (61, 2), (120, 2), (121, 3)])
def test_inference_is_read_around_its_calls(samples: int, calls: int) -> None:
    """Three repeats on batches of 20: the least number of calls by which all of the samples are seen."""
    meter, seen = Counted(), []
    batches = [torch.zeros(20, 1), torch.ones(20, 1)]

    def program(x: torch.Tensor) -> torch.Tensor:
        seen.append((meter.laps, float(x[0])))
        return x

    found = list(metered_inference({"only": program}, batches, samples, 3, meter))
    assert seen == [(0, 0.0), *((lap, float(call % 2)) for lap in (1, 3, 5) for call in range(calls))]
    assert [amount.kwh for _, amount in found] == [lap / (20 * calls) for lap in (2, 4, 6)]


def test_one_batch_is_run_through_again_and_again() -> None:
    seen: list[float] = []
    found = list(
        metered_inference({"only": lambda x: (noted(seen, float(x[0])), x)[1]}, [torch.ones(20, 1)], 90, 2, Counted())
    )
    assert len(seen) == 1 + 2 * 3
    assert [amount.kwh for _, amount in found] == [2 / 60, 4 / 60]


def test_estimates_by_hand() -> None:
    welch = _difference([1.0, 3.0], [10.0, 10.5, 12.5], paired=False)
    assert (welch.mean, welch.variance) == pytest.approx((2 - 11, 2 / 2 + 1.75 / 3))
    parts = 1.0**2 / 1 + (1.75 / 3) ** 2 / 2
    assert welch.freedom == pytest.approx(welch.variance**2 / parts)
    pairs = _difference([1.0, 3.0, 4.0], [0.0, 1.0, 5.0], paired=True)
    assert pairs == pytest.approx((2 / 3, (7 / 3) / 3, 2))
    assert _difference([1.0], [3.0], paired=False) == (-2.0, 0.0, 0.0)
    assert _difference([1.0, 1.0], [3.0], paired=False) == (-2.0, 0.0, 1)
    assert total(Costs([1.0, 3.0], [0.5, 1.5]), 10.0) == pytest.approx((12.0, 1.0 + 100 * 0.25, 0.0))
    # Student's t for 4 degrees of freedom is 2.776445: a mean of so many standard errors is just known.
    assert _known(Estimate(2.7765, 1.0, 4))
    assert _known(Estimate(-2.7765, 1.0, 4))
    assert not _known(Estimate(2.7764, 1.0, 4))
    assert _known(Estimate(0.0, 0.0, 4))


def test_fiellers_ends_solve_their_equation() -> None:
    t = 2.776445105
    low, high = fieller(Estimate(10.0, 1.0, 4), Estimate(5.0, 0.25, 9))
    assert low is not None
    assert high is not None
    for end in (low, high):
        assert (10 - end * 5) ** 2 == pytest.approx(t**2 * (1.0 + end**2 * 0.25), rel=1e-6)
    assert low < 2 < high
    assert fieller(Estimate(10.0), Estimate(5.0)) == (None, None)
    assert fieller(Estimate(10.0, 0.0, 0.0), Estimate(5.0, 0.25, 4))[0] is not None
    assert fieller(Estimate(0.1, 1.0, 4), Estimate(5.0, 0.25, 4))[0] == 0.0
    found = break_even(Costs([10.0, 12.0], [1.0, 1.1]), Costs([1.0, 2.0], [3.0, 3.5]))
    assert found.verdict == "from"
    assert found.inferences == pytest.approx((11 - 1.5) / (3.25 - 1.05))


def test_amounts_add_up_and_survive_files() -> None:
    amount = Amount(1.0, 2.0, 3.0, 0.5, 0.25, 0.25)
    assert amount.plus(amount).over(2) == amount
    metered = nothing_yet().with_lap(amount, "training", 3).with_lap(amount, "evaluation", 3)
    assert metered.phases["training"] == metered.epochs[3] == amount
    assert from_values(json.loads(json.dumps(as_values(metered)))) == metered


@pytest.mark.parametrize(
    ("hardware", "gpu", "words"),
    [
        (["Cpu(IntelRapl)"], None, "CPU metered by its own counters, memory estimated"),
        (["PowerGadget"], Card(0, False), "CPU metered by its own counters, GPU metered by NVML, memory estimated"),
        (["Cpu(WindowsEmi)"], None, "CPU metered by its own counters, memory estimated"),
        (["AppleSiliconChip"], None, "CPU metered by its own counters, memory estimated"),
        (["Cpu(tdp)"], None, "CPU estimated from its TDP and load, memory estimated"),
        ([], Card(2, False), "CPU estimated from its TDP and load, GPU metered by NVML, memory estimated"),
        (
            [],
            Card(0, True),
            "CPU estimated from its TDP and load, GPU metered by NVML (the whole GPU, not this part alone), memory "
            "estimated",
        ),
    ],
)
def test_a_meter_says_what_it_knows_energy_by(hardware: list[str], gpu: Card | None, words: str) -> None:
    meter = object.__new__(_CodeCarbon)
    meter._gpu, meter._tracker = gpu, SimpleNamespace(_conf={"hardware": hardware})
    assert meter._how() == words
