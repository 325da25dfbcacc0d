"""The kernels: a library that the installed package brings, or one that is built at first use and kept."""

from __future__ import annotations

import errno
import functools
import os
import platform
import subprocess
from pathlib import Path

import torch

from lthfunc.errors import UserError
from lthfunc.hardware import cache_home, has_avx512, processor_facts, usable_cores
from lthfunc.sparse.kernels import library_cache
from lthfunc.sparse.kernels.compilation import (
    FLAGS,
    PREBUILT,
    CompilerError,
    compile_library,
    prebuilt_name,
    source_digest,
    units,
)
from lthfunc.sparse.kernels.progress import BUILDS
from lthfunc.training.engines.toolchain import host_compiler, why_no_compiler

_SANITIZE = ("-O0", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
#: What libraries of wheels are made for, best first, by the machine: names of -march, and flags of such a processor.
_WHEELS: dict[str, dict[str, set[str]]] = {
    "x86_64": {
        "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        "x86-64-v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    },
    "aarch64": {"armv8-a": set()},
    "arm64": {"armv8-a": set()},
}  # fmt: skip
#: Processor seconds that a build takes with g++ 12 on an Intel Xeon (Skylake-SP, 2.0 GHz).
_CORE_SECONDS = 120
_WITH_AVX512 = ("native", "x86-64-v4")


@functools.cache
def load_kernels() -> None:
    """Register the operations `torch.ops.lthfunc.*`, building them where that was not done yet.

    Raises UserError where nothing can be built, with what is missing.
    """
    library = prebuilt()
    if library is None:
        reason = why_no_kernels()
        if reason is not None:
            raise UserError(reason)
        library = _built()
    torch.ops.load_library(str(library))


def _built() -> Path:
    """The library in the cache, which is built if it is not there."""
    folder = cache_folder()
    if not library_cache.is_whole(folder):
        parts = len(units())
        BUILDS.tell(0, parts)
        with library_cache.building(folder):
            if not library_cache.is_whole(folder):  # which another process has built meanwhile
                library_cache.clear(folder)
                _build(folder)
                library_cache.keep(folder)
        BUILDS.tell(parts, parts)
    return library_cache.library(folder)


def _build(folder: Path) -> None:
    at = Path(torch.__file__).parent
    try:
        compile_library(host_compiler(), _flags(), at, library_cache.library(folder), usable_cores(), BUILDS.tell)
    except CompilerError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        lines = [line for line in str(error).splitlines() if "error: " in line] or str(error).splitlines()
        raise UserError(f"engine: the sparse kernels cannot be built: {lines[0].strip()}") from error


def prebuilt() -> Path | None:
    """The best library for this processor among those that the package brings; None where it brings none."""
    return _brought(_march(), _sanitized())[1]


@functools.cache
def _brought(march: str, sanitized: bool) -> tuple[str, Path | None]:
    """The instructions that kernels are made with, and the library that the package brings for them."""
    if PREBUILT.is_dir() and not sanitized:
        has = set(processor_facts().get("flags", "").split())
        for name, needs in _WHEELS.get(platform.machine(), {}).items():
            library = PREBUILT / prebuilt_name(name)
            if (march == name or (march == "native" and needs <= has)) and library.exists():
                return name, library
    return march, None


def kernels_name() -> str:
    """A name for exactly these kernels: of their source, instructions and, where they are built here, compiler."""
    library = prebuilt()
    return cache_folder().name if library is None else library.stem


def library_path() -> Path:
    """Where the library for this processor lies, or will lie once it is built."""
    return prebuilt() or library_cache.library(cache_folder())


def is_built() -> bool:
    """Whether a library for this machine is there."""
    return prebuilt() is not None or library_cache.is_whole(cache_folder())


def expected_seconds() -> int:
    """About how long a build takes here, from the number of cores."""
    return -(-_CORE_SECONDS // min(usable_cores(), len(units())))


def why_no_kernels() -> str | None:
    """One line that says why there are no kernels here and none can be built; None where there are or can."""
    if prebuilt() is not None:
        return None
    reason = why_no_compiler() or library_cache.why_not_kept(cache_folder())
    return reason and f"engine: sparse cannot run on this machine, since {reason}; the engine eager can"


def have_avx512() -> bool:
    """Whether the kernels are made with AVX-512; not counted on where they are made for another processor."""
    made_with, _ = _brought(_march(), _sanitized())
    return made_with in _WITH_AVX512 and has_avx512()


def _march() -> str:
    # LTHFUNC_MARCH: another processor's instructions (x86-64-v3 for AVX2, say), to see what they would do.
    return os.environ.get("LTHFUNC_MARCH", "native")


def _sanitized() -> bool:
    # LTHFUNC_SANITIZE: kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
    return bool(os.environ.get("LTHFUNC_SANITIZE"))


def _flags() -> list[str]:
    return [*FLAGS, f"-march={_march()}", *(_SANITIZE if _sanitized() else ())]


def cache_folder() -> Path:
    """Where kernels are kept that were built for this processor, compiler and source. Homes are shared by machines."""
    return cache_home() / "kernels" / source_digest(*_flags(), platform.machine(), _processor(), _compiler())


def _processor() -> str:
    """The instructions that the processor has."""
    facts = processor_facts()
    return facts.get("flags") or facts.get("Features") or platform.processor()


def _compiler() -> str:
    try:
        return subprocess.run([host_compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:  # there is none; whoever builds is told so
        return ""
