"""The kernels as other processors have them, and under sanitizers: the same tests in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

from lthfunc.hardware import processor_facts
from lthfunc.sparse.kernels import build
from lthfunc.training.engines.toolchain import host_compiler

pytestmark = [
    pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels())),
    pytest.mark.skipif(
        platform.machine() != "x86_64" or "avx2" not in processor_facts().get("flags", "").split(),
        reason="the processor has no AVX2",
    ),
]


def run(arguments: list[str], **env: str) -> None:
    """Run Python on a file of tests with kernels for AVX2, which compile quickly."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "LTHFUNC_MARCH": "x86-64-v3", **env}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tests", [
    ("layers.py::test_linear_layers_as_dense_products", "updates.py", "tokens.py::test_transformers",
     "recurrent.py::test_both_directions_of_two_layers", "normalisation.py::test_residual_blocks",
     "frozen.py::test_gradients_of_what_is_trained[1-groups]"),
    pytest.param(("layers.py", "edges.py", "transposed.py", "resampling.py"), marks=pytest.mark.long),
], ids=["layers", "more"])  # fmt: skip
def test_avx2(tests: tuple[str, ...]) -> None:
    run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/test_sparse_{name}" for name in tests)])


@pytest.mark.slow
@pytest.mark.long
def test_programs_under_sanitizers() -> None:
    libraries = [
        subprocess.run(
            [host_compiler(), f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("the compiler brings no sanitizers")
    run(
        ["tests/test_program_verification.py", "--programs", "20"],
        LTHFUNC_SANITIZE="1", ASAN_OPTIONS="detect_leaks=0", LD_PRELOAD=" ".join(libraries),
    )  # fmt: skip
