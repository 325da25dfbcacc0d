"""Seeds and controls side by side: the same bits as one after the other, one display, and a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NormedNet, run, under_way, until
from test_runs import metrics, same_files

import lthfunc as lf
from lthfunc.catalog.pruning import CONTROLS, REWINDINGS
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Plan, Round, Task, rounds
from lthfunc.experiments.rewinding_and_controls import start_of
from lthfunc.runs.ticket_files import LAST, WINNING, WINNING_TRAINED
from lthfunc.scheduling.execute import jobs_of
from lthfunc.scheduling.local import vmapped
from lthfunc.scheduling.queue import Execution, Queue, Watcher
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.types import Dataset

#: Two trainings in two workers.
TWO = ["--replicates", "2", "--jobs", "2", "--rounds", "0", "--steps", "20", "--optimizer", "sgd"]
SMALL = ["--rounds", "1", "--steps", "30", "--eval-every", "10", "--batch-size", "50", "--control", "reinit"]


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class Counting(Watcher):
    """Notes what begins."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int, str]] = []

    def begin(self, task: Task, stop: int) -> None:
        self.begun.append((task.seed, task.number, task.variant))


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "workers"), [("eager", "ProcessExecutor"), ("sparse", "ThreadExecutor")])
def test_replicates_side_by_side_have_the_bits_of_single_runs(
    tmp_path: Path, engine: str, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two seeds, with a control, on two workers, against the command that runs that seed alone."""
    others = "ThreadExecutor" if workers == "ProcessExecutor" else "ProcessExecutor"
    monkeypatch.delattr(f"lthfunc.scheduling.execute.{others}")
    options = [*SMALL, "--engine", engine, "--threads", "1"]
    both = tmp_path / "both"
    assert run("prune", *options, "--replicates", "2", "--jobs", "2", "--out", both) == 0
    for seed in (0, 1):
        alone = tmp_path / f"alone{seed}"
        assert run("prune", *options, "--seed", str(seed), "--jobs", "1", "--out", alone) == 0
        # A run of one seed has its outcome at its top alone, and which round wins is told by the mean over the seeds.
        outcome = (WINNING, WINNING_TRAINED, LAST)
        same_files(both / f"seed{seed}", alone / f"seed{seed}", but="config", without=outcome)
        last = [lf.load_tree(folder / LAST)[0] for folder in (both / f"seed{seed}", alone)]
        assert lf.same_bits(*last)
    again = tmp_path / "again"
    assert run("prune", "--config", both / "config.toml", "--jobs", "1", "--out", again) == 0
    key = lambda item: (item.get("seed", -1), item.get("round", 0), item.get("variant", ""))  # noqa: E731
    assert sorted(metrics(again)[1:], key=key) == sorted(metrics(both)[1:], key=key)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param("eager", marks=pytest.mark.long), "sparse"])
def test_an_interruption_stops_every_worker_and_the_run_goes_on(tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "run"
    options = ["--replicates", "2", "--jobs", "2", "--rounds", "1", "--steps", "1000000", "--eval-every", "100"]
    command = [sys.executable, "-m", "lthfunc_cli", "prune", *options, "--engine", engine, "--out", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = "".join(process.stderr.readline() for _ in range(3))
        assert "2 trainings side by side" in said
        until(lambda: under_way(folder, 2), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to the whole group
        said += process.stderr.read()
    assert process.returncode == 130, said
    assert f"Resume with: lthfunc resume {folder}" in said
    assert "Traceback" not in said
    until(lambda: not alive(process.pid))  # Python's own helper process needs a moment; then nobody is left
    if engine == "sparse":  # threads, which were in the middle of it
        for seed in ("seed0", "seed1"):
            assert list((folder / seed).rglob("*checkpoint*")), f"{seed} is kept"


@pytest.mark.slow
def test_a_worker_that_fails_names_its_training(tmp_path: Path, capsys: Any) -> None:
    for engine in ("eager", "sparse"):
        assert run("prune", *TWO, "--lr", "1e20", "--engine", engine, "--out", tmp_path / engine) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("lthfunc: seed ")
        assert "round 0: " in error
        assert "training diverged" in error


@pytest.mark.long
def test_a_worker_that_dies_names_its_training(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(
        "import os, torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        if os.environ.get('WHERE') == 'spawn':\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return super().forward(x.flatten(1))\n"
        "def net(shape, classes): return Net(64, classes)\n"
    )
    code = (
        "import os, sys\n"
        "if __name__ == '__mp_main__': os.environ['WHERE'] = 'spawn'\n"
        "from lthfunc_cli.main import main\n"
        "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "start.py").write_text(code)
    command = [sys.executable, "start.py", "prune", *TWO, "--arch", "dying:net", "--out", "dead"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "round 0: its process was ended by SIGKILL" in last
    assert "resume with: lthfunc resume" in last


def test_jobs_are_what_the_cores_hold(few_digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lf.from_module(NormedNet())
    plan = Plan(model=model, trainer=make_trainer(model, few_digits, optimizer=lf.sgd(0.1)), steps=20_000, eval_every=9)
    monkeypatch.setattr("lthfunc.scheduling.execute.usable_cores", lambda: 8)
    for config, jobs in (
        (Config(replicates=1, threads=1, device="cpu"), 1),
        (Config(replicates=3, threads=1, device="cpu"), 3),
        (Config(replicates=3, control=("reinit",), threads=1, device="cpu"), 6),
        (Config(replicates=3, control=("reinit",), threads=1, rounds=0, device="cpu"), 3),
        (Config(replicates=30, threads=1, device="cpu"), 8),
        (Config(replicates=30, threads=3, device="cpu"), 2),
        (Config(replicates=30, threads=16, device="cpu"), 1),
        (Config(replicates=30, threads=1, jobs=5, device="cpu"), 5),
        (Config(replicates=2, threads=1, jobs=5, device="cpu"), 2),
        (Config(replicates=30, control=("reinit",), device="cuda"), 60),
    ):
        assert jobs_of(config, plan) == jobs, config
    assert jobs_of(Config(replicates=30, threads=1, device="cpu"), plan._replace(steps=10)) == 1
    in_threads = Config(replicates=30, threads=1, device="cpu", engine="sparse")
    assert jobs_of(in_threads, plan._replace(steps=10)) == 8, "threads need no time to start"


@pytest.mark.parametrize("width", [2, 100])
def test_a_vmapped_study_equals_its_trainings_one_by_one(few_digits: Dataset, width: int, tmp_path: Path) -> None:
    """As on a GPU, but here: seeds and controls of a round as one program, rewinding to a later step included."""
    model = lf.from_module(NormedNet())
    trainer = make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=40)
    controls = {name: start_of(CONTROLS, name) for name in ("reinit", "random-mask")}
    plan = Plan(model=model, trainer=trainer, steps=12, eval_every=6, rounds=2, controls=controls)
    plan = plan._replace(rewind=start_of(REWINDINGS, "step:3"), anchor_step=3)

    def results(width: int) -> dict[tuple[int, int, str], Round]:
        queue = Queue({seed: rounds(plan, seed) for seed in (0, 1)})
        watcher = Counting()
        run = Execution(Config(checkpoint_every="4"), plan, tmp_path, watcher=watcher)
        results = list(vmapped(run, queue, width))
        found = {result.task.key: result.value for result in results}
        assert sorted(watcher.begun) == sorted(found)
        return found

    together, alone = results(width), results(1)
    assert len(together) == 2 * (1 + 2 * 3)
    for name, result in alone.items():
        for key, value in result.fit.state.params.items():
            torch.testing.assert_close(together[name].fit.state.params[key], value, rtol=1e-3, atol=1e-4)
        assert lf.count(together[name].start.masks) == lf.count(result.start.masks)
        assert together[name].test == pytest.approx(result.test, rel=1e-2, abs=2e-2)
