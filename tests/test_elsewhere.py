"""Runs and data at addresses: the same as here, whole at every moment, gone on with from another machine."""

from __future__ import annotations

import importlib.util
import json
import posixpath
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import HANG, run
from test_runs import metrics, same_files

import lthfunc as lf
from lthfunc import remote
from lthfunc.errors import UserError
from lthfunc.remote import fetch_to_cache, is_remote, send
from lthfunc.runs import mirror as mirrors
from lthfunc.runs.folder import METRICS
from lthfunc.runs.lock import HOLDER
from lthfunc.runs.mirror import Mirror

SMALL = ["--rounds", "1", "--steps", "60", "--eval-every", "20", "--control", "reinit", "--engine", "eager"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> str:
    """An address in fsspec's memory, of this test alone."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "run"
    assert run("prune", *SMALL, "--out", folder) == 0
    return folder


def brought(url: str, target: Path) -> Path:
    system, path = fsspec.core.url_to_fs(url)
    system.get(path, str(target), recursive=True)
    return target


def same_run(left: Path, right: Path) -> None:
    same_files(left, right, but="config")
    lines = [[line for line in metrics(folder) if line["kind"] == "training"] for folder in (left, right)]
    for mine, theirs in zip(*lines, strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


def test_a_run_on_s3_is_the_run(s3: str, local: Path, tmp_path: Path, own_cache: Path, capsys: Any) -> None:
    url = f"{s3}/elsewhere/run"
    assert run("prune", *SMALL, "--out", url) == 0
    out = capsys.readouterr().out
    assert f"Files in {url}:\n" in out
    same_run(local, brought(url, tmp_path / "brought"))
    assert not fsspec.filesystem("s3").exists(f"{url}/{HOLDER}")
    shutil.rmtree(own_cache)  # another machine
    assert run("info", url) == 0
    assert run("verify", url) == 0
    assert run("report", url, local, "--out", f"{s3}/report.html") == 0
    assert fsspec.filesystem("s3").cat(f"{s3}/report.html").startswith(b"<!doctype html>")
    assert run("compare", url, local) == 0
    assert run("prune", *SMALL, "--out", url) == 2
    assert "holds another run" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_from_another_machine(
    memory: str, local: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from lthfunc.experiments import trainings
    from lthfunc.scheduling import queue

    url, real = f"{memory}/run", trainings.train_together

    def interrupted(*given: Any, **named: Any) -> Any:
        if given[1][0].number == 1:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(queue, "train_together", interrupted)
    assert run("prune", *SMALL, "--out", url) == 130
    assert f"lthfunc resume {url}" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "another"))
    assert run("resume", url) == 0
    same_run(local, brought(url, tmp_path / "brought"))


def test_what_is_there_is_whole_at_every_moment(memory: str, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every single object, a run that breaks off there could be gone on with."""
    url = f"{memory}/run"
    system, path = fsspec.core.url_to_fs(url)
    seen: list[str] = []

    def sent(place: Any, name: str, payload: bytes) -> None:
        send(place, name, payload)
        seen.append(name)
        if system.exists(f"{path}/{METRICS}"):
            lines = [json.loads(line) for line in system.cat(f"{path}/{METRICS}").decode().splitlines()]
            for line in lines[1:]:
                suffix = "" if line["variant"] == "ticket" else f"-{line['variant']}"
                home = f"{path}/seed{line['seed']}/round{line['round']:02d}{suffix}"
                for part in json.loads(system.cat(f"{home}/manifest.json"))["files"]:
                    assert system.exists(posixpath.normpath(f"{home}/{part}"))

    monkeypatch.setattr(mirrors, "send", sent)
    assert run("prune", *SMALL, "--out", url) == 0
    assert seen.count(METRICS) > 1
    assert not [name for name in system.find(path) if "checkpoint" in name or name.endswith((".lock", HOLDER))]


def test_a_sweep_elsewhere_goes_on(memory: str, own_cache: Path, capsys: Any) -> None:
    words = ["sweep", "--grid", "lr=0.01,0.001", "--rounds", "0", "--steps", "20", "--engine", "eager"]
    url = f"{memory}/sweep"
    assert run(*words, "--out", url) == 0
    system, path = fsspec.core.url_to_fs(url)
    lines = system.cat(f"{path}/sweep.jsonl").splitlines()
    assert len(lines) == 3
    system.pipe_file(f"{path}/sweep.jsonl", b"\n".join(lines[:2]) + b"\n")  # as another machine left it
    shutil.rmtree(own_cache)
    capsys.readouterr()
    assert run(*words, "--out", url) == 0
    assert "trial 1 of 2" in (err := capsys.readouterr().err)
    assert "trial 0 of 2" not in err
    assert len(system.cat(f"{path}/sweep.jsonl").splitlines()) == 3


def test_a_place_that_is_worked_on_is_refused(memory: str, capsys: Any) -> None:
    url = f"{memory}/run"
    system, path = fsspec.core.url_to_fs(url)
    about = {"pid": 7, "host": "elsewhere", "heard": time.time() - 10}
    system.pipe_file(f"{path}/{HOLDER}", json.dumps(about).encode())
    assert run("prune", *SMALL, "--out", url) == 2
    err = capsys.readouterr().err
    assert "process 7 on elsewhere is working on" in err
    assert len(err.splitlines()) == 1
    system.pipe_file(f"{path}/{HOLDER}", json.dumps({**about, "heard": time.time() - 1000}).encode())
    assert run("train", "--steps", 20, "--out", url) == 0


def test_what_cannot_be_sent_is_kept_and_sent_the_next_time(
    memory: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    url = f"{memory}/run"

    def broken(place: Any, name: str, payload: bytes) -> None:
        if name != HOLDER:
            raise ConnectionError("no route to host")
        send(place, name, payload)

    monkeypatch.setattr(mirrors, "send", broken)
    assert run("train", "--steps", 20, "--out", url) == 3
    err = capsys.readouterr().err
    assert "cannot be written (no route to host)" in err
    assert f"lthfunc resume {url}" in err
    monkeypatch.undo()
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    assert run("resume", url) == 0
    assert "which could not be uploaded last time" in capsys.readouterr().err
    assert len(metrics(brought(url, tmp_path / "brought"))) == 2


def test_data_elsewhere_is_fetched_once(
    memory: str, monkeypatch: pytest.MonkeyPatch, mnist_dir: Path, tmp_path: Path, own_cache: Path
) -> None:
    system, path = fsspec.core.url_to_fs(memory)
    x = np.arange(60 * 4, dtype=np.float32).reshape(60, 4)
    with system.open(f"{path}/data.npz", "wb") as file:
        np.savez(file, x=x, y=np.arange(60) % 3)
    data = lf.data.load(f"npz:{memory}/data.npz")
    assert data.train.x.shape[1] == 4
    before = fetch_to_cache("--dataset", f"{memory}/data.npz")
    stamp = before.stat().st_mtime_ns
    assert fetch_to_cache("--dataset", f"{memory}/data.npz").stat().st_mtime_ns == stamp
    with system.open(f"{path}/data.npz", "wb") as file:
        np.savez(file, x=x[:30], y=np.arange(30) % 3)
    assert len(np.load(fetch_to_cache("--dataset", f"{memory}/data.npz"))["x"]) == 30
    lf.data.save_mapped(tmp_path / "digits.safetensors", lf.data.load("digits"))
    system.put_file(str(tmp_path / "digits.safetensors"), f"{path}/digits.safetensors")
    assert lf.data.load(f"{memory}/digits.safetensors").shape == (1, 8, 8)
    for file in (mnist_dir / "MNIST" / "raw").glob("*-ubyte"):
        system.put_file(str(file), f"{path}/set/MNIST/raw/{file.name}")
    system.pipe_file(f"{path}/set/other/large.bin", b"not for this data set")
    monkeypatch.setenv("LTHFUNC_DATA", f"{memory}/set")
    assert len(lf.data.load("mnist").test.x) == 10_000
    assert [folder.name for folder in (own_cache / "fetched").glob("*/*/set/*")] == ["MNIST"]
    system.rm(path, recursive=True)


def test_a_place_that_is_not_there_is_one_line(s3: str, memory: str, capsys: Any, tmp_path: Path) -> None:
    for arguments, expected in (
        (["info", f"{memory}/nothing"], f"RUN: there is nothing at '{memory}/nothing'"),
        (["prune", "--out", "s3://no-such-bucket/run"], "s3://no-such-bucket/run"),
        (["prune", "--out", "nothing://there/run"], "--out: 'nothing://there/run' cannot be read"),
        (["resume", f"{memory}/nothing"], "nothing"),
        (["prune", "--dataset", f"npz:{memory}/none.npz", "--out", tmp_path / "run"], "--dataset: there is nothing at"),
    ):
        assert run(*arguments) == 2, arguments
        err = capsys.readouterr().err
        assert expected in err
        assert len(err.splitlines()) == 1, err
    assert not (tmp_path / "run").exists()
    fsspec.filesystem("memory").pipe_file(f"{memory.removeprefix('memory://')}/file", b"something")
    assert run("prune", "--out", f"{memory}/file") == 2
    assert "is a file, but a run needs a folder" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    fsspec.filesystem("s3").clear_instance_cache()
    begun = time.monotonic()
    assert run("prune", "--out", "s3://bucket/run") == 2
    assert time.monotonic() - begun < HANG
    err = capsys.readouterr().err
    assert "--out: 's3://bucket/run' cannot be reached" in err
    assert len(err.splitlines()) == 1
    fsspec.filesystem("s3").clear_instance_cache()


def test_addresses_are_told_from_names() -> None:
    assert is_remote("s3://bucket/run")
    assert not is_remote("ray://head:10001")
    assert not is_remote("runs/one")
    assert not is_remote("C:\\runs")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is here")
def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"needs lthfunc\[gs\] \(pip install"):
        Mirror("--out", "gs://bucket/run")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../../../.bashrc", "leads out of its folder"),
        ("seed0/../../../../x", "leads out of its folder"),
        ("/etc/passwd", "leads out of its folder"),
        ("seed0//x", "has an empty part"),
        ("./x", "has an empty part"),
        ("C:/x", "is a path of Windows"),
        ("..\\x", "is a path of Windows"),
        ("a\x1b[31mb", "holds control characters"),
        ("a\nb", "holds control characters"),
        ("METRICS.jsonl", "where case doesn't count"),
        ("metrics.jsonl/x", "is a file, and a folder of"),
    ],
)
def test_objects_whose_names_leave_the_folder_are_refused(
    memory: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str, reason: str
) -> None:
    """A bucket takes any name; here nothing appears but in the cache's own folder for it."""
    system, path = fsspec.core.url_to_fs(f"{memory}/a/b")
    system.pipe_file(f"{path}/metrics.jsonl", b"")
    place = remote.remote_path("RUN", f"{memory}/a/b")
    listed = [f"{path}/metrics.jsonl", f"{path}/{name}"]
    monkeypatch.setattr(
        type(system), "find", lambda *_, **named: {each: {"type": "file", "size": 1} for each in listed}
    )
    before = sorted(tmp_path.rglob("*"))
    for command in ("info", "resume", "report"):
        assert run(command, f"{memory}/a/b") == 2
        err = capsys.readouterr().err
        assert reason in err
        assert "\x1b" not in err
    with pytest.raises(UserError, match="holds an object that is not fetched"):
        fetch_to_cache("--dataset", place.url)
    assert sorted(tmp_path.rglob("*")) == before


def test_places_whose_own_name_is_none_get_one(memory: str) -> None:
    for url in (f"{memory}/..", f"{memory}/a\\b", "memory://"):
        assert remote.remote_path("RUN", url)._replace(path=url.partition("://")[2]).name == "root"
