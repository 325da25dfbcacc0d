"""Compiled steps, and what to do where there is no compiler."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.training.steps import Metrics, TrainStep
from lthfunc.trees.ops import tree_map
from lthfunc.trees.types import Batch, TrainState


def compiled(step: TrainStep) -> TrainStep:
    """The step, compiled whole (`fullgraph`), writing the new state into the memory of the old one.

    The state it is given is consumed, as with donated arguments in JAX: the caller must own it (see
    `trees.ops.clone`) and go on with the returned one. Without the donation every step would allocate a new
    state and lose about a tenth of the speed on small networks.
    """
    quiet_compiler()

    def donating(state: TrainState, batch: Batch) -> tuple[list[Tensor], Metrics]:
        new, metrics = step(state, batch)
        scalars: list[Tensor] = []

        def keep(old_leaf: Tensor, new_leaf: Tensor) -> Tensor:
            # Scalars are returned instead: torch 2.11's compiler forgets what is copied into a float64 scalar.
            if old_leaf.ndim == 0:
                scalars.append(new_leaf)
            elif old_leaf is not new_leaf:
                old_leaf.copy_(new_leaf)
            return old_leaf

        tree_map(keep, state, new)
        return scalars, metrics

    program = torch.compile(donating, fullgraph=True, dynamic=False)

    def advance(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        scalars, metrics = program(state, batch)
        fresh = iter(scalars)
        return tree_map(lambda leaf: leaf if leaf.ndim else next(fresh), state), metrics

    return advance


@contextmanager
def unguarded() -> Iterator[None]:
    """Skip Dynamo's checks that nothing changed since compilation, for loops that guarantee it themselves.

    The first call must have been made before. Only the checks that tell one compiled program from another
    remain; without the rest a small step gains about 7 %.
    """
    with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
        yield


def why_not(device: torch.device | str) -> str | None:
    """Why nothing can be compiled for this device, in one line; None where it can."""
    if torch.device(device).type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "triton is not installed"
    return _why_no_host_compiler()


@functools.cache
def _why_no_host_compiler() -> str | None:
    # Inductor looks for the compiler in CXX, then g++. Its programs include Python.h, which Debian packs apart.
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), "")
    if not shutil.which(compiler):
        return f"no C++ compiler was found ({compiler or 'g++'})"
    include = sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\nint main() { return 0; }\n")
        command = [compiler, f"-I{include}", "-fsyntax-only", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if "Python.h" in done.stderr:
        return f"Python's header files are missing in {include}"
    return f"the C++ compiler {compiler} does not work"


def quiet_compiler() -> None:
    """Silence remarks of the compiler's about machines without a GPU; its errors still come through."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def synchronize(tensor: Tensor | Any) -> None:
    """Wait until a device has done what it was asked; clocks are honest only after that."""
    if isinstance(tensor, Tensor) and tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
