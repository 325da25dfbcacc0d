"""Tickets of modules that other programs have pruned, and of their mask files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.main import main
from torch import nn
from torch.nn.utils import prune

import lthfunc as lf
from lthfunc.errors import UserError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


MASKS = {"0.weight": torch.arange(12).view(3, 4) % 3 == 0, "3.weight": torch.arange(6).view(2, 3) % 2 == 0}


def check(ticket: lf.Ticket, module: nn.Module) -> None:
    assert lf.same_bits(ticket.masks, MASKS)
    for name, mask in MASKS.items():
        assert torch.equal(ticket.params[name], torch.where(mask, module.get_parameter(name), 0))
    assert torch.equal(ticket.buffers["1.running_var"], torch.ones(3))


def test_masks_of_torch_and_zeros_are_found() -> None:
    pruned = net()
    for name, mask in MASKS.items():
        prune.custom_from_mask(pruned[int(name[0])], "weight", mask)
    found = lf.ticket_from(pruned)
    assert hasattr(pruned[0], "weight_orig")  # as it was
    for name in ("0", "3"):
        prune.remove(pruned[int(name)], "weight")
    check(found, pruned)
    check(lf.ticket_from(pruned), pruned)  # by zeros
    with pytest.raises(UserError, match="no weight of the module is pruned"):
        lf.ticket_from(net())


@pytest.mark.parametrize("kind", ["npz of layers", "pt of floats", "torch's state dict", "ticket", "wrapped", "dict"])
def test_masks_of_other_programs_are_read(kind: str, tmp_path: Path, capsys: Any) -> None:
    module, file = net(), tmp_path / "masks.pt"
    if kind == "npz of layers":
        layers: Any = {name[0]: mask.numpy() for name, mask in MASKS.items()}
        np.savez(file := file.with_suffix(".npz"), **layers)
    elif kind == "pt of floats":
        torch.save({name: mask.float() for name, mask in MASKS.items()}, file)
    elif kind == "torch's state dict":
        torch.save({f"{name}_{part}": mask for name, mask in MASKS.items() for part in ("mask", "orig")}, file)
    elif kind == "ticket":
        lf.save_ticket(file := file.with_suffix(".safetensors"), lf.ticket_from(module, MASKS))
    elif kind == "wrapped":
        torch.save({"state_dict": {f"module.{name}": mask.byte() for name, mask in MASKS.items()}}, file)
    else:
        check(lf.ticket_from(module, MASKS), module)
        return
    check(lf.ticket_from(module, file), module)
    imported = tmp_path / "imported.safetensors"
    assert main(["import", str(file), "--masks", "--out", str(imported)]) == 0
    assert "2 masks, 7 of 18 weights remain" in capsys.readouterr().out
    check(lf.ticket_from(module, imported), module)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path, capsys: Any) -> None:
    for masks, words in (
        ({"0.weight": torch.ones(2, 2)}, r"'0.weight' is of shape \(2, 2\), the parameter \(3, 4\)"),
        ({"fc": torch.ones(2, 2)}, "'fc' is not a parameter of this network"),
        ({"0": torch.full((3, 4), 0.5)}, "0 is no mask"),
    ):
        with pytest.raises(UserError, match=words):
            lf.ticket_from(net(), masks)
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    np.savez(tmp_path / "weights.npz", a=np.array([0.5]))
    for name, words in (("objects", "cannot be read as arrays of numbers alone"), ("weights", "a is no mask")):
        assert main(["import", str(tmp_path / f"{name}.npz"), "--masks"]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / f"{name}.safetensors").exists()
