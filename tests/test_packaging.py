"""The source distribution and the wheel: they are made, indexes accept them, and they hold all files."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import lthfunc


def test_distributions_are_whole(tmp_path: Path) -> None:
    for tool in ("build", "twine"):
        pytest.importorskip(tool)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, source = tmp_path / f"lthfunc-{lthfunc.__version__}-py3-none-any.whl", next(tmp_path.glob("*.tar.gz"))
    assert source.name == f"lthfunc-{lthfunc.__version__}.tar.gz"
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # The wheel is made from the source distribution, so that both are checked.
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in (("lthfunc", "lthfunc"), ("cli", "lthfunc_cli"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == ours
