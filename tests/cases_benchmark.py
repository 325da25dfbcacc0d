"""The benchmark of GPU kernels, in its tiny mode where Triton's interpreter runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE

from benchmarks import kernels
from benchmarks.floors import PEAK


@pytest.mark.skipif(DEVICE != "cpu", reason="lthfunc benchmark kernels runs it on a card")
def test_kernels_are_timed_beside_compiled_pytorch(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kernel, and what stands beside it; nothing is left out."""
    monkeypatch.setattr(kernels, "peak_rate", lambda *given: 1e12)  # which takes its time
    table = tmp_path / "kernels.json"
    arguments = ["--device", "cpu", "--seconds", "1e-6", "--repeats", "1"]
    kernels.main([*arguments, "--json", str(table)])
    assert "left out" not in capsys.readouterr().err
    found = {(item["network"].split()[0], item["variant"]) for item in json.loads(table.read_text())["records"]}
    beside = {"masked_adam": "compiled", "masked_linear": "compiled", "block_linear": "compiled"}
    beside["resident"] = "lthfunc, engine"
    assert found == {(name, variant) for name in beside for variant in ("lthfunc, kernel", beside[name], PEAK)}


@pytest.mark.parametrize(("density", "size"), [(0.2, (2, 3, 20, 24)), (0.5, (1, 5, 8, 40))])
def test_what_stands_beside_them_computes_the_same(
    density: float, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what compiled PyTorch gives, kernels are held as they are called there."""
    calls: dict[str, Any] = {}
    monkeypatch.setattr(kernels, "_program", lambda call, device: calls.setdefault("kernel", call))
    monkeypatch.setattr(kernels, "_compiled", lambda function, device, *given: lambda: function(*given))
    networks, batch, outputs, inputs = size
    sizes = kernels._TINY._replace(layer=(outputs, inputs), batch=batch)
    torch.manual_seed(0)
    makes: tuple[Callable[[], Any], ...] = (
        lambda: kernels._adam(sizes, networks, DEVICE, torch.float32, "ieee"),
        lambda: kernels._linear(sizes, networks, DEVICE, torch.float32, "ieee"),
        lambda: kernels._blocks(64, 32, batch, density, DEVICE, torch.float32, "ieee"),
    )
    for make in makes:
        calls.clear()
        compiled = make().variants[kernels.COMPILED]
        # Of blocks' gradients only those that are left are there.
        for mine, theirs in zip(calls["kernel"](), compiled(), strict=True):
            if mine.shape == theirs.shape:
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
