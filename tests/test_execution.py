"""Programs of tickets: equal outputs in every form and format, measured choices, costs counted by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_compact import ARCHS, broken, named
from torch import nn
from torch.func import functional_call

import lthfunc as lf
from lthfunc.catalog.deployment import FORMATS
from lthfunc.deployment import autotune, compiled as compiling_module
from lthfunc.deployment.candidates import masked_module
from lthfunc.deployment.formats import block_density
from lthfunc.deployment.tuning_cache import TuningCache
from lthfunc.errors import UserError
from lthfunc.reports.program_tables import form_table, steadiness_line
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.trees.types import Ticket

compiling = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
int8 = pytest.param(
    "int8", marks=pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
)


def outputs(model: lf.Model, ticket: Ticket, x: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = functional_call(model.evaluating, (ticket.params, ticket.buffers), (x,))
    return found


def blocked(model: lf.Model, size: int, seed: int = 0) -> Ticket:
    """A ticket of whole blocks, some rows and columns of them empty."""
    state = lf.init(model, seed)
    masks = {}
    for name, mask in state.masks.items():
        rows, columns = (side // size for side in mask.shape)
        draw = torch.Generator().manual_seed(seed)
        keep = torch.rand(rows, columns, generator=draw) < 0.3
        masks[name] = keep.repeat_interleave(size, 0).repeat_interleave(size, 1)
    return Ticket(lf.apply_masks(state.params, masks), {}, masks)


@compiling
@pytest.mark.parametrize("arch", [*ARCHS, "block"])
@pytest.mark.parametrize("format", ["dense", "compact", "sparse", "listed", "csr"])
def test_every_format_computes_what_the_masked_network_does(
    arch: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape = named(arch)
    if arch != "lenet300":  # slow to compile; what is compiled is the same
        monkeypatch.setattr(compiling_module, "why_not", lambda device: "not in this test")
    ticket = broken(model, 0.1, seed=2, dtype=torch.float32)
    for examples in (1, 19) if arch.startswith("lenet") else (5,):
        x = torch.randn(examples, *shape, generator=torch.Generator().manual_seed(0))
        program = lf.specialize(ticket, model, x, format=format)
        wanted = outputs(model, ticket, x)
        assert float((program(x) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
        assert program.report.difference <= 1e-4
        assert program.report.form == (format if FORMATS[format].whole else "layers")


def test_a_network_that_views_its_images_is_compiled_in_the_plain_layout() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(128, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(self.conv(x).view(-1, 128))
            return out

    model = lf.from_module(Viewing())
    ticket = lf.ticket(lf.init(model))
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(lf.specialize(ticket, model, x, format="dense")(x), outputs(model, ticket, x))


@compiling
@pytest.mark.parametrize("layout", compiling_module._LAYOUTS)
def test_images_of_one_channel_lie_as_the_code_expects_in_either_layout(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along a side of one, images of any stride are contiguous in both layouts at once."""
    prefer = lambda runs, **settings: {each: [float(each == layout)] for each in runs}  # noqa: E731
    monkeypatch.setattr(compiling_module, "in_turn", prefer)
    model = lf.models.lenet5((1, 28, 28))
    ticket = broken(model, 0.1, seed=2, dtype=torch.float32)
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    wanted = outputs(model, ticket, x)
    program = compiling_module.Compiled(masked_module(model, ticket), "lenet5")
    for strides in ((784, 784, 28, 1), (784, 1, 28, 1), (784, 5, 28, 1)):
        given = x.as_strided(x.shape, strides)
        torch.testing.assert_close(program(given), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    wider = torch.stack([x[:, 0], -x[:, 0]], 1)[:, :1]  # contiguous in neither
    torch.testing.assert_close(program(wider), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("arch", ARCHS)
def test_layer_formats_hold_on_every_architecture_in_double_precision(arch: str) -> None:
    """Those of torch itself, to 1e-10: csr where there are linear layers."""
    model, shape = named(arch)
    ticket = broken(model, 0.2, seed=4)
    x = torch.randn(5, *shape, dtype=torch.float64)
    program = lf.specialize(ticket, model, x, format="csr")
    wanted = outputs(model, ticket, x)
    assert float((program(x) - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())


def test_blocks_are_found_and_computed() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64)))
    ticket = blocked(model, 16)
    assert block_density(ticket.masks["0.weight"], 16) == lf.density({"": ticket.masks["0.weight"]})
    x = torch.randn(8, 128)
    program = lf.specialize(ticket, model, x, format="block")
    assert program.report.formats == {"0": "block", "2": "block"}
    torch.testing.assert_close(program(x), outputs(model, ticket, x), rtol=0, atol=1e-5)
    assert program.network.get_submodule("0").weight.layout is torch.sparse_bsr


@pytest.mark.parametrize("format", [int8])
def test_rounded_formats_say_by_how_much(format: str) -> None:
    model = lf.models.lenet300((1, 8, 8))
    ticket = broken(model, 0.5, seed=1, dtype=torch.float32)
    x = torch.randn(32, 1, 8, 8)
    program = lf.specialize(ticket, model, x, format=format)
    wanted = outputs(model, ticket, x)
    measured = float((program(x) - wanted).abs().max() / wanted.abs().max())
    assert 1e-4 < measured < 0.1
    assert program.report.difference == pytest.approx(measured)
    assert program.report.bytes[1] < program.report.bytes[0] / 2


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("2:4", "2:4 needs a CUDA device: not for fc1"),
        ("block", "block finds no block size .* divides 300×64 .*: not for fc1"),
        ("spars", "^format: unknown name 'spars'; did you mean 'sparse'"),
    ],
)
def test_a_format_that_cannot_be_had_says_why(format: str, words: str) -> None:
    model = lf.models.lenet300((1, 8, 8))
    ticket = lf.ticket(lf.prune(density=0.9)(lf.init(model)))
    with pytest.raises(UserError, match=words):
        lf.specialize(ticket, model, torch.randn(2, 1, 8, 8), format=format)
    with pytest.raises(UserError, match=r"^sample: invalid value \(0, 1, 8, 8\) \(expected one example or more\)$"):
        lf.specialize(ticket, model, torch.randn(0, 1, 8, 8))


def test_where_compacting_fails_other_forms_stay() -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(x) * len(x) ** 0.5
            return out

    model = lf.from_module(Rooted())
    ticket = lf.ticket(lf.prune(density=0.5)(lf.init(model)))
    x = torch.randn(3, 4)
    torch.testing.assert_close(lf.specialize(ticket, model, x, format="dense")(x), outputs(model, ticket, x))
    with pytest.raises(
        UserError, match=r"Rooted cannot be compacted: mul depends on the batch size \(line \d+ of .*\)$"
    ):
        lf.specialize(ticket, model, x, format="compact")


def fake_clock(monkeypatch: pytest.MonkeyPatch, rates: dict[str, list[float]]) -> list[set[str]]:
    """Timings as told, of programs that need not be compiled for them; the names asked for."""
    monkeypatch.setattr(compiling_module, "why_not", lambda device: "not in this test")
    asked: list[set[str]] = []

    def in_turn(runs: dict[str, Any], **settings: Any) -> dict[str, list[float]]:
        asked.append(set(runs))
        for run in runs.values():
            run(1)
        return {name: rates.get(name, [1.0] * 9) for name in runs}

    monkeypatch.setattr(autotune, "in_turn", in_turn)
    return asked


@compiling
@pytest.mark.parametrize(
    ("rates", "form"),
    [
        ({"sparse": [5.0] * 9, "compact": [3.0] * 9}, "sparse"),
        ({"compact": [1.02] * 9, "sparse": [1.01] * 9}, "dense"),  # a tie
        ({"sparse": [0.5] * 9}, "dense"),
        ({"sparse": [2.0] * 5 + [0.5] * 4}, "dense"),  # faster in the middle, and not often enough
    ],
)
def test_the_fastest_is_chosen_and_dense_wins_ties(
    monkeypatch: pytest.MonkeyPatch, rates: dict[str, list[float]], form: str
) -> None:
    model = lf.models.lenet300((1, 8, 8))
    fake_clock(monkeypatch, rates)
    program = lf.specialize(broken(model, 0.1, 0, dtype=torch.float32), model, torch.randn(4, 1, 8, 8))
    assert program.report.form == form
    assert program.report.measured is not None
    assert program.report.measured.batch == 4


@compiling
def test_times_that_vary_are_measured_again_and_give_no_ratio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, file = lf.models.lenet300((1, 8, 8)), tmp_path / "tunings.json"
    ticket, x = broken(model, 0.1, 0, dtype=torch.float32), torch.randn(4, 1, 8, 8)
    loaded = {"dense": [1.0, 1.0, 300.0] * 3, "sparse": [325.0] * 9}  # others run on the machine
    asked = fake_clock(monkeypatch, loaded)
    report = lf.specialize(ticket, model, x, tunings=file).report
    assert len([names for names in asked if "sparse" in names]) == 3
    assert report.measured is not None
    assert (report.form, report.measured.speedup("sparse")) == ("sparse", None)
    assert report.measured.spread("dense") > 0.9
    assert "Times of dense vary" in str(steadiness_line(report))
    table = form_table(report)
    assert table is not None
    assert next(iter(table.columns[-1].cells)) == "?"
    loaded["dense"] = [100.0, 101.0, 102.0] * 3  # which is over
    report = lf.specialize(ticket, model, x, tunings=file).report
    assert report.measured is not None
    assert report.measured.speedup("sparse") == pytest.approx(325 / 101)
    assert steadiness_line(report) is None
    again = len(asked)
    assert lf.specialize(ticket, model, x, tunings=file).report.measured == report.measured
    assert len(asked) == again


@compiling
def test_another_runtime_is_measured_beside_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    model = lf.models.lenet300((1, 8, 8))
    ticket, x = broken(model, 0.1, 0, dtype=torch.float32), torch.randn(4, 1, 8, 8)
    fake_clock(monkeypatch, {"onnxruntime": [9.0] * 9, "sparse": [3.0] * 9})
    program = lf.specialize(ticket, model, x, beside=["onnxruntime"])
    assert program.report.form == "sparse"
    assert program.report.measured is not None
    assert program.report.measured.speedup("onnxruntime") == 9
    other = lf.specialize(ticket, model, x, format="onnxruntime")
    torch.testing.assert_close(other(x), outputs(model, ticket, x), rtol=0, atol=1e-5)

    def fails(*given: Any) -> None:
        raise UserError("it has no ONNX")

    monkeypatch.setattr("lthfunc.deployment.export.onnx_runtime.onnx", fails)
    report = lf.specialize(ticket, model, x, beside=["onnxruntime"]).report
    assert report.left_out["onnxruntime"] == "it has no ONNX"
    assert report.measured is not None
    assert "onnxruntime" not in report.measured.turns


@compiling
def test_each_layer_takes_the_format_that_is_fastest_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64)))
    fake_clock(monkeypatch, {"csr": [4.0] * 9, "block": [2.0] * 9, "layers": [9.0] * 9})
    program = lf.specialize(blocked(model, 16), model, torch.randn(4, 128))
    assert (program.report.form, program.report.formats) == ("layers", {"0": "csr", "2": "csr"})


@compiling
def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, file = lf.models.lenet300((1, 8, 8)), tmp_path / "tunings.json"
    ticket, x = broken(model, 0.1, 0, dtype=torch.float32), torch.randn(4, 1, 8, 8)
    asked = fake_clock(monkeypatch, {"sparse": [3.0] * 9})
    first = lf.specialize(ticket, model, x, tunings=file)
    count = len(asked)
    again = lf.specialize(ticket, model, x, tunings=file)
    assert len(asked) == count > 1
    assert again.report.measured == first.report.measured
    assert all("threads" in key and "torch" in key for key in json.loads(file.read_text()))
    lf.specialize(ticket, model, x[:3], tunings=file)  # another batch is another question
    assert len(asked) > count
    file.write_text("{")
    assert TuningCache(file).get("anything") is None


def test_costs_are_those_of_arithmetic_by_hand() -> None:
    model = lf.models.lenet5()
    state = lf.prune(density=0.25, allocate=lf.uniform())(lf.init(model))
    found = lf.cost(model, state.params, state.masks, (1, 28, 28))
    places = {"conv1": 28 * 28, "conv2": 10 * 10, "fc1": 1, "fc2": 1, "fc3": 1}
    for name, count in lf.layer_counts(state.masks).items():
        layer, times = found.layers[name], places[name.removesuffix(".weight")]
        assert (layer.total, layer.kept) == (count.total, count.kept)
        assert layer.flops == 2 * count.total * times
        assert layer.effective == pytest.approx(2 * count.kept * times)
    assert (found.flops, found.parameters) == (sum(layer.flops for layer in found.layers.values()), 61_706)
    assert found.remaining == 61_706 - 61_470 + lf.count(state.masks).kept
    assert found.compression_ratio == pytest.approx(found.parameters / found.remaining)
    assert found.theoretical_speedup == pytest.approx(4, rel=0.01)
