"""The benchmark of everything on a GPU: sized to its time, written as it ends, and floors and peers as graphs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from lthfunc_cli.main import main
from pretended import Machine

import lthfunc as lf
from benchmarks import floors, gpu
from benchmarks.graphed import graphed, runnable
from benchmarks.kernels import KERNEL
from benchmarks.records import FLOPS, MOVED
from lthfunc.deployment import timing


def rates(variant: str, median: float, **about: Any) -> dict[str, Any]:
    given = {"network": "lenet300", "precision": "fp32", "density": 0.2, "unit": "steps/s", FLOPS: 10**9, MOVED: 10**7}
    given.update(about)
    return {**given, "variant": variant, "min": median, "median": median, "max": median, "repeats": 5}


TRAINING = [
    rates("lthfunc, compile", 900.0), rates("lthfunc, compile, dense", 800.0), rates("argparse script", 90.0),
    rates("nn.utils.prune, fused Adam", 300.0), rates("tuned plain loop, dense", 500.0),
    rates("tuned plain loop as one graph, dense", 1000.0), rates("products alone", 2000.0),
    rates("lthfunc, compile, masks as bools", 950.0), rates("FLOPs at peak rate", 9000.0),
    rates("bytes at reading rate", 20000.0),
]  # fmt: skip
REPLICATES = [
    rates("1 side by side", 850.0), rates("64 side by side", 400.0),
    rates("64 side by side, torch.func compiled", 200.0), rates("64 side by side, products alone", 1600.0),
    rates("64 side by side, launched one by one", 100.0), rates("64 side by side, FLOPs at peak rate", 500.0),
    rates("64 side by side, bytes at reading rate", 4000.0),
]  # fmt: skip


def test_the_summary_compares_like_with_like() -> None:
    """A masked network with peers that mask, a dense one with all of them."""
    found = {(line["variant"], line["networks"]): line for line in gpu.summary([*TRAINING, *REPLICATES])}
    ours = found["lthfunc, compile", 1]
    assert (ours["peer"], ours["over peer"], ours["of floor"]) == ("nn.utils.prune, fused Adam", 3.0, 0.45)
    dense = found["lthfunc, compile, dense", 1]
    assert (dense["peer"], dense["over peer"]) == ("tuned plain loop as one graph, dense", 0.8)
    assert (dense["of the card's FLOP/s"], dense["of the card's bytes/s"]) == (round(800 / 9000, 3), 0.04)
    many = found["64 side by side", 64]
    assert (many["ours"], many["peers"], many["over peer"], many["of floor"]) == (400.0, 200.0, 2.0, 0.25)
    assert (many["FLOP/s"], many["the card's FLOP/s"], many["of the card's FLOP/s"]) == (25.6e12, 32e12, 0.8)
    assert (many["bytes/s"], many["the card's bytes/s"], many["of the card's bytes/s"]) == (256e9, 2.56e12, 0.1)
    launched = found["64 side by side, launched one by one", 64]
    assert (launched["ours"], launched["over peer"], launched["of the card's FLOP/s"]) == (100.0, 0.5, 0.2)
    alone = found["1 side by side", 1]
    assert (alone["peer"], alone["over peer"], alone["of floor"]) == (None, None, None)


def test_kernels_are_summed_up_beside_what_pytorch_makes_of_the_same() -> None:
    given = {"network": "masked_adam 300×784, K = 64", "unit": "calls/s"}
    found = [
        rates("lthfunc, kernel", 600.0, **given), rates("compiled", 400.0, **given),
        rates("FLOPs at peak rate", 2400.0, **given), rates("bytes at reading rate", 1200.0, **given),
        rates("lthfunc, engine", 900.0, **given),
    ]  # fmt: skip
    (line,) = gpu.summary(found)
    assert (line["variant"], line["peer"], line["over peer"], line["unit"]) == (KERNEL, "compiled", 1.5, "calls/s")
    assert (line["of the card's FLOP/s"], line["of the card's bytes/s"], line["floor"]) == (0.25, 0.5, None)
    assert {part.arguments[2] for part in gpu.parts_on("cuda") if part.arguments[0] == "kernels"} == {"fp32", "bf16"}


class Clock:
    """Time that passes in parts alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_parts_are_written_as_they_end_and_share_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    clock, taken = Clock(), dict[str, list[str]]()
    parts = [gpu.Part("first", 0.5, 5, ("training",)), gpu.Part("hangs", 0.25, 5, ("replicates",)),
             gpu.Part("fails", 0.125, 5, ("execution",)), gpu.Part("last", 0.125, 5, ("training",))]  # fmt: skip

    def process(command: list[str], timeout: float, **how: Any) -> Any:
        if "--json" not in command:
            clock.now += 1
            return subprocess.CompletedProcess(command, 0, stderr="")
        path = Path(command[command.index("--json") + 1])
        taken[path.stem] = command
        if path.stem == "hangs":
            assert (tmp_path / "first.json").exists(), "what ended before is on the disk"
            assert json.loads((tmp_path / "summary.json").read_text())["records"]
            clock.now += timeout
            raise subprocess.TimeoutExpired(command, timeout)
        clock.now += 10
        if path.stem == "fails":
            return subprocess.CompletedProcess(command, 1, stderr="Traceback\nRuntimeError: no kernel")
        path.write_text(json.dumps({"records": TRAINING if path.stem == "first" else REPLICATES}))
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(gpu, "parts_on", lambda device: parts)
    monkeypatch.setattr(gpu, "_LONGEST", {"cpu": 100.0})
    monkeypatch.setattr(subprocess, "run", process)
    monkeypatch.setattr("benchmarks.gpu.time.monotonic", clock.monotonic)
    (tmp_path / "hangs.json").write_text("{}")
    assert main(["benchmark", "gpu", "--minutes", "2", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert list(taken) == ["first", "hangs", "fails", "last"]
    assert clock.now < 120
    assert not (tmp_path / "hangs.json").exists(), "an older result is none of this run"
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["left_out"] == [
        f"hangs: stopped after {1.5 * (120 - 10) * 0.25 / 0.5:.0f} s, since its time was over",
        "fails: failed (RuntimeError: no kernel)",
    ]
    assert {line["networks"] for line in written["records"]} == {1, 64}
    seconds = {name: float(command[command.index("--seconds") + 1]) for name, command in taken.items()}
    assert seconds["first"] == pytest.approx(0.6 * 0.5 * 120 / 30, abs=1e-3)
    assert seconds["last"] > seconds["fails"], "what others leave over is the last one's"
    assert "products" not in capsys.readouterr().err
    before = clock.now
    gpu.warm(parts, "cuda", 60.0)
    assert clock.now - before == 3, "all but those of programs are compiled beforehand"
    assert main(["benchmark", "gpu", "--minutes", "0", "--device", "cpu"]) == 2
    assert "--minutes: invalid value 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:1"])
def test_a_graphed_call_does_what_the_call_does(gpus: Machine, device: str) -> None:
    total = torch.zeros((), device=device)
    call = graphed(lambda: total.add_(1), device)
    before = float(total)
    for _ in range(3):
        call()
    assert float(total) - before == 3
    assert len(gpus.captures) == (device != "cpu")


def test_products_are_one_graph_of_all_layers(gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of which is timed in a graph of many calls, on its own device."""
    a, b = torch.randn(2, 8, 8).to("cuda:1")
    floors._seconds(lambda: torch.mm(a, b), "cuda:1", repeats=2)
    assert gpus.captures == [(floors._CALLS, "thread_local")]
    jobs = [[floors.Job(lambda: torch.mm(a, b), 1024)], [floors.Job(lambda: torch.mm(b, a), 1024)]]
    monkeypatch.setattr(floors, "_layers", lambda *layers: jobs)
    run, flops = floors.products(lf.models.lenet300(), a)
    assert flops == 2048
    assert gpus.captures[-1][0] == 2
    before = gpus.stream(1).begun + len(gpus.stream(1).waiting)
    run(3)
    assert gpus.stream(1).begun + len(gpus.stream(1).waiting) == before + 3 * 2


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_timing_is_of_the_device_s_own_stream(gpus: Machine, device: str) -> None:
    """Which takes a millisecond for each piece of work here, and whose current device is another."""
    total = torch.zeros((), device=device)
    total.add_(1)  # done before anything is timed
    assert timing.seconds_of(lambda: [total.add_(1) for _ in range(5)], device) == 0.005
    runs = {each: timing.repeated(lambda: total.add_(1)) for each in "ab"}
    (rate, *_), _ = timing.in_turn(runs, seconds=0.03, repeats=2, device=device).values()
    assert rate == 1000.0


def test_floors_are_in_the_precision_of_the_training(gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def seconds(run: Any, device: str, **how: int) -> float:
        seen.append((run().dtype, torch.get_float32_matmul_precision()))
        return 1.0

    monkeypatch.setattr(floors, "_seconds", seconds)
    for precision in ("fp32", "tf32", "bf16"):
        floors.peak_rate("cpu", precision)
        floors.products(lf.models.lenet300((1, 8, 8), 10), torch.randn(2, 1, 8, 8), 1, precision)
    kinds = dict.fromkeys(seen)
    assert list(kinds) == [(torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "highest")]


def test_a_peer_that_fails_is_left_out_and_told(capsys: Any) -> None:
    def failing(calls: int) -> None:
        raise RuntimeError("no such kernel\nand more")

    ran: list[int] = []
    found = runnable({"ours": ran.append, "peer": failing}, lambda name: name == "ours")
    assert (list(found), ran) == (["ours"], [1])
    assert capsys.readouterr().err == "left out: peer (RuntimeError: no such kernel)\n"
    with pytest.raises(RuntimeError):
        runnable({"ours": failing}, lambda name: name == "ours")


def test_several_networks_products_are_batched() -> None:
    """As many FLOPs as so many networks have, by batched products of the same sizes."""
    model = lf.models.lenet300((1, 8, 8), 10)
    x = torch.randn(12, 1, 8, 8)
    run, flops = floors.products(model, x, 3)
    assert flops == 3 * floors.products(model, x)[1]
    run(1)
    state = lf.init(model)
    weights = 64 * 300 + 300 * 100 + 100 * 10
    assert floors.step_bytes(state.params, state.masks) == 6 * 4 * (weights + 410) + weights
    with pytest.raises(ValueError, match="convolutions of several networks"):
        floors.products(lf.models.lenet5((1, 28, 28)), torch.randn(2, 1, 28, 28), 2)
