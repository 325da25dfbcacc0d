"""The benchmarks run and write what they promise; their figures are not judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from lthfunc_cli.main import main

import lthfunc as lf
from benchmarks.chart import draw
from benchmarks.commands import _QUICK, _run, main as commands
from benchmarks.records import FLOPS, MOVED
from lthfunc.errors import UserError
from lthfunc.training.engines.toolchain import why_not

KEYS = {
    "network", "variant", "device", "threads", "batch", "density", "precision", "unit", "min", "median", "max",
    "repeats",
}  # fmt: skip


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.skipif(why_not("cpu") is not None, reason=f"{why_not('cpu')}")
def test_the_sparse_benchmark_measures_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.sparse._QUICK_SECONDS", 0.02)
    monkeypatch.setattr("lthfunc.training.engines.compiled.compiled", lambda function, example, name: function)
    ticket, table, picture = (tmp_path / name for name in ("ticket.safetensors", "result.json", "result.png"))
    lf.save_ticket(ticket, lf.ticket(lf.prune(density=0.3)(lf.init(lf.models.lenet300()))))
    places = ["--ticket", ticket, "--json", table, "--plot", picture]
    assert main(["benchmark", "sparse", "--quick", "--density", "0.05", *map(str, places)]) == 0
    records = json.loads(table.read_text())["records"]
    assert all(set(item) == KEYS for item in records)
    found = {(item["network"], item["variant"], item["density"]) for item in records}
    assert {("lenet300", "lthfunc, compile", 1.0), ("lenet300", "lthfunc, sparse", 0.05)} <= found
    assert ("lenet300", "lthfunc, sparse, ticket", 0.3) in found
    assert {density for _, variant, density in found if variant == "lthfunc, sparse"} == {0.05}
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
@pytest.mark.skipif(why_not("cpu") is not None, reason=f"{why_not('cpu')}")
def test_the_execution_benchmark_measures_random_masks_and_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.execution._QUICK_SECONDS", 0.01)
    monkeypatch.setattr("lthfunc.deployment.compiled.why_not", lambda device: "not in this test")
    for name in ("autotune._SECONDS", "autotune._LAYER_SECONDS", "compiled._SECONDS"):
        monkeypatch.setattr(f"lthfunc.deployment.{name}", 0.001)
    folder, table, picture = (tmp_path / name for name in ("RUN", "result.json", "result.png"))
    assert main(["benchmark", "execution", "--quick", "--json", str(table), "--plot", str(picture)]) == 0
    records = json.loads(table.read_text())["records"]
    assert all(set(item) == KEYS for item in records)
    found = {(item["variant"], item["density"], item["unit"]) for item in records}
    for unit in ("samples/s", "ms, p50", "ms, p95"):
        assert {("dense", 1.0, unit), ("sparse", 0.05, unit), ("compact", 0.05, unit), ("tuned", 0.05, unit)} <= found
    assert ("FLOPs at peak rate", 0.05, "samples/s") in found
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main(["prune", "--rounds", "2", "--rate", "0.7", "--steps", "5", "--out", str(folder)]) == 0
    assert main(["benchmark", "execution", str(folder), "--quick", "--batch", "1", "--json", str(table)]) == 0
    records = json.loads(table.read_text())["records"]
    assert {(item["network"], item["batch"]) for item in records} == {("lenet300, trained", 1)}
    assert {item["density"] for item in records if item["variant"] == "tuned"} == {0.3, 0.09}


def test_without_a_clone_one_line_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lthfunc_cli.benchmark.__file__", str(tmp_path / "site-packages" / "cli" / "benchmark.py"))
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "memory"]) == 2
    assert capsys.readouterr().err.startswith(
        "lthfunc: benchmark: the measurements are not installed; run this command"
    )
    monkeypatch.chdir(ROOT)
    assert main(["benchmark", "memory", "--rounds", "x"]) == 2
    assert "--rounds: invalid value 'x' (expected a whole number)" in capsys.readouterr().err
    for path in ("nowhere/memory.json", str(tmp_path)):  # told before anything is measured
        assert main(["benchmark", "memory", "--rounds", "1", "--json", path]) == 2
        assert f"--json: invalid value {path!r} (expected a file in a" in capsys.readouterr().err


def test_the_floor_counts_every_product_of_a_step() -> None:
    """Against arithmetic by hand: LeNet-300-100's three layers, the first without a gradient of its input."""
    from benchmarks.floors import products

    run, flops = products(lf.models.lenet300(), torch.randn(60, 1, 28, 28))
    assert flops == 2 * 60 * (2 * 784 * 300 + 3 * 300 * 100 + 3 * 100 * 10)
    run(1)
    _, flops = products(lf.models.lenet5(), torch.randn(10, 1, 28, 28))
    convolutions = 2 * 28 * 28 * 6 * 25 + 3 * 10 * 10 * 16 * 6 * 25
    assert flops == 2 * 10 * (convolutions + 3 * (400 * 120 + 120 * 84 + 84 * 10))


@pytest.mark.parametrize("benchmark", ["training", "sparse", "execution", "attach", "optimizers", "sparse-module"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--network", "lenet6"], "--network: unknown name 'lenet6'; did you mean 'lenet5'?"),
        (["--threads", "0"], "--threads: invalid value 0"),
        (["--device", "cuda:9"], "--device: invalid value 'cuda:9'"),
    ],
)
def test_a_benchmark_refuses_what_it_cannot_measure(
    benchmark: str, options: list[str], words: str, capsys: Any
) -> None:
    refused(benchmark, options, words, capsys)


@pytest.mark.parametrize(
    ("benchmark", "options", "words"),
    [
        ("training", ["--density", "0"], "--density: invalid value 0.0"),
        ("training", ["--precision", "tf32"], "--precision: invalid value 'tf32'"),
        ("checkpoints", ["--network", "lenet"], "--network: unknown name 'lenet'"),
        ("execution", ["--batch", "0"], "--batch: invalid value 0"),
        ("execution", ["--precision", "bf16"], "--precision: invalid value 'bf16' (expected fp32 on a CPU"),
        (
            "kernels",
            ["--device", "cpu"],
            "--device: invalid value 'cpu' (expected cuda or cuda:N; with TRITON_INTERP",
        ),
        ("execution", ["nowhere"], "nowhere: is not a run folder"),
        ("sparse", ["--density", "2"], "--density: invalid value 2.0 (expected a number in (0, 1])"),
        ("sparse", ["--ticket", "t.safetensors"], "--ticket: invalid value 't.safetensors' (expected one --network"),
    ],
)
def test_a_benchmark_refuses_settings_of_its_own(benchmark: str, options: list[str], words: str, capsys: Any) -> None:
    refused(benchmark, options, words, capsys)


def refused(benchmark: str, options: list[str], words: str, capsys: Any) -> None:
    assert main(["benchmark", benchmark, *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_the_gpu_suite_names_what_there_is() -> None:
    suite = ROOT / "benchmarks" / "gpu_suite.sh"
    assert run("bash", "-n", str(suite)).returncode == 0
    programs = re.findall(r"-m (benchmarks\.\w+)", suite.read_text())
    files = re.findall(r"tests/\w+\.py", suite.read_text())
    assert len(programs) == 2
    assert len(files) == 3
    assert all(map(importlib.util.find_spec, programs))
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the suite itself would run")
@pytest.mark.skipif(why_not("cpu") is not None, reason=f"{why_not('cpu')}")
def test_the_gpu_suite_runs_in_its_tiny_cpu_mode(tmp_path: Path) -> None:
    done = run("bash", "benchmarks/gpu_suite.sh", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "gpu-tests-cpu.xml", "gpu-kernel-tests-cpu.xml", "checkpoints-cpu.json", "cpu",
    }  # fmt: skip
    _check_checkpoints(json.loads((tmp_path / "checkpoints-cpu.json").read_text()))
    parts = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "cpu").iterdir()}
    summary = parts.pop("summary")
    assert set(parts) == {"training-lenet300", "replicates-lenet300-bf16"}, summary["left_out"]
    for part in parts.values():
        assert all(set(item) == KEYS | {FLOPS, MOVED} for item in part["records"])
    assert {(line["variant"], line["networks"]) for line in summary["records"]} == {
        ("lthfunc, compile", 1), ("lthfunc, compile, dense", 1), ("1 side by side", 1), ("2 side by side", 2),
    }  # fmt: skip
    assert run("bash", "benchmarks/gpu_suite.sh").returncode != 0, "no folder named, nothing overwritten"
    _check_training(parts["training-lenet300"], tmp_path / "result.png")


def _check_training(result: dict[str, Any], picture: Path) -> None:
    """Every variant was measured, and can be drawn."""
    assert result["machine"]["torch"] == torch.__version__
    rates = {item["variant"]: item for item in result["records"]}
    assert {"lthfunc, compile", "lthfunc, compile, dense", "lthfunc, eager", "argparse script", "products alone"} < set(
        rates
    )
    for item in rates.values():
        assert 0 < item["min"] <= item["median"] <= item["max"]
    assert rates["lthfunc, compile, dense"]["density"] == 1
    draw(str(picture), result["records"], "a title")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def _check_checkpoints(result: dict[str, Any]) -> None:
    """Both kinds were measured."""
    with_, without = result["records"]
    assert (with_["checkpoint_every"], without["checkpoint_every"]) == ("1s", "never")
    assert with_["checkpoints"] >= 1
    assert without["checkpoints"] == without["share"] == 0


def test_the_cost_of_attaching_is_measured(tmp_path: Path) -> None:
    measured = tmp_path / "attach.json"
    options = ["--network", "lenet300", "--optimizer", "sgd", "--seconds", "0.005", "--repeats", "2"]
    assert main(["benchmark", "attach", *options, "--json", str(measured)]) == 0
    plain, attached = json.loads(measured.read_text())["records"]
    assert (plain["engine"], attached["engine"], attached["repeats"]) == ("plain loop", "lf.attach", 2)
    assert attached["cost of a step, %"] > -90


def test_the_cost_of_parts_is_measured(tmp_path: Path) -> None:
    measured = tmp_path / "optimizers.json"
    options = ["--engine", "sparse", "--part", "all", "--seconds", "0.005", "--repeats", "2", "--density", "0.05"]
    assert main(["benchmark", "optimizers", *options, "--json", str(measured)]) == 0
    plain, together = json.loads(measured.read_text())["records"]
    assert (plain["part"], plain["cost of a step, %"], together["part"]) == ("adamw", 0.0, "all")
    assert together["cost of a step, %"] > -90


def test_the_gain_of_a_sparse_module_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)
    measured = tmp_path / "sparse.json"
    options = ["--network", "lenet300", "--optimizer", "sgd", "--seconds", "0.005", "--repeats", "2"]
    assert main(["benchmark", "sparse-module", *options, "--json", str(measured)]) == 0
    found = {each["engine"]: each["median"] for each in json.loads(measured.read_text())["records"]}
    assert len(found) == 5
    assert {"plain loop, lf.sparse_module", "the machine alone", "FLOPs at peak rate"} < {*found}
    assert all(rate > 0 for rate in found.values())


@pytest.mark.long
def test_whole_commands_are_clocked() -> None:
    with pytest.raises(UserError, match=r"--repeats: invalid value 0 \(expected a whole number of at least 1"):
        commands(["--repeats", "0"])
    with pytest.raises(UserError, match="--arch: unknown name 'nothing'"):
        _run(("prune", "--arch", "nothing"), "auto")
    found = _run(_QUICK, "auto, one core")
    assert 0 < found["s to the first step"] < found["s"]
    steps, evaluation = found["share of steps from there"], found["share of evaluation from there"]
    assert steps > 0
    assert evaluation > 0
    assert steps + evaluation < 1


@pytest.mark.long
def test_memory_stays_flat_over_fifty_rounds(tmp_path: Path) -> None:
    """A round leaves its line, some kilobytes; trees of earlier rounds are gone."""
    done = run(
        sys.executable, "-m", "lthfunc_cli", "benchmark", "memory", "--rounds", "50", "--json", tmp_path / "m.json"
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "m.json").read_text())["records"]
    mib = [value for _, value in sorted(record["mib"].items(), key=lambda item: int(item[0]))]
    assert len(mib) == 11
    assert mib[-1] - mib[1] < 4, mib


@pytest.mark.long
@pytest.mark.slow
def test_the_scale_benchmark_puts_a_model_beside_its_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("benchmarks.scale._QUICK_SECONDS", 0.05)
    table = tmp_path / "result.json"
    able = os.geteuid() == 0 and all(map(shutil.which, ("ip", "tc", "unshare")))
    shaped = able and run("unshare", "-n", "ip", "link", "add", "x", "type", "bridge").returncode == 0
    rate = ["--rate", "100"] if shaped else []
    assert main(["benchmark", "scale", "--quick", "--engine", "eager", *rate, "--json", str(table)]) == 0
    assert "half at" in capsys.readouterr().out
    dense, sparse, *over_links = json.loads(table.read_text())["records"]
    assert len(over_links) == (2 if shaped else 0)
    for item in over_links:  # bytes cannot pass a link faster than it lets them
        assert item["median"] / 1000 > 0.8 * item["modelled_bytes"] / (item["rate_mbit"] * 1e6 / 8)
    assert set(dense) > KEYS
    assert (dense["density"], sparse["density"], dense["ranks"]) == (1.0, 0.1, 2)
    for item in (dense, sparse):
        assert 0 < item["min"] <= item["median"] <= item["max"]
        assert item["modelled"] > 0
    if dense["bytes_per_step"]:  # where the system counts them
        assert sparse["bytes_per_step"] <= 0.12 * dense["bytes_per_step"]
        assert dense["bytes_per_step"] == pytest.approx(dense["modelled_bytes"], rel=0.2)
    for options, told in (
        (["--ranks", "7"], "--ranks: invalid value 7 (expected numbers that divide the batch of lenet300, 60"),
        (["--density", "0"], "--density: invalid value 0.0"),
        (["--rate", "0.5"], "--rate: invalid value 0.5"),
        (["--engine", "sparse"], "--engine: invalid value 'sparse'"),
        (["--network", "lenet"], "--network: unknown name 'lenet'"),
    ):
        assert main(["benchmark", "scale", "--quick", *options]) == 2
        assert told in capsys.readouterr().err
