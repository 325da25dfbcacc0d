"""Exported tickets compute the same elsewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from lthfunc_cli.main import main
from test_compact import Block, broken, named
from torch import nn
from torch.nn.utils import prune as torch_prune

import lthfunc as lf
from lthfunc.catalog.deployment import EXPORTS
from lthfunc.deployment.accuracy import difference
from lthfunc.deployment.export import exportable
from lthfunc.deployment.export.exportable import exportable_of
from lthfunc.sparse.kernels.build import why_no_kernels

NEEDS = {"onnx": "onnxruntime"}
BUILDS = ("aoti",)


def exported(target: str, arch: str, folder: Path) -> tuple[Any, Path]:
    if target in NEEDS and importlib.util.find_spec(NEEDS[target]) is None:
        pytest.skip(f"{NEEDS[target]} is not installed")
    if target in BUILDS and why_no_kernels() is not None:
        pytest.skip(str(why_no_kernels()))
    model, shape = named(arch)
    subject = exportable_of(model, broken(model, 0.1, seed=7, dtype=torch.float32), shape)
    path = folder / f"ticket{EXPORTS[target].suffix}"
    EXPORTS.load(target)(subject, path)
    assert [each.name for each in folder.iterdir() if each.name.startswith(".")] == []
    return subject, path


@pytest.mark.parametrize("arch", ["lenet300", "lenet5", "resnet20", "block"])
@pytest.mark.parametrize("target", ["torch-export", "onnx", "module"])
def test_graphs_compute_the_same_on_any_batch(arch: str, target: str, tmp_path: Path) -> None:
    subject, path = exported(target, arch, tmp_path)
    x = subject.inputs(7, seed=3)
    wanted = subject.masked(x)
    if target == "torch-export":
        got = torch.export.load(path).module()(x)
    elif target == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(None, {"inputs": x.numpy()})[0])
    else:
        spec = importlib.util.spec_from_file_location("exported", path)
        assert spec is not None
        assert spec.loader is not None
        source = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(source)
        network = source.Network().eval()
        network.load_state_dict(safetensors.torch.load_file(path.with_suffix(".safetensors")))
        got = network(x).detach()
    assert float((got - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


_ALONE = """
import sys, numpy as np
sys.modules["lthfunc"] = None  # as if it were not installed
x, wanted = np.load("x.npy"), np.load("wanted.npy")
if sys.argv[1] == "onnx":
    import onnxruntime
    sys.modules["torch"] = None
    got = onnxruntime.InferenceSession("ticket.onnx").run(None, {"inputs": x})[0]
else:
    import torch
    got = torch._inductor.aoti_load_package("ticket.pt2")(torch.from_numpy(x)).numpy()
assert (got.argmax(1) == wanted.argmax(1)).all()
print(abs(got - wanted).max() / abs(wanted).max())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "arch"), [("onnx", "lenet5"), pytest.param("aoti", "lenet300", marks=pytest.mark.long)]
)
def test_files_predict_the_same_in_a_process_without_this_library(target: str, arch: str, tmp_path: Path) -> None:
    subject, _ = exported(target, arch, tmp_path)
    x = subject.inputs(50, seed=1)
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "wanted.npy", subject.masked(x).numpy())
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, target], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4


def test_state_dicts_load_into_modules(tmp_path: Path) -> None:
    subject, path = exported("state-dict", "block", tmp_path)
    network = Block().eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    x = subject.inputs(3)
    torch.testing.assert_close(network(x), subject.masked(x))


def test_pruned_pairs_are_those_of_nn_utils_prune(tmp_path: Path) -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    ticket = broken(model, 0.4, 0, dtype=torch.float32)
    EXPORTS.load("prune")(exportable_of(model, ticket, (6,)), tmp_path / "pairs.pt")
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for layer in (network[0], network[2]):
        torch_prune.identity(layer, "weight")
    network.load_state_dict(torch.load(tmp_path / "pairs.pt", weights_only=True))
    x = torch.randn(4, 6)
    torch.testing.assert_close(network(x), exportable_of(model, ticket, (6,)).masked(x))


def test_scipy_matrices_have_every_survivor(tmp_path: Path) -> None:
    from scipy import sparse

    subject, path = exported("scipy", "lenet5", tmp_path)
    for name, mask in subject.ticket.masks.items():
        matrix = sparse.load_npz(path / f"{name}.npz")
        assert matrix.nnz == int(mask.sum())
        np.testing.assert_array_equal(matrix.toarray(), subject.ticket.params[name].flatten(1).numpy())
    rest = np.load(path / "rest.npz")
    np.testing.assert_array_equal(rest["fc1.bias"], subject.ticket.params["fc1.bias"].numpy())


def test_export_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "RUN"
    assert main(["prune", "--rounds", "2", "--rate", "0.7", "--steps", "20", "--out", str(run)]) == 0
    capsys.readouterr()
    for target in ("state-dict", "prune", "scipy", "module"):
        assert main(["export", str(run), "--to", target, "--round", "2"]) == 0
        shown = capsys.readouterr().out
        assert "under gzip" in shown
        assert (f"{target} stores pruned weights too" in shown) == (target != "scipy")
        assert re.search(
            r"its outputs for 5 random inputs (are|differ from) the masked network's(, bit| by at most \d\.\de)", shown
        )
        path = run / f"lenet300-round02-{target}{EXPORTS[target].suffix}"
        assert str(path) in shown
        assert path.exists()
    back = torch.load(run / "lenet300-round02-state-dict.pt", weights_only=True)
    trained, _ = lf.load_tree(run / "seed0" / "round02" / "params.safetensors")
    assert lf.same_bits(back, trained["params"])


@pytest.mark.parametrize("target", ["torch-export", "module", "state-dict", "prune", "scipy"])
def test_an_export_with_other_outputs_is_not_written(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = difference
    apart: list[float] = []

    def noted(got: Any, wanted: Any) -> float:
        apart.append(read(got, wanted))
        return 1.0

    monkeypatch.setattr(exportable, "difference", noted)
    with pytest.raises(RuntimeError, match=f"{target}: outputs differ from the network's by 1.0e\\+00 of the largest"):
        exported(target, "lenet5", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(apart) == 1
    assert apart[0] < 1e-5  # it was what is written that was compared


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--to: missing (expected one of onnx, torch-export, aoti, prune, state-dict, module, scipy"),
        (["--to", "onx"], "--to: unknown name 'onx'; did you mean 'onnx'?"),
        (["--to", "prune", "--out", "x.bin"], "--out: invalid value 'x.bin' (expected a name that ends in"),
        (["--to", "prune", "--out", "nowhere/x.pt"], "which 'nowhere' is not"),
    ],
)
def test_export_refuses_in_one_line(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prune", "--rounds", "1", "--steps", "5", "--out", "RUN"]) == 0
    capsys.readouterr()
    assert main(["export", "RUN", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
