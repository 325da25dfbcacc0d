"""Foreign checkpoints: tensors and nothing else come in."""

from __future__ import annotations

import ast
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from lthfunc_cli.main import main
from safetensors.torch import load_file

import lthfunc as lf


def net() -> torch.nn.Module:
    return lf.models.lenet300((1, 8, 8), 10).training


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model", "parallel", "legacy", "safetensors"])
def test_checkpoints_become_safetensors_that_weights_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: str
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {name: leaf.detach().clone() + 1 for name, leaf in net().state_dict().items()}
    file = "net.pth"
    if wrapped == "safetensors":
        file = "net.safetensors"
        lf.save_tree(file, state)
    else:
        content: Any = {
            "plain": state, "legacy": state, "state_dict": {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
            "model": {"model": state}, "parallel": {f"module.{name}": leaf for name, leaf in state.items()},
        }[wrapped]  # fmt: skip
        torch.save(content, file, _use_new_zipfile_serialization=wrapped != "legacy")
    assert main(["import", file, "--out", "mine.safetensors"]) == 0
    assert {name: leaf.tolist() for name, leaf in load_file("mine.safetensors").items()} == {
        name: leaf.tolist() for name, leaf in state.items()
    }
    assert main(["train", "--weights", "mine.safetensors", "--steps", "1", "--engine", "eager", "--out", "run"]) == 0
    assert main(["import", file, "--out", "mine.safetensors"]) == 2  # it is there


class Stranger:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("stranger-was-here"),)


def test_what_holds_more_than_tensors_or_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {"w": torch.zeros(300_000)}
    torch.save({"w": torch.zeros(2), "x": Stranger()}, "stranger.pth")
    torch.save(weights, "large.pth")
    torch.save([1, 2], "list.pth")
    Path("broken.pth").write_bytes(b"PK\x03\x04 and no more")
    Path("plain.pkl").write_bytes(pickle.dumps({"w": [1.0]}))
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), "program.pt")
    with zipfile.ZipFile("large.pth") as archive, zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for each in archive.infolist():
            bomb.writestr(each.filename, archive.read(each))
    assert Path("bomb.pth").stat().st_size < 10_000
    torch.save(weights, "net-0123abcd.pth")
    for arguments, code, words in (
        (["stranger.pth"], 2, "cannot be read as tensors alone"),
        (["large.pth", "--max-size", "1MB"], 2, "above the limit of 1,000,000"),
        (["bomb.pth", "--max-size", "1MB"], 2, "above the limit of 1,000,000"),
        (["list.pth"], 2, "holds no tensors by name, but a list"),
        (["broken.pth"], 2, "cannot be read as tensors alone"),
        (
            ["plain.pkl"],
            2,
            "(it is a pickle of something else, or of no torch.save; save the weights alone, with torch.save",
        ),
        (["program.pt"], 2, "(it is a TorchScript program; save the weights alone"),
        (["net-0123abcd.pth"], 3, "and its name tells 0123abcd"),
        (["absent.pth"], 2, "no such file"),
        (["large.pth", "--max-size", "much"], 2, "--max-size: invalid value 'much'"),
        (["large.pth", "--out", "x.txt"], 2, "a name that ends in .safetensors"),
    ):
        assert main(["import", *arguments]) == code, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert "`" not in line  # PyTorch's advice to unpickle it all the same
    assert not Path("stranger-was-here").exists()
    assert not list(tmp_path.glob("*.safetensors"))
    digest = hashlib.sha256(Path("large.pth").read_bytes()).hexdigest()[:8]
    Path("large.pth").rename(f"net-{digest}.pth")
    assert main(["import", f"net-{digest}.pth"]) == 0
    assert Path(f"net-{digest}.safetensors").exists()


def test_nothing_else_unpickles_files() -> None:
    """torch.load stands in one file, with weights_only; pickles come from our own processes alone, by pipes and Ray."""
    found: dict[str, list[str]] = {}
    for path in [*(ROOT / "lthfunc").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call = ast.unparse(node.func)
                if call in ("torch.load", "pickle.load", "pickle.loads", "joblib.load", "torch.hub.load"):
                    found.setdefault(str(path.relative_to(ROOT)), []).append(ast.unparse(node))
                if call == "np.load":
                    assert "allow_pickle=False" in ast.unparse(node)
    assert found == {
        "lthfunc/deployment/export/state_dicts.py": [
            "torch.load(io.BytesIO(payload), weights_only=True)"
        ],  # just saved
        "lthfunc/models/checkpoint_reader.py": ["torch.load(path, map_location='cpu', weights_only=True)"],
        "lthfunc/scheduling/ray.py": ["pickle.loads(payload)", "pickle.loads(self._ray.get(ref))"],
        "lthfunc/scheduling/processes.py": ["pickle.loads(self.pipe.recv_bytes())"],
        "lthfunc/scheduling/worker.py": ["pickle.loads(given)", "pickle.loads(pipe.recv_bytes())"],
    }
