"""The processor and the cores of this machine, and the cache folders."""

from __future__ import annotations

import functools
import os
import platform
from contextlib import suppress
from pathlib import Path

#: AMD's family of processors from which a core has 512-bit multipliers.
_WIDE = 26


def processor_name() -> str:
    """The processor's model, as its maker calls it."""
    return processor_facts().get("model name") or platform.processor() or platform.machine()


@functools.cache
def processor_facts() -> dict[str, str]:
    """The first value of each field of Linux's /proc/cpuinfo; empty on other systems."""
    info = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in info.read_text(errors="replace").splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts


def has_avx512() -> bool:
    """Whether the processor has AVX-512 (the foundation instructions)."""
    return "avx512f" in _features()


def has_wide_amd_cores() -> bool:
    """Whether this is an AMD processor with 512-bit multipliers (family 26, Zen 5, or later)."""
    facts = processor_facts()
    family = facts.get("cpu family", "")
    return facts.get("vendor_id") == "AuthenticAMD" and has_avx512() and family.isdigit() and int(family) >= _WIDE


def has_bf16_products() -> bool:
    """Whether the processor has instructions that multiply bfloat16 numbers; others emulate them."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_features()))


def _features() -> list[str]:
    """What Linux calls the processor's extensions: flags on x86, features on ARM."""
    facts = processor_facts()
    return facts.get("flags", facts.get("Features", "")).split()


def usable_cores() -> int:
    """Number of cores that this process may use: its CPU affinity, or a lower limit of its container (rounded up)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = _cpu_limit(Path("/sys/fs/cgroup"))
    return max(1, min(bound, -(-quota // period))) if quota > 0 and period > 0 else bound


def _cpu_limit(groups: Path) -> tuple[int, int]:
    """(microseconds of processor time, in a period of microseconds) that Linux gives a control group, or (-1, 1)."""
    old = groups / "cpu" / "cpu.cfs_quota_us", groups / "cpu" / "cpu.cfs_period_us"
    for files in ((groups / "cpu.max",), old):
        with suppress(OSError, ValueError):  # no such file, or "max", which is no limit
            quota, period = " ".join(file.read_text() for file in files).split()
            return int(quota), int(period)
    return -1, 1


def memory_bytes() -> int | None:
    """Main memory of this machine in bytes; None where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not POSIX, or a name it doesn't know
        return None


def user_cache() -> Path:
    """This library's folder in the user's cache: on Linux in $XDG_CACHE_HOME or ~/.cache."""
    import platformdirs

    return platformdirs.user_cache_path("lthfunc", appauthor=False)


def cache_home() -> Path:
    """The folder for kernels, decoded images and the like: $LTHFUNC_CACHE, or this library's in the user's cache."""
    return Path(os.environ.get("LTHFUNC_CACHE") or user_cache()).expanduser()
