"""Energy: told apart by phase and epoch, kept over interruptions; and from when on a ticket pays back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NormedNet, noted, run

import lthfunc as lf
from lthfunc.energy.amounts import Amount
from lthfunc.energy.inference import metered_inference
from lthfunc.energy.meter import ASSUMED, Phases, Source
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET, Plan, Task
from lthfunc.experiments.records import search_energy
from lthfunc.runs.folder import read_run
from lthfunc.runs.measurements import MEASURED, measurements
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.queue import Execution
from lthfunc.training.results import Stopped
from lthfunc.trees.types import Dataset

SMALL = ["--rounds", "1", "--steps", "40", "--eval-every", "15", "--batch-size", "50"]


class Ticking:
    """A meter on which every reading costs the same, so that readings can be counted."""

    source = Source("counted", "USA", True)

    def __init__(self) -> None:
        self.laps = 0

    def lap(self) -> Amount:
        self.laps += 1
        return Amount(1.0, 0.5, 1.0, 0.7, 0.0, 0.3)


def test_a_search_costs_its_preparation_and_training_without_evaluation() -> None:
    spent = {"preparation": {"kwh": 2.0}, "training": {"kwh": 3.0}, "evaluation": {"kwh": 50.0}}
    assert search_energy({"energy": spent}) == 5.0


def test_a_meter_is_read_where_phases_and_epochs_change() -> None:
    meter = Ticking()
    phases = Phases(meter, per_epoch=10)
    for phase, step in (
        ("evaluation", 0), ("preparation", 0), ("training", 0), ("training", 4), ("training", 10), ("training", 14),
        ("evaluation", 15), ("training", 15), ("training", 20), ("evaluation", 22),
    ):  # fmt: skip
        phases.next(phase, step)
    metered = phases.metered()
    assert {name: each.kwh for name, each in metered.phases.items()} == {
        "preparation": 2,  # before the first evaluation, and before the first step
        "training": 4,  # 0 to 10, 10 to 15, 15 to 20, 20 to 22
        "evaluation": 3,
    }
    assert {epoch: each.kwh for epoch, each in metered.epochs.items()} == {0: 1, 1: 2, 2: 1}
    assert meter.laps == 1 + 2 + 4 + 3  # what was before belongs to nobody
    assert [phases.epoch_end(step) for step in (0, 9, 10, 25)] == [10, 10, 20, 30]


def plan_of(data: Dataset) -> tuple[Plan, Task]:
    model = lf.from_module(NormedNet())
    trainer = lf.make_trainer(model, data, optimizer=lf.adam(1e-3), batch_size=24)  # 240 images: 10 steps an epoch
    return Plan(model, trainer, steps=37, eval_every=15), Task(3, 0, TICKET, lf.init(model, 3), None)


def test_a_trainings_energy_is_told_by_epoch_without_its_evaluation(few_digits: Dataset, tmp_path: Path) -> None:
    plan, task = plan_of(few_digits)
    meter = Ticking()
    (result,), spent = train_with_checkpoints(Execution(Config(), plan, tmp_path, meter=meter), [task])
    assert spent.energy is not None
    epochs = {epoch: kwh for epoch, kwh, *_ in spent.energy["epochs"]}
    # Looks at 15 and 30 cut epochs 1 and 3 (30 begins one); each piece was read once.
    assert epochs == {0: 1, 1: 2, 2: 1, 3: 1}
    assert spent.energy["training"]["kwh"] == sum(epochs.values())
    assert spent.energy["evaluation"]["kwh"] >= 3
    whole = sum(spent.energy[phase]["kwh"] for phase in ("preparation", "training", "evaluation"))
    assert whole == meter.laps - 1
    (plain,), nothing = train_with_checkpoints(Execution(Config(), plan, tmp_path / "plain"), [task])
    assert nothing.energy is None
    assert lf.same_bits(result.fit.state, plain.fit.state)  # metering changes nothing


def test_energy_goes_on_with_a_training(few_digits: Dataset, tmp_path: Path) -> None:
    plan, task = plan_of(few_digits)
    (tmp_path / "other").mkdir()
    seen = 0

    def observe(number: int, points: Sequence[Any] | None) -> None:
        nonlocal seen
        seen = number

    config = Config(checkpoint_every="never")
    with pytest.raises(Stopped):
        train_with_checkpoints(Execution(config, plan, tmp_path, lambda: seen >= 22, meter=Ticking()), [task], observe)
    _, spent = train_with_checkpoints(Execution(config, plan, tmp_path, meter=Ticking()), [task])
    assert spent.energy is not None
    epochs = {epoch: kwh for epoch, kwh, *_ in spent.energy["epochs"]}
    assert epochs.keys() == {0, 1, 2, 3}
    assert epochs[2] >= 2  # the part before the stop, and the one after it
    seen = 0
    with pytest.raises(Stopped):
        train_with_checkpoints(Execution(config, plan, tmp_path / "other", lambda: seen >= 22), [task], observe)
    _, spent = train_with_checkpoints(Execution(config, plan, tmp_path / "other", meter=Ticking()), [task])
    assert spent.energy is None  # part of it was not metered: no number is better than half of one


@pytest.fixture(scope="module", autouse=True)
def not_compiled() -> Iterator[None]:
    """Programs are measured as they are: test_execution.py compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lthfunc.deployment.compiled.why_not", lambda device: "not in this test")
        yield


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("codecarbon")
    folder = tmp_path_factory.mktemp("energy") / "run"
    assert run("prune", *SMALL, "--replicates", 2, "--energy", "--country", "FRA", "--out", folder) == 0
    assert run("energy", folder, "--samples", 2000, "--repeats", 3, "--batch-size", 50) == 0
    return folder


def test_a_run_records_energy_and_emissions(metered: Path, capsys: Any) -> None:
    _, config, records = read_run(metered)
    assert config.energy
    assert config.jobs == 1
    for item in records:
        energy = item["energy"]
        assert energy["country"] == "FRA"
        assert not energy["assumed"]
        assert "CPU" in energy["source"]
        training = energy["training"]
        assert 0 < training["kwh"] == pytest.approx(training["cpu"] + training["gpu"] + training["ram"])
        assert 0 < training["kg"] < training["kwh"]  # France: some 0.05 kg a kWh
        assert [epoch for epoch, *_ in energy["epochs"]] == [0, 1]  # 25 steps an epoch
        assert sum(each[1] for each in energy["epochs"]) == pytest.approx(training["kwh"])
        seconds = sum(energy[phase]["seconds"] for phase in ("preparation", "training", "evaluation"))
        assert seconds <= item["seconds"] * 1.05 + 0.1
    assert run("info", metered) == 0
    assert " Wh " in capsys.readouterr().out


def test_without_a_country_one_is_assumed_and_said(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("codecarbon")
    assert run("train", "--steps", 5, "--energy", "--out", tmp_path / "run") == 0
    assert f"electricity mix of {ASSUMED} (assumed; --country names another)" in capsys.readouterr().err
    (item,) = read_run(tmp_path / "run")[2]
    assert item["energy"]["assumed"]


def test_inference_is_metered_in_turn(few_digits: Dataset) -> None:
    order: list[str] = []
    programs = {name: (lambda x, name=name: (noted(order, name), x)[1]) for name in ("dense", "sparse")}
    batches = [few_digits.test.x[:20], few_digits.test.x[20:40]]
    found = list(metered_inference(programs, batches, 200, 2, Ticking()))
    assert [name for name, _ in found] == ["dense", "sparse", "dense", "sparse"]
    assert all(amount.kwh == pytest.approx(1 / 100) for _, amount in found)  # 5 batches of 20 in each repeat
    assert order == ["dense", "sparse", *(["dense"] * 5 + ["sparse"] * 5) * 2]


def test_what_inference_costs_is_kept_in_the_run(metered: Path) -> None:
    (item,), wrong = measurements(metered)
    assert wrong == []
    assert item["formats"].keys() == {"dense", "masked", "specialised"}
    for cost in item["formats"].values():
        assert len(cost["kwh"]["values"]) == 3
        assert cost["kwh"]["mean"] == pytest.approx(np.mean(cost["kwh"]["values"]))
        assert cost["kwh"]["std"] == pytest.approx(np.std(cost["kwh"]["values"], ddof=1))
        assert cost["seconds"]["mean"] > 0
    assert run("verify", metered) == 0


@pytest.mark.usefixtures("drawn")
def test_breakeven_reckons_with_the_runs_own_numbers(metered: Path, tmp_path: Path, capsys: Any) -> None:
    plot = tmp_path / "plot.svg"
    assert run("breakeven", metered, "--price", 0.3, "--plot", plot, "--json") == 0
    found = {each["quantity"]: each for each in json.loads(capsys.readouterr().out)["results"]}
    assert found.keys() == {"emissions", "energy", "time", "money"}
    (item,), _ = measurements(metered)
    records = [each for each in read_run(metered)[2] if each["variant"] == "ticket"]

    def search(seed: int, last: int) -> float:
        mine = [each["energy"] for each in records if each["seed"] == seed and each["round"] <= last]
        value: float = sum(each[phase]["kwh"] for each in mine for phase in ("preparation", "training"))
        return value

    energy = found["energy"]
    assert energy["sparse"]["fixed"] == pytest.approx([search(seed, item["round"]) for seed in (0, 1)])
    assert energy["dense"]["fixed"] == pytest.approx([search(seed, 0) for seed in (0, 1)])
    assert energy["sparse"]["each"] == item["formats"]["specialised"]["kwh"]["values"]
    assert found["money"]["dense"]["fixed"] == pytest.approx([0.3 * value for value in energy["dense"]["fixed"]])
    assert plot.read_bytes().startswith(b"<?xml")
    assert run("report", metered, "--no-figures") == 0
    assert "Break-even: emissions" in (metered / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("drawn")
def test_people_read_of_wh_and_g_everywhere(metered: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(metered, copy)
    shown = {}
    for command in ("info", "energy", "breakeven", "report"):
        more: dict[str, list[Any]] = {
            "energy": ["--samples", 200, "--repeats", 2, "--batch-size", 50],
            "report": ["--no-figures"],
        }
        assert run(command, copy, *more.get(command, [])) == 0
        told = capsys.readouterr()
        shown[command] = told.out + told.err
    shown["page"] = (copy / "report.html").read_text("utf-8").replace("\\u2082", "₂")  # as in JSON
    other = {name: re.findall(r"[kMµm]Wh|kg CO|mg CO|[Jj]oule", text) for name, text in shown.items()}
    assert {name: found for name, found in other.items() if found} == {}
    assert [name for name, text in shown.items() if not re.search(r"\bWh\b", text)] == ["report"]
    assert [name for name, text in shown.items() if "g CO₂eq" not in text] == ["info", "report"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["prune", "--country", "FRA"], "--country: requires --energy"),
        (
            ["prune", "--energy", "--country", "France"],
            "--country: invalid value 'France' (expected the three",
        ),
        (["prune", "--energy", "--country", "XXX"], "--country: invalid value 'XXX'"),
        (["prune", "--energy", "--jobs", "2"], "--jobs: invalid value 2 (expected 1 with --energy"),
        (["energy", "plain", "--repeats", "1"], "--repeats: invalid value 1 (expected a whole number of at least 2"),
        (["energy", "plain", "--batch-size", "999"], "--batch-size: invalid value 999 (expected at most 360"),
        (["energy", "absent"], "absent: is not a run folder"),
        (
            ["breakeven", "plain"],
            "plain: the cost of inference was not measured; measure its time with: lthfunc specialize plain, or",
        ),
        (["breakeven", "absent"], "absent: is not a run folder"),
        (["breakeven", "1+2/3"], "1+2/3: give the dense network's FIXED+COST/N after it"),
        (["breakeven", "1+2/3", "plain"], "give two runs, or two FIXED+COST/N"),
        (["breakeven", "1+2/0", "1+2/3"], "invalid value '1+2/0' (expected an N above 0"),
        (["breakeven", "plain", "--price", "-1"], "--price: invalid value -1.0 (expected a number above 0"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    if "plain" in arguments:
        assert run("prune", "--rounds", 1, "--steps", 4, "--out", "plain") == 0
        capsys.readouterr()
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_damaged_measurement_is_told(metered: Path, tmp_path: Path) -> None:
    path = tmp_path / MEASURED
    path.write_text((metered / MEASURED).read_text().replace("USA", "DEU"))
    found, wrong = measurements(tmp_path)
    assert found == []
    assert "its checksum does not match" in wrong[0]
    damaged = tmp_path / "run"
    shutil.copytree(metered, damaged)
    shutil.copy(path, damaged / MEASURED)
    assert run("verify", damaged) == 3
    assert run("resume", damaged) == 0  # which leaves the line out
    assert run("verify", damaged) == 0
    assert measurements(damaged) == ([], [])


def test_one_meter_serves_trainings_side_by_side() -> None:
    phases = Phases(Ticking(), per_epoch=5)
    phases.next("training", 0)
    values = phases.as_values(4)
    assert values["training"]["kwh"] == 0.25
    assert replace(Config(), energy=True).energy
