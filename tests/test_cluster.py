"""Trainings on Ray: the same bits as here, whatever happens to workers on the way."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG, run, under_way, until
from documentation import commands
from test_runs import metrics, same_files

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

SMALL = ["--rounds", "1", "--steps", "60", "--eval-every", "20", "--replicates", "2", "--control", "reinit"]
LONG = ["--rounds", "1", "--steps", "600", "--replicates", "2", "--engine", "eager", "--checkpoint-every", "100"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One for all tests that need none of their own; starting it is what takes long."""
    from lthfunc.scheduling.ray import clustered

    with clustered("ray") as found:
        yield found


os.environ.setdefault("RAY_worker_niceness", "0")  # else workers starve where other processes are busy


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lthfunc_cli", "prune", *arguments, "--out", str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Processes of Ray's that train, among those that this one started."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            if "_RayWorker" in " ".join(each.cmdline()):
                found.append(each.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    assert run("prune", *SMALL, "--jobs", 1, "--out", folder / "small") == 0
    assert run("prune", *LONG, "--jobs", 1, "--out", folder / "long") == 0
    return folder


def same_run(left: Path, right: Path) -> None:
    same_files(left, right, but="config")
    trainings = [[line for line in metrics(folder) if line["kind"] == "training"] for folder in (left, right)]
    key = lambda line: (line["seed"], line["round"], line["variant"])  # noqa: E731
    assert sorted(trainings[0], key=key) == sorted(trainings[1], key=key)


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced(local: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = started(folder, *LONG, "--executor", "ray")
    try:
        until(lambda: list(folder.glob("seed*/round*/checkpoint-*")), process)
        victim = until(lambda: workers(process))[0]
        os.kill(victim, signal.SIGKILL)
        _, err = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == 0, err
    same_run(local / "long", folder)


@pytest.mark.long
def test_an_interrupted_run_on_ray_goes_on_here(local: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = started(folder, *LONG, "--executor", "ray", "--checkpoint-every", "never")
    try:
        until(lambda: under_way(folder), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Resume with: lthfunc resume" in err
    assert "Traceback" not in err
    assert list(folder.glob("seed*/round00/checkpoint-*"))
    assert run("resume", folder, "--executor", "local", "--jobs", 1) == 0
    same_run(local / "long", folder)


def test_a_cluster_that_was_joined_before_stays(cluster: Any) -> None:
    from lthfunc.scheduling.ray import clustered

    with clustered("ray") as inner:
        assert inner.is_initialized()
    assert cluster.is_initialized()


@pytest.mark.usefixtures("cluster")
def test_a_run_on_ray_has_the_bits_of_a_run_here(local: Path, tmp_path: Path, capsys: Any) -> None:
    folder, before = tmp_path / "ray", ray.is_initialized()
    assert run("prune", *SMALL, "--executor", "ray", "--out", folder) == 0
    assert "on ray" in capsys.readouterr().err
    same_run(local / "small", folder)
    assert ray.is_initialized() == before
    assert run("verify", folder) == 0


@pytest.mark.usefixtures("cluster")
def test_what_the_pages_run_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The commands as printed, but shorter; methods have the results of here, and leave files here."""
    monkeypatch.chdir(tmp_path)
    done = set()
    found = commands("docs/how-to/commands.md", "docs/how-to/cluster.md")
    for command in dict.fromkeys(each for each in found if "--executor ray" in each):
        words = shlex.split(command)[1:]
        words[words.index("--replicates") + 1] = "1"
        words += ["--steps", "8"]
        if words[0] == "methods":
            words += ["--method", "random-erk", "--method", "magnitude-init"]
            words[words.index("--out") + 1] = "there"
            local = [{"ray": "local", "there": "here"}.get(word, word) for word in words]
            assert run(*local, "--jobs", 1) == 0
        elif words[0] in ("prune", "sweep"):
            words += ["--rounds", "1"]
        assert run(*words) == 0, capsys.readouterr().err
        done.add(words[0])
    assert done == {"prune", "methods", "sweep"}
    for name in ("random-erk", "magnitude-init"):
        same_run(Path("here", name), Path("there", name))


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, told in (
        (["--executor", "mars"], "--executor: invalid value 'mars' (expected local, ray, or the address of a cluster"),
        (["--executor", "ray", "--gpu-share", "0"], "--gpu-share: invalid value 0.0 (expected a number in (0, 1]"),
        (["--executor", "ray://127.0.0.1:9"], "--executor: 'ray://127.0.0.1:9' cannot be reached ("),
        (["--executor", "ray://127.0.0.1:99999"], "--executor: 'ray://127.0.0.1:99999' cannot be reached ("),
        (["--executor", "ray", "--energy"], "--executor: invalid value 'ray' (expected local with --energy"),
    ):
        assert run("prune", *arguments) == 2
        assert told in capsys.readouterr().err
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else real(name, *rest))
    assert run("prune", "--executor", "ray") == 2
    assert "--executor: ray needs the package ray (pip install 'lthfunc[ray]')" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_nothing_here_imports_ray_and_pictures_alone_import_their_libraries() -> None:
    code = (
        "import sys, lthfunc_cli.running, lthfunc_cli.info, lthfunc.scheduling.execute, lthfunc as lf; lf.prune\n"
        "import lthfunc.reports.methods, lthfunc.reports.connectivity\n"
        "print({'ray', 'matplotlib', 'plotly', 'scipy', 'torchvision'} & {*sys.modules})\n"
        "for name in lf.__all__: getattr(lf, name)\n"
        "print({'lightning', 'pytorch_lightning', 'transformers', 'accelerate', 'timm'} & {*sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()"] * 2
