"""Commands on several ranks: a run, a rank that is killed, and what ranks cannot do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HANG, until
from lthfunc_cli.main import main
from lthfunc_cli.ranks import on_ranks
from test_runs import metrics

import lthfunc as lf
from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.trees.ops import leaves

SMALL = ["prune", "--rounds", "1", "--steps", "60", "--batch-size", "60", "--engine", "eager", "--eval-every", "30"]
LONG = ["prune", "--rounds", "1", "--steps", "600", "--batch-size", "60", "--engine", "eager", "--checkpoint-every"]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Crew:
    """Ranks of the command line, started as torchrun would, each with its own arguments."""

    def __init__(self, commands: Sequence[Sequence[object]]) -> None:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(commands))}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "lthfunc_cli", *map(str, command)],
                env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank, command in enumerate(commands)
        ]  # fmt: skip

    def ended(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each."""
        said = [process.communicate(timeout=HANG) for process in self.processes]
        return [(process.returncode, *texts) for process, texts in zip(self.processes, said, strict=True)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


def trainings(folder: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(folder) if line["kind"] == "training"]


def test_a_run_on_two_ranks_is_a_run(tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert main([*SMALL, "--out", str(alone)]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lthfunc_cli"]
    done = subprocess.run([*command, *SMALL, "--out", str(both)], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert "on 2 ranks" in done.stderr
    assert done.stderr.count("seed 0 round 1:") == 1
    assert "Winning ticket" in done.stdout or "winning ticket" in done.stdout
    assert main(["verify", str(both)]) == 0
    for mine, theirs in zip(trainings(alone), trainings(both), strict=True):
        assert mine["kept"] == theirs["kept"]
        assert mine["val_accuracy"] == pytest.approx(theirs["val_accuracy"], abs=0.02)
    tickets = [lf.load_ticket(folder / "last_round.safetensors")[0] for folder in (alone, both)]
    same = [(one == other).float().mean() for one, other in zip(*(leaves(each.masks) for each in tickets), strict=True)]
    assert min(same) > 0.99
    begun = json.loads((both / "environment.jsonl").read_text().splitlines()[0])
    assert begun["ranks"] == 2


@pytest.mark.long
def test_a_killed_rank_ends_the_others_and_the_run_goes_on_with_another_number(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Crew([[*LONG, "100", "--out", folder]] * 2) as crew:
        until(lambda: list(folder.glob("**/checkpoint-*.safetensors")))
        crew.processes[1].send_signal(signal.SIGKILL)
        (code, _, first), _ = crew.ended()
    assert code == 3
    assert first.count("another rank is gone") == 1
    assert "lthfunc resume" in first
    assert "Traceback" not in first
    left = set(folder.glob("**/checkpoint-*.safetensors"))
    with Crew([["resume", folder]] * 2) as crew:
        until(lambda: set(folder.glob("**/checkpoint-*.safetensors")) - left)
        crew.processes[0].send_signal(signal.SIGTERM)  # one rank is asked; all stop after the same step
        ends = crew.ended()
    assert [code for code, _, _ in ends] == [143, 0]
    assert "everything is saved" in ends[0][2]
    assert main(["resume", str(folder)]) == 0
    assert [line["round"] for line in trainings(folder)] == [0, 1]
    assert main(["verify", str(folder)]) == 0


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder where nothing must be left."""
    folder = tmp_path / "none"
    yield folder
    assert not folder.exists()


def refused(commands: Sequence[Sequence[object]]) -> str:
    """The one line in which ranks say why they don't begin."""
    with Crew(commands) as crew:
        ends = crew.ended()
    assert ends[0][0] == 2, ends
    said = [err for _, _, err in ends]
    assert [len(err.splitlines()) for err in said] == [1, *[0] * (len(said) - 1)], said
    return said[0]


def test_what_ranks_cannot_do_is_one_line(out: Path) -> None:
    """test_plan_choices.py has what else they cannot."""
    said = refused([[*SMALL, "--out", out, "--batch-size", "7"]] * 2)
    assert "--batch-size: 7 examples don't divide among 2 ranks; take 6 or 8, or 1 rank" in said


@pytest.mark.long
def test_ranks_that_differ_are_refused_before_any_step(out: Path) -> None:
    command = [*SMALL, "--out", out, "--lr"]
    said = refused([[*command, "0.1"], [*command, "0.2"]])
    assert "rank 1 was started with '0.2' where rank 0 has '0.1'" in said


def test_other_commands_are_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setenv("RANK", "1")
    assert on_ranks("methods", lambda: ran.append("methods")) == 2
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="runs prune, train, resume, branch, transfer on several ranks, not methods"):
        on_ranks("methods", lambda: ran.append("methods"))
    assert not ran


def test_ranks_of_other_versions_and_data_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from lthfunc.experiments.config import Config
    from lthfunc.experiments.plan import prepare
    from lthfunc.experiments.resolve import resolved
    from lthfunc.runs.environment import source_digest, versions
    from lthfunc.scheduling import ranks

    config = prepare(resolved(Config(steps=20, engine="eager"))).config
    two = Collectives(1, 2, lambda vector: vector)
    monkeypatch.setattr(sys, "argv", ["lthfunc", "prune"])
    theirs = ranks._fingerprint(config, prepare(config, collectives=two).plan)
    order = ranks._PlanOrder(config, ["prune"], versions(), theirs)
    plan, problem = ranks._same_plan(order, two)
    assert problem is None
    assert plan is not None
    for other, told in (
        (
            order._replace(about={**order.about, "torch": "1.0"}),
            f"rank 1 has torch {torch.__version__}, and rank 0 has 1.0",
        ),
        (
            order._replace(about={**order.about, "lthfunc_source": "0123456789ab"}),
            f"rank 1 has lthfunc_source {source_digest()}, and rank 0 has 0123456789ab",
        ),
        (order._replace(command=["prune", "--lr", "1"]), "rank 1 was started with 'nothing' where rank 0 has '--lr'"),
        (order._replace(command=[]), "rank 1 was started with 'prune' where rank 0 has 'nothing'"),
        (order._replace(found={**theirs, "data (digits)": "other"}), "rank 1 finds data (digits) that differs"),
        (order._replace(config=replace(config, dataset="npz:none.npz")), "rank 1: --dataset"),
    ):
        plan, problem = ranks._same_plan(other, two)
        assert plan is None
        assert problem is not None
        assert told in problem
