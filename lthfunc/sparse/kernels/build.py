"""The kernels, built by PyTorch's extension tooling at first use and kept."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from lthfunc.errors import UserError
from lthfunc.hardware import cache_home, has_avx512, processor_facts
from lthfunc.sparse.kernels import library_cache
from lthfunc.training.engines.toolchain import host_compiler, why_not

_HERE = Path(__file__).parent
# Never -ffast-math: with many compilers a library linked with it makes the whole process flush small numbers to zero.
_FLAGS = (
    "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    "-fvisibility=hidden", "-Wno-psabi", "-Wno-unknown-pragmas",
    # PyTorch's own threads: the runtime that it has loaded is found by its name. Elsewhere kernels run in one thread.
    *(("-fopenmp",) if sys.platform == "linux" else ()),
)  # fmt: skip
_SANITIZE = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


@functools.cache
def load_kernels() -> None:
    """Register the operations `torch.ops.lthfunc.*`, building them (half a minute) where that was not done yet.

    Raises UserError where nothing can be built, with what is missing.
    """
    reason = why_no_kernels()
    if reason is not None:
        raise UserError(reason)
    folder = cache_folder()
    if not library_cache.is_whole(folder):
        with library_cache.building(folder):
            if not library_cache.is_whole(folder):  # which another process has built meanwhile
                library_cache.clear(folder)
                _build(folder)
                library_cache.keep(folder)
    torch.ops.load_library(str(library_cache.library(folder)))


def _build(folder: Path) -> None:
    # On machines without a GPU the tooling remarks on it as it is imported; its errors still come through.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    flags = _flags()
    sources = sorted(str(source) for source in _HERE.glob("*.cpp"))
    # The tooling asks for ninja in PATH; installed beside Python, it need not be there.
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    try:
        cpp_extension.load(
            library_cache.NAME,
            sources,
            extra_cflags=flags,
            extra_ldflags=[flag for flag in flags if "sanitize" in flag or "openmp" in flag],
            build_directory=str(folder),
            is_python_module=False,
        )
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        lines = [line for line in str(error).splitlines() if " error: " in line] or str(error).splitlines()
        raise UserError(f"--engine: the sparse kernels cannot be built: {lines[0].strip()}") from error
    finally:
        os.environ["PATH"] = path


def is_built() -> bool:
    """Whether a build for this machine lies in the cache."""
    return library_cache.is_whole(cache_folder())


def why_no_kernels() -> str | None:
    """One line that says why the kernels cannot be built here; None where they can."""
    reason = why_not("cpu") or library_cache.why_not_kept(cache_folder())
    return reason and f"--engine: sparse cannot run on this machine, since {reason}; --engine eager can"


def have_avx512() -> bool:
    """Whether the kernels are made with AVX-512; not counted on where they are made for another processor."""
    return _march() == "native" and has_avx512()


def _march() -> str:
    # LTHFUNC_MARCH: another processor's instructions (haswell for AVX2, say), to see what they would do.
    return os.environ.get("LTHFUNC_MARCH", "native")


def _flags() -> list[str]:
    return [*_FLAGS, f"-march={_march()}", *(_SANITIZE if os.environ.get("LTHFUNC_SANITIZE") else ())]


def cache_folder() -> Path:
    """Where the kernels for this processor, compiler, PyTorch and source are kept. Homes are shared by machines."""
    digest = hashlib.sha256()
    for source in sorted(_HERE.glob("*")):
        if source.suffix in (".cpp", ".h", ".def"):
            digest.update(source.read_bytes())
    for fact in (*_flags(), torch.__version__, platform.machine(), _processor(), _compiler()):
        digest.update(fact.encode())
    return cache_home() / "kernels" / digest.hexdigest()[:16]


def _processor() -> str:
    """The instructions that the processor has."""
    facts = processor_facts()
    return facts.get("flags") or facts.get("Features") or platform.processor()


def _compiler() -> str:
    try:
        return subprocess.run([host_compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:  # there is none; whoever builds is told so
        return ""
