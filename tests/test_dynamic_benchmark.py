"""The benchmark of trainings whose masks change runs and writes what it promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lthfunc_cli.main import main

from lthfunc.sparse.kernels.build import why_no_kernels


def test_trainings_with_changing_masks_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("benchmarks.dynamic.DENSE_ENGINE", "eager")  # nothing to compile
    monkeypatch.setattr("benchmarks.dynamic.peak_rate", lambda device: 1e11)
    measured = tmp_path / "dynamic.json"
    options = ["--network", "lenet300", "--density", "0.05", "--steps", "5", "--every", "2", "--repeats", "2"]
    options += ["--allocate", "uniform"]
    assert main(["benchmark", "dynamic", *options, "--json", str(measured)]) == 0
    found = {(each["variant"], each["density"]): each for each in json.loads(measured.read_text())["records"]}
    assert len(found) == 7
    assert {("lthfunc, compile", 1.0), ("lthfunc, sparse, RigL", 0.05), ("PyTorch, masks, RigL", 0.05)} < {*found}
    assert all(each["median"] > 0 for each in found.values())
    assert found["lthfunc, sparse, SET", 0.05]["repeats"] == 2
    # Of all layers as many products are left; the first has no gradient of its inputs.
    products = 2 * 60 * (3 * 266_200 - 784 * 300)
    assert found["FLOPs at peak rate", 0.05]["median"] == pytest.approx(20 * 1e11 / products, rel=1e-3)
    told = capsys.readouterr().err
    assert "lenet300, lthfunc, sparse, RigL at 0.05: training 2 of 2, 5 steps" in told


@pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
def test_training_at_scale_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("benchmarks.dynamic_scale.SIDES", (30, 20_000, 20_000, 10))
    monkeypatch.setattr("benchmarks.dynamic_scale.SURVIVORS", 2_000)
    measured = tmp_path / "scale.json"
    options = ["--scale", "--steps", "5", "--every", "2", "--repeats", "2", "--json", str(measured)]
    assert main(["benchmark", "dynamic", *options]) == 0
    fixed, changing, rigl = json.loads(measured.read_text())["records"]
    assert (fixed["variant"], changing["variant"]) == ("lthfunc, packed, fixed", "lthfunc, packed, SET")
    assert rigl["variant"] == "lthfunc, packed, RigL"
    assert fixed["repeats"] == changing["repeats"] == rigl["repeats"] == 2
    assert changing["weights"] == 30 * 20_000 + 20_000**2 + 200_000
    assert changing["survivors"] == 2_000
    assert changing["bytes of the state"] > changing["least bytes"] == 32_000
    assert "bytes a survivor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", "--steps", "4", "--every", "2"], "--steps: invalid value 4"),
        (["--scale", "--density", "0.1"], "--scale: invalid value"),
        (["--scale", "--allocate", "uniform"], "--scale: invalid value"),
        (["--network", "nothing"], "--network: unknown name 'nothing'"),
        (["--density", "1.5"], "--density: invalid value 1.5"),
        (["--allocate", "lamp"], "--allocate: invalid value 'lamp' (expected erk or uniform)"),
        (["--every", "0"], "--every: invalid value 0"),
        (["--steps", "100"], "--steps: invalid value 100"),
    ],
)
def test_what_it_cannot_measure_is_refused(options: list[str], words: str, capsys: Any) -> None:
    assert main(["benchmark", "dynamic", *options]) == 2
    assert words in capsys.readouterr().err
