"""The benchmarks run; their figures are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from lthfunc.training.engines.toolchain import why_not


@pytest.mark.slow
@pytest.mark.skipif(why_not("cpu") is not None, reason=f"{why_not('cpu')}")
def test_train_step_measures_every_variant(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.train_step", "--steps", "3", "--repeats", "1", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert len(result["steps_per_second"]) == 8
    assert all(rate > 0 for rate in result["steps_per_second"].values())
    assert result["machine"]["torch"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the suite itself would run")
def test_the_gpu_suite_says_when_there_is_no_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "benchmarks" / "gpu_suite.sh"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 3
    assert "no CUDA device" in done.stderr
    assert not list(tmp_path.iterdir())
