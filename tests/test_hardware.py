"""What the machine is, by what its system says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lthfunc import hardware


def test_cores_are_those_of_affinity_and_joblib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    assert hardware.usable_cores() == pytest.importorskip("joblib").cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    for limit, cores in ((-1, 3), (50_000, 1), (100_000, 1), (150_000, 2), (900_000, 3)):
        monkeypatch.setattr(hardware, "_cpu_limit", lambda groups, limit=limit: (limit, 100_000))
        assert hardware.usable_cores() == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, (-1, 1)),
        ({"cpu.max": "max 100000\n"}, (-1, 1)),
        ({"cpu.max": "150000 100000\n"}, (150_000, 100_000)),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "50000\n"}, (250_000, 50_000)),
    ],
)
def test_a_containers_limit_is_read(tmp_path: Path, files: dict[str, str], limit: tuple[int, int]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware._cpu_limit(tmp_path) == limit
