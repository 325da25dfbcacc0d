"""Foreign checkpoints: names without wrappers, sizes as written, and one line for what no safetensors file can hold."""

from __future__ import annotations

import io
import zipfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.main import main
from safetensors.torch import load_file, save_file

import lthfunc as lf
from lthfunc.models.naming import matching, unwrapped
from lthfunc.models.pretrained import with_weights

W = torch.arange(6.0).view(2, 3)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def imported(content: Any, capsys: Any, *more: str) -> tuple[dict[str, torch.Tensor], str]:
    """(the tensors, what was said) of a checkpoint that is imported."""
    torch.save(content, "net.pth")
    Path("net.safetensors").unlink(missing_ok=True)
    assert main(["import", "net.pth", *more]) == 0, capsys.readouterr().err
    return load_file("net.safetensors"), capsys.readouterr().err


def refused(capsys: Any, *arguments: str, code: int = 2) -> str:
    assert main([*arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert "Traceback" not in line
    return str(line)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "model._orig_mod.module.net.",
     "_forward_module.model.", "module.module."],
)  # fmt: skip
@pytest.mark.parametrize("within", [False, True])
def test_prefixes_of_wrappers_go_in_any_order_and_number(prefix: str, within: bool, capsys: Any) -> None:
    state: Any = {f"{prefix}fc1.weight": W, f"{prefix}fc1.bias": W[0]}
    found, said = imported({"state_dict": state, "epoch": 3} if within else state, capsys)
    assert set(found) == {"fc1.weight", "fc1.bias"}
    told = "".join(line.partition(": ")[2].strip("'") for line in said.splitlines())
    assert sorted(told.split(".")) == sorted(prefix.split("."))


def test_wrappers_of_pytorch_name_their_modules_so(capsys: Any) -> None:
    compiled: Any = partial(torch.compile, backend="eager")
    plain = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    wrapped = torch.nn.DataParallel(compiled(plain))
    found, _ = imported(wrapped.state_dict(), capsys)
    assert set(found) == set(plain.state_dict())
    parts = torch.nn.Sequential(torch.nn.DataParallel(plain[0]), compiled(plain[1]))
    found, said = imported(parts.state_dict(), capsys)
    assert set(found) == {"0.module.weight", "0.module.bias", "1.weight", "1.bias"}  # DataParallel within: its own name
    assert "'_orig_mod.'" in said


@pytest.mark.parametrize(
    "names",
    [
        ["model.weight", "head.weight"],  # a part of its own
        ["module.weight", "weight"],  # two would be one
        ["a._orig_mod.weight", "a.weight"],
        ["net.", "net.weight"],  # one would be empty
        ["modular.weight", "modular.bias"],
    ],
)
def test_names_stay_where_a_prefix_is_no_wrappers(names: list[str], capsys: Any) -> None:
    found, said = imported({name: W + i for i, name in enumerate(names)}, capsys)
    assert {name: leaf.tolist() for name, leaf in found.items()} == {n: (W + i).tolist() for i, n in enumerate(names)}
    assert said == ""


def test_names_are_matched_through_wrappers_on_both_sides() -> None:
    assert unwrapped([]) == ({}, ())
    for file, net in (
        (["a", "b"], ["a", "b"]),
        (["module.a", "module.b"], ["a", "b"]),
        (["a", "b"], ["model.a", "model.b"]),
        (["net.a", "net.b"], ["model.a", "model.b"]),
        (["model.a", "model.b", "loss.w"], ["a", "b"]),
        (["a", "b", "module.a", "module.b"], ["a", "b"]),
    ):
        assert matching(file, net) == dict(zip(net, file, strict=False))
    assert matching(["encoder.a", "encoder.b"], ["a", "b"]) == {}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model."])
def test_weights_of_a_wrapped_network_are_taken(prefix: str, capsys: Any) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    state = {f"{prefix}{name}": leaf + 1 for name, leaf in model.training.state_dict().items()}
    save_file(state, "net.safetensors")
    command = "train --weights net.safetensors --steps 1 --lr 1e-9 --engine eager --out run"
    assert main(command.split()) == 0
    trained = lf.load_tree("run/seed0/round00/params.safetensors")[0]["params"]
    for name, leaf in model.training.state_dict().items():
        torch.testing.assert_close(trained[name], leaf + 1, atol=1e-5, rtol=0)


def test_pickled_weights_are_read_as_tensors_alone(capsys: Any) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    state = {name: leaf + 1 for name, leaf in model.training.state_dict().items()}
    torch.save({"epoch": 3, "model": {f"module.{name}": leaf for name, leaf in state.items()}}, "my net.pth")
    assert lf.same_bits(lf.init(with_weights(model, "lenet300", "my net.pth"), seed=3).params, state)
    torch.save(model.training, "whole.pt")
    torch.save({**state, "fc1.weight": torch.zeros(300, 63), "more": W}, "other.pt")
    for weights, words in (
        ("whole.pt", "--weights: whole.pt: cannot be read as tensors alone (it holds a lthfunc.models"),
        (
            "other.pt",
            "does not fit the network lenet300 (unexpected: more; of another shape: fc1.weight (300, 63) instead",
        ),
        ("absent.pth", "expected a file that is there"),
        ("absent", "expected a file (.safetensors, .pth, .pt, "),
    ):
        assert words in refused(capsys, "prune", "--weights", weights, "--from-trained", "--steps", "1")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(300, 64, dtype=torch.int8), "fc1.weight is int8 in the file, but floating-point in the network"),
        (torch.zeros(300, 64, dtype=torch.bool), "fc1.weight is bool in the file, but floating-point in the network"),
        (torch.full((300, 64), 1e300, dtype=torch.float64), "fc1.weight holds values in the file that are not finite"),
        (torch.full((300, 64), float("nan")), "fc1.weight holds values in the file that are not finite as float32"),
    ],
)
def test_values_that_would_be_others_in_the_network_are_refused(value: Any, words: str, capsys: Any) -> None:
    state = lf.models.lenet300((1, 8, 8), 10).training.state_dict()
    save_file({**state, "fc1.weight": value}, "net.safetensors")
    assert words in refused(capsys, "train", "--weights", "net.safetensors", "--steps", "1")


def test_what_a_file_has_instead_is_said(capsys: Any) -> None:
    state = lf.models.lenet300((1, 8, 8), 10).training.state_dict()
    save_file({f"backbone.{name}": leaf for name, leaf in state.items()}, "net.safetensors")
    line = refused(capsys, "train", "--weights", "net.safetensors", "--steps", "1")
    assert "missing: fc1.weight, fc1.bias, fc2.weight, fc2.bias and 2 more; unexpected: backbone.fc1.bias, " in line
    head = {**state, "fc3.weight": torch.ones(7, 100), "fc3.bias": torch.ones(7)}
    save_file(head, "net.safetensors")
    assert main(["train", "--weights", "net.safetensors", "--steps", "1", "--engine", "eager", "--out", "run"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "--weights: of another shape in the file, so drawn from the seed: fc3.weight, fc3.bias" in said


def test_a_complex_file_is_not_taken_for_a_real_network(capsys: Any) -> None:
    state = {name: leaf + 0j for name, leaf in lf.models.lenet300((1, 8, 8), 10).training.state_dict().items()}
    save_file(state, "net.safetensors")
    line = refused(capsys, "train", "--weights", "net.safetensors", "--steps", "1")
    assert "fc1.weight is complex in net.safetensors, and real in the network" in line


def test_sizes_are_those_of_what_is_written(capsys: Any) -> None:
    torch.save({"w": torch.zeros(1).expand(10_000, 10_000)}, "view.pth")
    assert Path("view.pth").stat().st_size < 3_000
    line = refused(capsys, "import", "view.pth", "--max-size", "100MB")
    assert "view.pth: has 400,000,000 bytes and more as tensors, above the limit of 100,000,000" in line
    torch.save({"w": torch.zeros(1).expand(10**9, 10**9)}, "view.pth")
    assert "above the limit of 4,000,000,000" in refused(capsys, "import", "view.pth")
    whole = torch.zeros(1000, 1000)
    found, _ = imported(
        {"part": whole[:2, :3].clone(), "tied": W, "again": W, "turned": W.T}, capsys, "--max-size", "1MB"
    )
    assert {name: leaf.tolist() for name, leaf in found.items()} == {
        "part": [[0.0] * 3] * 2, "tied": W.tolist(), "again": W.tolist(), "turned": W.T.tolist()
    }  # fmt: skip


def nested(depth: int) -> Any:
    tree: Any = {"w": W}
    for _ in range(depth):
        tree = {"a": tree}
    return tree


def laughing(depth: int) -> Any:
    tree: Any = {}
    for _ in range(depth):
        tree = {"a": tree, "b": tree}
    return tree


def around(key: str) -> Any:
    tree: Any = {"w": W}
    tree[key] = tree
    return tree


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: around("more"), "is a dictionary that contains itself, at more"),
        (lambda: around("state_dict"), "is a dictionary that contains itself"),
        (lambda: nested(60), "has more than 50 dictionaries within one another"),
        (lambda: laughing(40), "has more than 1,000,000 entries"),
        (lambda: {"a": {"b": W}, "a.b": W}, "has two tensors of the name a.b"),
        (lambda: {"a/b": W, "a.b": W}, "has two tensors of the name a.b"),
        (lambda: {1: W, "1": W}, "has two tensors of the name 1"),
        (lambda: {"w": W.to_sparse()}, "w is of a sparse layout (sparse_coo), which safetensors files cannot hold"),
        (lambda: {"w": W.to_sparse_csr()}, "w is of a sparse layout (sparse_csr)"),
        (lambda: {"w": torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)}, "w is quantised"),
        (lambda: {"w": W.to("meta")}, "w is on the meta device and has no values"),
        (lambda: {"w": W.to(torch.complex128)}, "w is of the type complex128"),
        (lambda: {"__metadata__": W}, "a tensor cannot have the name '__metadata__'"),
        (lambda: {"a\nb": W}, "a tensor cannot have the name 'a\\nb'"),
        (lambda: {"epoch": 3, "best": 0.5}, "holds no tensors by name, but a dict"),
        (lambda: W, "holds no tensors by name, but a Tensor"),
        (lambda: torch.nn.Linear(2, 2), "it holds a torch.nn.modules.linear.Linear; save the weights alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_line(content: Any, words: str, capsys: Any) -> None:
    torch.save(content(), "net.pth")
    capsys.readouterr()
    line = refused(capsys, "import", "net.pth")
    assert line.startswith("lthfunc: net.pth: ")
    assert words in line
    assert not Path("net.safetensors").exists()


def test_what_can_be_imported_comes_as_it_is(capsys: Any) -> None:
    kinds = [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
             torch.int8, torch.bool, torch.uint8, torch.int64]  # fmt: skip
    state = {f"layers/{i}/w": W.to(kind) for i, kind in enumerate(kinds)}
    state |= {"conj": (W + 1j * W).conj(), "scalar": torch.tensor(3), "grad": torch.nn.Parameter(W), "none": W[:0]}
    others = {"epoch": 3, "names": ["a"], "best": np.float64(0.5), "when": np.int64(3), "args": Namespace(lr=0.1)}
    found, _ = imported(state | others, capsys)
    assert set(found) == {name.replace("/", ".") for name in state}
    for name, leaf in state.items():
        assert found[name.replace("/", ".")].dtype == leaf.dtype
        assert torch.equal(found[name.replace("/", ".")].to(torch.complex128), leaf.detach().to(torch.complex128))
    _, said = imported({"model": {"w": W}, "optimizer": {"m": W}, "model_ema": {"w": W}, "lr": 0.1}, capsys)
    assert "taken from 'model'; left out: optimizer, model_ema" in said


def test_files_that_are_no_checkpoints(capsys: Any) -> None:
    Path("empty.pth").touch()
    Path("folder.pth").mkdir()
    torch.save({"w": W}, "net.pth")
    content = bytearray(Path("net.pth").read_bytes())
    content[content.index(b"PK\x01\x02")] ^= 0x55  # where the directory of the archive begins
    Path("moved.pth").write_bytes(content)
    Path("text.pth").write_text("no checkpoint")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello.txt", "world")
    Path("other.pth").write_bytes(file.getvalue())
    Path("net.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    for name, words in (("empty.pth", "is empty"), ("folder.pth", "is a folder, not a checkpoint"),
                        ("moved.pth", "cannot be read as tensors"), ("text.pth", "cannot be read as tensors alone"),
                        ("other.pth", "cannot be read as tensors"), ("net.onnx", "cannot be read as")):  # fmt: skip
        assert words in refused(capsys, "import", name)
