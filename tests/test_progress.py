"""The progress of a run: the time left against records of real runs, and the display at several widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lthfunc_cli.progress import progress_view, watching
from rich.console import Console
from test_winner import line

import lthfunc as lf
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.records import summarize
from lthfunc.models.factory import build
from lthfunc.scheduling.forecast import Seen, pace_of, seconds_left
from lthfunc.scheduling.progress import Outlook, Tracker
from lthfunc.sparse import cost_model
from lthfunc.sparse.cost_model import relative_time
from lthfunc.training.results import Point, Stopped

#: Trainings of real runs on two cores of an AMD EPYC or an Intel Xeon: when they began and ended, and times of some of
#: their steps, with a 1 after the number of those whose evaluation ended then.
RECORDS = json.loads((Path(__file__).parent / "progress_records.json").read_text())


def task_of(training: dict[str, Any], kept: dict[str, float]) -> Task:
    """A task whose masks keep these shares of their weights."""
    masks = {name: torch.arange(10_000) < round(10_000 * share) for name, share in kept.items()}
    start = lf.TrainState({}, {}, masks, (), torch.tensor(0))
    return Task(training["seed"], training["round"], training["variant"], start, None)


@pytest.mark.parametrize("record", RECORDS, ids=[each["what"] for each in RECORDS])
def test_the_time_left_holds_within_a_fifth_once_the_first_training_has_ended(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_model, "has_wide_amd_cores", lambda: False)  # as where the records were made
    model = build(record["arch"], tuple(record["shape"]), 10)
    now = 0.0
    steps = {(each["seed"], each["round"], each["variant"]): each["steps"] for each in record["trainings"]}
    tracker = Tracker(
        Outlook(
            steps, record["jobs"], lambda number: (1 - record["rate"]) ** number,
            lambda kept: relative_time(record["engine"], model, tuple(record["shape"]), kept),
        ),
        lambda: now,
    )  # fmt: skip
    tracker.total(sum(steps.values()))
    tickets = {(each["seed"], each["round"]): each["kept"] for each in record["trainings"] if "kept" in each}
    events: list[tuple[float, int, Task, Any]] = []
    for training in record["trainings"]:
        task = task_of(training, tickets[training["seed"], training["round"]])
        events.append((training["begin"], 1, task, training["steps"]))
        events += [(time, 2, task, each) for time, *each in training["times"]]
        events.append((training["end"], 0, task, None))
    events.sort(key=lambda each: (each[0], each[1]))
    begun, stop = events[0][0], events[-1][0]
    assert tracker.seconds_left() is None
    errors, ended = [], 0
    for (time, kind, task, value), later in zip(events, [*(each[0] for each in events[1:]), stop], strict=True):
        now = time
        if kind == 1:
            tracker.begin(task, value)
        elif kind == 2:
            number, *evaluated = value
            tracker.step(task, number, Point(number, 0.0, 0.0, 0.0) if evaluated else None)
        else:
            tracker.end(task, {})
            ended += 1
        for now in (time, (time + later) / 2):  # also within evaluations, in which nothing is told
            if ended and stop - now > 0.05 * (stop - begun):
                left = tracker.seconds_left()
                assert left is not None
                errors.append(left / (stop - now) - 1)
    assert ended == len(steps)
    assert len(errors) > len(steps)
    assert max(map(abs, errors)) < 0.2
    about = tracker.snapshot()
    assert (about["done"], about["total"], about["left"], about["trainings"]) == (sum(steps.values()),) * 2 + (0, [])


def test_rounds_wait_for_their_seeds_trainings() -> None:
    """By hand: two seeds, two workers, and a control that delays its seed's next round."""
    ahead = {(0, 1, "ticket"): 2.0, (0, 1, "reinit"): 5.0, (0, 2, "ticket"): 1.0, (1, 2, "ticket"): 1.0}
    running = {(1, 1, "ticket"): 4.0}
    # Worker 1: seed 1 round 1 until 4, then its round 2 until 5. Worker 2: tickets first until 2, the control until 7.
    assert seconds_left(ahead, running, 2) == 8.0
    assert seconds_left(ahead, running, 1) == 4.0 + 9.0
    assert seconds_left({}, {}, 2) == 0.0
    assert seconds_left({}, running, 2) == 4.0


def test_odd_trainings_leave_the_time_left_finite() -> None:
    """A training without steps, one whose steps take no time, densities that start at 1, and an empty plan."""
    densities = (1.0, 1.0, 0.5)
    steps = {(0, number, "ticket"): (0, 50, 50)[number] for number in range(3)}
    tracker = Tracker(Outlook(steps, 1, densities.__getitem__, lambda kept: min(kept.values())), lambda: 1.0)
    for number, last in ((0, 0), (1, 50)):
        task = task_of({"seed": 0, "round": number, "variant": "ticket"}, {"w": 1.0})
        tracker.begin(task, last)
        assert tracker.seconds_left() is None
        tracker.step(task, 0, None)
        tracker.step(task, last, None)
        tracker.end(task, {})
    assert tracker.snapshot()["left"] is None
    earlier = [Seen(50, 0.0, 10.0, 0.0, 1.0)]
    resumed = Tracker(Outlook({(0, 2, "ticket"): 50}, 1, densities.__getitem__, lambda kept: 1.0, earlier))
    assert resumed.seconds_left() == pytest.approx(10.0)


def test_what_compiles_first_is_not_expected_again() -> None:
    first = Seen(steps=100, front=30.0, seconds=10.0, back=0.5, cost=1.0)
    assert pace_of([first], 1).training(100, 1.0) == pytest.approx(11.0)
    later = first._replace(front=1.0)
    assert pace_of([first, later], 1).training(100, 1.0) == pytest.approx(11.5)
    assert pace_of([first], 1).training(100, 0.5) < 7.0  # sparse steps take less, though not half


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_display_fits_its_screen(width: int) -> None:
    variants = ("ticket", "reinit", "random-mask")
    records = [line(s, r, 0.98 - r * 0.001 * s, v) for s in (10, 11) for r in range(11) for v in variants[: 3 * r + 1]]
    for item in records:
        item.update(kept=1_234_567, total=12_345_678, early_stop_step=12_345 + item["seed"])
        item["layers"] = {f"layer{n}.weight": {"density": 0.123} for n in range(20)}
    point = {"step": 5, "loss": 0.123, "accuracy": 0.98765}
    trainings = [
        {"seed": 10, "round": 10, "variant": v, "density": 0.107, "start": 0, "at": at, "stop": 20_000, "rate": rate,
         "point": point if at else None}
        for v, at, rate in zip(variants, (0, 12_000, 20_000), (None, 12_345.6, 99.0), strict=True)
    ]  # fmt: skip
    about = {"done": 1_234_567, "total": 12_345_678, "left": 45_296.0, "trainings": trainings}
    console = Console(width=width, height=30, color_system=None, force_terminal=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(progress_view("lenet5 on mnist", 21, 62, about, summarize(records), console.size))
    lines = capture.get().splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in (
        "21 of 62 trainings", "1,234,567 of 12,345,678 steps, about 12:34:56 left", "starting", "60 %",
        "12,346 steps/s", "val 98.77 %", "rows above", "mean ± standard deviation of 2 replicates",
    ):  # fmt: skip
        assert words in text
    assert ("loss 0.123" in text) == (width > 100)
    assert "…" not in text.replace("… ", "")  # no cell is cut off
    last = lines[-1].split()
    assert last[:2] == ["10", "random-mask"]
    assert text.count("0.00") >= 1
    assert text.count("±") > 10


def test_the_results_so_far_stay_on_the_terminal_when_a_run_stops() -> None:
    console = Console(width=100, height=30, color_system=None, force_terminal=True, legacy_windows=False)
    seeds = {0: 3, 1: 2, 2: 1}
    records = [line(seed, number, 0.98) for number, count in seeds.items() for seed in range(count)]
    tracker = Tracker(Outlook({}, 1, lambda number: 1.0, lambda kept: 1.0))
    with (
        console.capture() as capture,
        pytest.raises(Stopped),
        watching(console, "a on b", 9, tracker, records, lambda: True),
    ):
        raise Stopped
    shown = capture.get().rpartition("mean ±")[2].splitlines()
    assert shown[0].strip() == "standard deviation of 1 to 3 replicates"
    assert [row.split()[0] for row in shown[2:] if row.strip()] == ["0", "1", "2"]
