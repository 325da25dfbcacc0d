"""C++ files to one library, compiled side by side. Needs the standard library alone, so that wheels are built by it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
#: Libraries that a wheel brings, named by `prebuilt_name`.
PREBUILT = HERE / "prebuilt"
# Never -ffast-math: with many compilers a library linked with it makes the whole process flush small numbers to zero.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-pipe", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    "-fvisibility=hidden", "-Wno-psabi", "-Wno-unknown-pragmas",
)  # fmt: skip
#: Files that are compiled together, the longest first; all others, which are short, are compiled as one beside these.
#: Those of bindings share headers that take a compiler longer than they do.
_UNITS = (
    ("sparse_products",), ("sparse_gradients",), ("dense_convolutions",),
    ("bindings", "survivor_bindings", "decoding_bindings"), ("attention",), ("dense_products",),
)  # fmt: skip

#: Files whose loops are unrolled and made of vectors by their source: -O3 would only take longer.
_EXPLICIT = ("sparse_products", "sparse_gradients")


class CompilerError(Exception):
    """What the compiler printed."""


def units() -> list[list[Path]]:
    """The C++ files that are compiled together, those first that take longest."""
    named = [[HERE / f"{stem}.cpp" for stem in unit] for unit in _UNITS]
    others = sorted(set(HERE.glob("*.cpp")) - {path for unit in named for path in unit})
    return [named[0], others, *named[1:]]


def source_digest(*facts: str) -> str:
    """A name for what these sources become with these flags and other facts."""
    digest = hashlib.sha256()
    for path in sorted(HERE.iterdir()):
        if path.suffix in (".cpp", ".h", ".def"):
            digest.update(path.read_bytes())
    for fact in facts:
        digest.update(fact.encode())
    return digest.hexdigest()[:16]


def prebuilt_name(march: str) -> str:
    """The file of a library that a wheel brings for these instructions (a value of -march)."""
    return f"{march}-{source_digest(*FLAGS)}.so"


def compile_library(
    compiler: str,
    flags: Sequence[str],
    torch: Path,
    library: Path,
    jobs: int,
    told: Callable[[int, int], None] = lambda done, parts: None,
) -> None:
    """Compile the kernels to a library, `jobs` files at a time. torch: the folder of the installed package.

    told: is called with how many parts are compiled, of how many, after each.
    Raises CompilerError with what the compiler printed.
    """
    with TemporaryDirectory(prefix="build-", dir=library.parent) as folder:
        begin, objects, commands = [compiler, *flags, f"-isystem{torch / 'include'}", "-xc++", "-c", os.devnull], [], []
        for number, unit in enumerate(units()):
            objects.append(str(Path(folder, f"{number}.o")))
            explicit = unit[0].stem in _EXPLICIT
            flagged = ["-O2" if explicit and each == "-O3" else each for each in begin]
            commands.append([*flagged, *(f"-include{path}" for path in unit), "-o", objects[-1]])
        _run(commands, jobs, lambda done: told(done, len(commands)))
        made = Path(folder, library.name)
        sanitizers = [flag for flag in flags if "sanitize" in flag]
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        _run([[compiler, "-shared", *sanitizers, *objects, *libraries, "-o", str(made)]], 1)
        made.replace(library)


def _run(commands: Sequence[Sequence[str]], jobs: int, told: Callable[[int], None] = lambda done: None) -> None:
    """Run commands side by side; if one fails or this is interrupted, none is left running."""
    children: list[subprocess.Popen[str]] = []

    def run(command: Sequence[str]) -> None:
        # A session of its own: the compiler's own children end with it.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        children.append(child)
        printed, _ = child.communicate()
        if child.returncode:
            raise CompilerError(printed or f"{command[0]} ended with {child.returncode}")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            running = [pool.submit(run, command) for command in commands]
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                told(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                with suppress(ProcessLookupError):
                    if child.poll() is None:
                        os.killpg(child.pid, signal.SIGKILL)
            raise
