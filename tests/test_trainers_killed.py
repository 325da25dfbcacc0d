"""Trainings in trainers that end by a signal which nothing catches resume from the trainers' own checkpoints."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainers import functional, stripped

import lthfunc as lf

#: Of a trainer's package: the module of its tests, what trains in a folder, and what makes it resume there.
TRAININGS = {
    "lightning": ("test_trainer_lightning", "fit(folder, t.Net(), t.rounds()", ", '3')"),
    "transformers": ("test_trainer_transformers", "fit(folder, t.rounds()", ", resume=True)"),
    "accelerate": ("test_trainer_scripts", "with_accelerate(folder", ", resume=True)"),
}
CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import trainers, {module} as t
folder = Path({folder!r})
trainers.at_step(lambda: os.kill(os.getpid(), signal.SIGKILL))
t.{train})
"""


@pytest.mark.long
@pytest.mark.parametrize("package", TRAININGS)
def test_a_training_ended_by_sigkill_resumes_with_the_bits_of_the_functional_path(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    name, train, resume = TRAININGS[package]
    program = CHILD.format(tests=str(Path(__file__).parent), module=name, folder=str(tmp_path), train=train)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    module = __import__(name)
    attached: Any = eval(f"t.{train}{resume}", {"t": module, "folder": tmp_path})
    assert attached.round == 2
    assert lf.same_bits(stripped(attached.ticket(), "net."), lf.ticket(functional()))
