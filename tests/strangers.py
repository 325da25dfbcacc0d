"""What the tests of strangers' runs share: a real run, small, and what lies in a folder."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lthfunc_cli.main import main

from lthfunc.runs.json_lines import append_lines

TINY = ["--rounds", "1", "--steps", "6", "--eval-every", "3", "--engine", "eager", "--threads", "1"]


@pytest.fixture(scope="module", name="finished")
def a_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["prune", *TINY, "--out", str(folder)]) == 0
    append_lines(folder / "measured.jsonl", [{"kind": "of another version"}])
    for name in (".lock", *(path.name for path in folder.glob("*.png"))):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(name="run")
def a_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it; whoever waits for a pipe is woken, and fails."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    signal.alarm(120)
    yield Path("run")
    signal.alarm(0)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
