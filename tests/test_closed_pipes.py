"""Output that nobody reads any more ends a command as SIGPIPE would: no traceback, and code 141."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG

SHORT = "--steps 2 --rounds 0 --engine eager --eval-every 2"


def ended(words: str, folder: Path, *, both: bool = False) -> tuple[int, str]:
    """(exit code, stderr) of a command whose stdout, or both streams, are a pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lthfunc", *words.split()], cwd=folder, timeout=HANG, check=False, text=True,
            stdout=writing, stderr=writing if both else subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.close(writing)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("words", ["--version", "prune --help", "config --json"])
def test_what_is_printed_is_not_read(words: str, tmp_path: Path) -> None:
    assert ended(words, tmp_path) == (141, "")


def test_a_run_is_finished_and_kept(tmp_path: Path) -> None:
    code, told = ended(f"prune {SHORT} --out run", tmp_path)
    assert (code, "Traceback" in told) == (141, False)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2
    code, told = ended("prune --roundz 3", tmp_path)  # which has nothing to print there
    assert (code, told) == (2, "lthfunc: No such option: --roundz; did you mean --rounds?\n")


def test_mistakes_that_nobody_reads(tmp_path: Path) -> None:
    assert ended("prune --roundz 3", tmp_path, both=True)[0] == 141
