"""The page on more cores, devices and machines: what it prints for torchrun and for addresses works as printed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import HANG
from documentation import blocks
from lthfunc_cli.main import main

PAGE = "docs/how-to/cluster.md"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def commands(word: str) -> list[list[str]]:
    lines = [line.partition("   #")[0].strip() for block in blocks(PAGE, "sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if word in line]


@pytest.mark.long
def test_what_torchrun_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Both commands; the run to go on with was begun by one process."""
    begin, go_on = commands("torchrun --")
    assert main(["prune", "--rounds", "1", "--steps", "5", "--out", str(tmp_path / "runs" / "RUN")]) == 0
    for words, more in ((begin, ["--rounds", "1", "--steps", "5", "--out", "runs/NEW"]), (go_on, [])):
        done = subprocess.run(
            [*TORCHRUN, *words[1:], *more], cwd=tmp_path, capture_output=True, text=True, timeout=HANG
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Files in ") == 1


def test_what_is_written_in_python(tmp_path: Path) -> None:
    """Both examples, one after the other on two ranks, and shorter."""
    together, parts = blocks(PAGE, "python")
    for long, short in (("until=1000", "until=10"), ("eval_every=100", "eval_every=5"), ("count=200", "count=5")):
        assert long in together + parts
        together, parts = together.replace(long, short), parts.replace(long, short)
    begin = [line for line in parts.splitlines() if "init_process_group" in line]
    assert len(begin) == 1
    text = "\n".join([
        "import os, torch, lthfunc as lf",
        "torch.set_num_threads(1)",
        "data, model = lf.data.load('digits'), lf.models.lenet300((1, 8, 8))",
        together,
        parts.replace(begin[0], ""),
        "print(f'{fit.state.step.item()} {lf.density(lf.unsharded(ticket).masks)}\\n', end='', flush=True)",
        "torch.distributed.barrier(); os._exit(0)",
    ])  # fmt: skip
    (tmp_path / "page.py").write_text(text)
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node", "2", "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["10", "0.8"] * 2


def test_what_is_told_of_addresses(
    s3: str, tmp_path: Path, mnist_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import fsspec

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LTHFUNC_DATA", raising=False)
    store = fsspec.filesystem("s3")
    if store.exists("bucket/studies"):
        store.rm("bucket/studies", recursive=True)
    for file in (mnist_dir / "MNIST" / "raw").glob("*-ubyte"):
        store.put_file(str(file), f"bucket/data/MNIST/raw/{file.name}")
    for words in commands("s3://bucket"):
        short = ["--rounds", "1", "--steps", "4"] if words[1] == "prune" else []
        if words[1] == "resume":  # a run in a bucket is not believed
            assert main([word for word in words[1:] if word != "--trust"]) == 2
            assert "lthfunc: s3://bucket/studies/run: the settings connect to data_dir" in (capsys.readouterr().err)
        assert main([*words[1:], *short]) == 0, capsys.readouterr().err
    assert store.exists("bucket/studies/run/metrics.jsonl")
    assert store.exists("bucket/report.html")
