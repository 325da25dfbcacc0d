"""`lthfunc methods`: a study is a set of runs, interrupted, resumed and extended without repeating any of them."""

from __future__ import annotations

import json
import signal
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import run
from lthfunc_cli.progress import _Tasks
from method_plans import plan_for

import lthfunc as lf
from lthfunc.catalog.methods import METHODS
from lthfunc.errors import LostRunError, UserError
from lthfunc.experiments import studies
from lthfunc.experiments.config import Config
from lthfunc.experiments.plan import PreparedPlan
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.studies import StudyPlans, decided_alike, runs_that_can_be, study_runs, with_rounds_between
from lthfunc.runs import mirror as mirrors
from lthfunc.runs.folder import METRICS, read_run
from lthfunc.runs.mirror import Mirror
from lthfunc.runs.studies import check_study_folder
from lthfunc.runs.verification import verified
from lthfunc.scheduling.studies import RunUnderWay, jobs_of_study

SHORT = ["--steps", "8", "--batch-size", "40", "--engine", "eager"]
STUDY = ["methods", "--densities", "0.5,0.2", "--rounds", "3", *SHORT]
THREE = [word for name in ("dense", "imp", "rigl") for word in ("--method", name)]


def test_rounds_between_densities_prune_the_same_fraction() -> None:
    assert with_rounds_between([0.2], 1) == [0.2]
    assert with_rounds_between([0.25], 2) == pytest.approx([0.5, 0.25])
    found = with_rounds_between([0.5, 0.125, 0.1], 4)
    assert found == pytest.approx([0.5, 0.25, 0.125, 0.1])
    assert {0.5, 0.125, 0.1} <= {*found}  # to the bit


@pytest.mark.parametrize(
    ("densities", "rounds", "places"),
    [([0.5, 0.2, 0.1], 5, [2, 3, 5]), ([0.5, 0.25, 0.125], 4, [1, 3, 4]),
     ([0.5, 0.25, 0.125, 0.0625], 10, [2, 5, 8, 10]),
     ([0.9, 0.8, 0.1], 3, [1, 2, 3]), ([0.12, 0.11, 0.1], 5, [3, 4, 5]), ([0.9, 0.5, 0.1], 2, [1, 2, 3])],
)  # fmt: skip
def test_rounds_between_densities_are_as_many_as_asked_for(
    densities: list[float], rounds: int, places: list[int]
) -> None:
    found = with_rounds_between(densities, rounds)
    assert len(found) == max(rounds, len(densities))
    assert [found.index(each) + 1 for each in densities] == places
    assert found == sorted({*found}, reverse=True)


def test_only_runs_on_the_same_device_share_their_data(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {}

    def prepared(config: Config, like: PreparedPlan | None = None) -> PreparedPlan:
        shared[config.method, config.device] = like and (like.config.method, like.config.device)
        return PreparedPlan(config, None, None, ())  # type: ignore[arg-type]

    monkeypatch.setattr(studies, "prepare", prepared)
    monkeypatch.setattr(studies, "choose_device", lambda name: name)
    of = {name: Config(method=name, device=device) for name, device in
          {"imp": "cpu", "rigl": "cuda", "set": "cpu", "snip": "cuda"}.items()}  # fmt: skip
    plans = StudyPlans(of, PreparedPlan(Config(method="dense", device="cpu"), None, None, ()))  # type: ignore[arg-type]
    for name in of:
        plans.prepared(name)
    assert shared == {
        ("imp", "cpu"): ("dense", "cpu"), ("rigl", "cuda"): None, ("set", "cpu"): ("dense", "cpu"),
        ("snip", "cuda"): ("rigl", "cuda"),
    }  # fmt: skip


def test_densities_that_a_method_cannot_reach_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(config: Config, like: PreparedPlan | None = None) -> PreparedPlan:
        if config.method == "rigl" or config.density == 0.1:
            raise UserError("too few")
        return PreparedPlan(config, None, None, ())  # type: ignore[arg-type]

    monkeypatch.setattr(studies, "prepare", prepared)
    runs = study_runs(Config(device="cpu"), ["wanda", "rigl"], [0.5, 0.1])
    able, left = runs_that_can_be(runs, StudyPlans({each.name: each.config for each in runs}), asked=False)
    assert [each.name for each in able] == ["wanda-0.5"]
    assert left == {"wanda at 10 %": "too few", "rigl": "too few"}


def test_each_method_is_a_run_with_the_settings_that_it_takes() -> None:
    shared = Config(steps=9, rounds=4, schedule="step", milestone=(5,), score_rounds=7, cycles=3, replicates=2)
    runs = {each.name: each for each in study_runs(shared, tuple(METHODS), [0.5, 0.1])}
    several = {name.rpartition("-")[0] for name in runs} & {*METHODS} - {*runs}
    assert {"one-shot", "wanda"} <= several  # a run for each density, as each prunes its trained network once
    assert len(runs) == len(METHODS) + len(several)
    assert (runs["dense"].config.rounds, runs["dense"].rounds) == (0, {1.0: 0})
    assert (runs["one-shot-0.5"].config.density, runs["one-shot-0.1"].rounds) == (0.5, {0.1: 1})
    assert (runs["wanda-0.1"].config.rounds, runs["wanda-0.1"].config.density) == (1, 0.1)
    assert (runs["rigl"].config.densities, runs["rigl"].rounds) == ("0.5,0.1", {0.5: 1, 0.1: 2})
    imp = runs["imp"].config
    assert (imp.rounds, runs["imp"].rounds, imp.schedule, imp.milestone) == (4, {0.5: 1, 0.1: 4}, "step", (5,))
    cyclic = runs["imp-cyclic"].config
    assert (cyclic.schedule, cyclic.milestone, cyclic.cycles, cyclic.rewind) == ("cyclic", (), 3, "lr")
    assert [name for name, each in runs.items() if each.config.score_rounds == 7] == [
        *(f"{score}{control}" for score in ("snip", "grasp") for control in ("", "-shuffled", "-reinit")),
        "synflow", "synflow-shuffled", "synflow-reinit", "force",
    ]  # fmt: skip
    for each in runs.values():
        assert resolved(each.config) == each.config
        assert (each.config.replicates, each.config.steps) == (2, 9)
        assert not METHODS[each.method].at_init or not each.config.dense
    (one,) = study_runs(shared, ["imp"], [0.1])
    assert (one.config.density, one.config.rounds, one.rounds) == (0.1, 4, {0.1: 4})


def test_a_study_is_in_a_new_folder_or_beside_its_runs(tmp_path: Path) -> None:
    check_study_folder(tmp_path / "new")
    (tmp_path / ".DS_Store").touch()
    with pytest.raises(UserError, match=r"this one holds \.DS_Store"):
        check_study_folder(tmp_path)
    (tmp_path / "imp").mkdir()
    (tmp_path / "imp" / METRICS).touch()
    check_study_folder(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="this one holds photos"):
        check_study_folder(tmp_path)


def test_runs_have_folders_of_their_own() -> None:
    assert [each.name for each in study_runs(Config(), ["imp", "a.py:f"], [0.5])] == ["imp", "f"]
    with pytest.raises(UserError, match="expected different names"):
        study_runs(Config(), ["a.py:f", "b.py:f"], [0.5])


def test_all_runs_share_data_engine_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Config(steps=9, batch_size=40)
    runs = study_runs(shared, ["imp", "rigl"], [0.1])
    alike, like = decided_alike([each.config for each in runs])
    assert [(each.device, each.engine, each.threads) for each in alike] == [(like.config.device, "sparse/eager", 1)] * 2
    plans = StudyPlans({each.name: config for each, config in zip(runs, alike, strict=True)}, like)
    assert plans["imp"].trainer.data is plans["rigl"].trainer.data
    assert plans["rigl"].model is like.plan.model
    assert plans["rigl"] is plans["rigl"]
    monkeypatch.setattr(studies, "why_not_sparse_engine", lambda *_: "it cannot")
    assert {each.engine for each in decided_alike([each.config for each in runs])[0]} == {"eager"}


@pytest.mark.parametrize(("jobs", "steps", "expected"), [(None, 9, 1), (None, 9_000, 3), (2, 9, 2), (8, 9, 4)])
def test_a_short_study_starts_no_processes(
    jobs: int | None, steps: int, expected: int, few_digits: lf.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lthfunc.scheduling.studies.usable_cores", lambda: 6)
    config = Config(rounds=1, replicates=2, jobs=jobs, threads=2)
    plan = plan_for("imp", lf.models.lenet300((1, 8, 8)), few_digits, steps=steps, eval_every=steps, rounds=1)
    assert jobs_of_study(config, {"imp": RunUnderWay(config, plan, [])}) == expected


def test_a_study_is_interrupted_resumed_and_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    step, totals = _Tasks.step, list[int]()

    def interrupting(self: _Tasks, task: Any, number: int, point: Any) -> None:
        step(self, task, number, point)
        if task.run == "rigl" and number == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(_Tasks, "step", interrupting)
        patch.setattr(_Tasks, "total", lambda _, steps: totals.append(steps))
        assert run(*STUDY, *THREE, "--jobs", "1", "--out", "study") == 130
    assert totals == [7 * 8]  # of all runs, told before the first step
    assert list(Path("study").glob("rigl/seed0/round01/checkpoint-000000003-*"))
    finished = Path("study/dense/metrics.jsonl").read_text()
    assert Path("study/imp/last_round.safetensors").exists()  # of a run that has ended, though the study has not
    assert not verified(Path("study/imp")).problems
    capsys.readouterr()
    Path("study/snip").mkdir()
    Path("study/snip/.lock").touch()  # as a process leaves it that is killed before the run begins
    assert run(*STUDY, *THREE, "--method", "snip", "--replicates", "2", "--jobs", "1", "--out", "study") == 0
    assert "damaged" not in capsys.readouterr().err
    assert Path("study/dense/metrics.jsonl").read_text().startswith(finished)
    for name in ("dense", "imp", "rigl", "snip"):
        _, config, records = read_run(Path("study", name))
        assert (config.replicates, sorted({item["seed"] for item in records})) == (2, [0, 1])
        assert not verified(Path("study", name)).problems
    assert run("prune", "--method", "rigl", "--densities", "0.5,0.2", "--threads", "1", *SHORT, "--out", "alone") == 0
    assert run("resume", "alone", "--replicates", "2") == 0  # the same, a seed at a time
    files = sorted(path.relative_to("alone") for path in Path("alone").rglob("*.safetensors"))
    assert len(files) == 17
    for file in files:  # whose metadata have other settings of the machine
        assert lf.same_bits(lf.load_tree(Path("alone", file))[0], lf.load_tree(Path("study/rigl", file))[0]), file
    capsys.readouterr()
    Path("study/mine.png").touch()  # of --plot
    assert run(*STUDY, *THREE, "--replicates", "2", "--out", "study", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"dataset": "digits", "replicates": 2}.items() <= found["config"].items()
    assert not {"method", "rounds"} & {*found["config"]}  # they differ
    assert [(each["method"], each["at"]) for each in found["results"]] == [
        ("dense", 1.0), ("imp", 0.5), ("imp", 0.2), ("rigl", 0.5), ("rigl", 0.2),
    ]  # fmt: skip
    assert [each["trainings"] for each in found["results"]] == [1, 2, 4, 1, 1]
    by_round = {item["round"]: item for item in read_run(Path("study/imp"))[2] if item["seed"] == 1}
    assert found["results"][2]["by_seed"]["1"] == by_round[3]["test_accuracy"]
    assert found["results"][2]["density"] == pytest.approx(0.2, abs=1e-4)
    assert run(*STUDY, "--method", "imp", "--lr", "0.5", "--out", "study") == 2
    assert "study/imp is a run with other settings: lr is 0.0012 there, but 0.5 here" in capsys.readouterr().err
    assert run("resume", "alone", "--replicates", "1") == 2
    assert "--replicates: invalid value 1 (expected at least 2, the seeds that the run has)" in capsys.readouterr().err


@pytest.mark.parametrize("elsewhere", ["behind", "changed", "more"])
def test_a_study_at_an_address_keeps_what_was_not_uploaded(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the study was continued elsewhere: a study's root has no log, so those of its runs decide."""
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path))
    url = f"memory://{uuid.uuid4().hex}/study"
    system, path = fsspec.core.url_to_fs(url)

    def broken(*_: Any) -> None:
        raise ConnectionError("no route to host")

    again = "uploaded when the same command is typed here again"
    with pytest.raises(LostRunError, match=again), Mirror("--out", url) as mirror:  # noqa: PT012
        for name in ("imp", "rigl"):
            (mirror.folder / name).mkdir(parents=True, exist_ok=True)
            (mirror.folder / name / METRICS).write_bytes(b"head\none\n")
        monkeypatch.setattr(mirrors, "send", broken)
    monkeypatch.undo()
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path))
    system.pipe_file(f"{path}/imp/{METRICS}", b"head\nother\n" if elsewhere == "changed" else b"head\n")
    if elsewhere == "more":
        system.pipe_file(f"{path}/snip/{METRICS}", b"head\n")
    with Mirror("--out", url) as mirror:
        kept = sorted(each.parent.name for each in mirror.folder.rglob(METRICS))
        assert kept == {"behind": ["imp", "rigl"], "changed": ["imp"], "more": ["imp", "snip"]}[elsewhere]
        assert bool(mirror.said) == (elsewhere == "behind")
    if elsewhere == "behind":
        assert system.cat(f"{path}/rigl/{METRICS}") == system.cat(f"{path}/imp/{METRICS}") == b"head\none\n"


def test_a_study_at_an_address_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """And says what was decided about the machine, and remembers the code of each method."""
    remembered = list[Any]()
    monkeypatch.setattr("lthfunc.experiments.trust.remember_code", lambda values: remembered.append(values["method"]))
    decided = studies.decided_alike

    def with_note(*given: Any) -> Any:
        alike, like = decided(*given)
        return alike, like._replace(note="a line to see")

    monkeypatch.setattr(studies, "decided_alike", with_note)
    url = f"memory://{uuid.uuid4().hex}/study"
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path))
    words = ["methods", "--density", "0.1", *SHORT, "--method", "dense", "--method", "snip", f"--out={url}"]
    monkeypatch.setattr("sys.argv", ["lthfunc", *words])
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert f"lthfunc report {url}/dense" in out
    assert f"--out={url} --replicates 3" in " ".join(out.split())
    assert out.count("--out") == 1
    assert "a line to see" in err
    assert remembered == ["dense", "snip"]


@pytest.mark.usefixtures("drawn")
def test_a_table_and_a_picture_of_one_density(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["methods", "--density", "0.1", "--rounds", "1", *SHORT, *THREE]
    assert run(*words, "--plot", "a.png") == 0
    out = capsys.readouterr().out
    assert "lenet300 on digits, 10 % of the weights, 8 steps" in out
    assert "Most accurate on the test set: " in out
    (folder,) = Path("runs").iterdir()
    assert Path("a.png").stat().st_size > 10_000
    assert (folder / "methods.png").read_bytes() == Path("a.png").read_bytes()
