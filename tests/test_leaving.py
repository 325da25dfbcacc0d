"""Exports go back into the modules they came from, and matrices are the layers' own linear maps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.main import main
from test_compact import broken
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrizations import weight_norm

import lthfunc as lf
from lthfunc.catalog.deployment import EXPORTS
from lthfunc.deployment.candidates import masked_module
from lthfunc.deployment.export.exportable import exportable_of
from lthfunc.errors import UserError
from lthfunc.runs.toml_files import read_config
from lthfunc.trees.atomic_io import safe_file_name
from lthfunc.trees.convert import with_initial_values
from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.model import apply_evaluating, apply_training


class Odd(nn.Module):
    """A tied weight, buffers of both kinds, a frozen layer, a parametrised one, attention, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.normed, self.norm = weight_norm(nn.Linear(8, 8)), nn.BatchNorm1d(8)
        self.again = self.normed
        self.out = nn.Linear(8, 12, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("places", torch.linspace(0, 1, 8), persistent=False)
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x) + self.places
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y = self.normed(torch.relu(self.again(self.frozen(y) + self.shift)))
        out: Tensor = self.out(self.norm(y.mT).mT)
        return out


def odd() -> tuple[nn.Module, lf.Model, lf.Ticket, Tensor]:
    module = Odd()
    model = lf.from_module(module, tokens=True)
    ticket = broken(model, 0.6, 0, dtype=torch.float32)
    name = "normed.parametrizations.weight.original1"
    masks = {**ticket.masks, name: torch.ones_like(ticket.masks[name])}
    buffers = {**ticket.buffers, "places": lf.init(model).buffers["places"]}
    params = {**ticket.params, name: lf.init(model).params[name]}
    return module, model, lf.Ticket(params, buffers, masks), torch.randint(0, 12, (4, 5))


def test_a_shared_weight_is_one_in_the_masked_network_too() -> None:
    _, model, ticket, x = odd()
    whole: Any = masked_module(model, ticket)
    assert whole.out.weight is whole.words.weight
    assert torch.equal(whole.out.weight, ticket.params["words.weight"])
    torch.testing.assert_close(whole(x), lf.to_module(ticket, model)(x))


def test_a_state_dict_loads_strictly_and_as_weights(tmp_path: Path) -> None:
    module, model, ticket, x = odd()
    EXPORTS.load("state-dict")(exportable_of(model, ticket, (5,)), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved.keys() == module.state_dict().keys()
    assert "places" not in saved
    other = Odd()
    other.load_state_dict(saved, strict=True)
    wanted = lf.to_module(ticket, model)(x)
    torch.testing.assert_close(other.eval()(x), wanted)
    once = [
        {name: leaf for name, leaf in saved.items() if name != dropped} for dropped in ("words.weight", "out.weight")
    ]
    for values in (saved, *once):
        drawn = lf.init(with_initial_values(model, values), 3)
        assert lf.same_bits(drawn.params, ticket.params)
        assert lf.same_bits(drawn.buffers, ticket.buffers)


MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.register_buffer("s", torch.ones(64), persistent=False)

    def forward(self, x):
        return {"logits": self.fc(x.flatten(1) * self.s), "shown": x}

def net(shape, classes):
    return Net()
"""


def test_an_exported_state_dict_is_imported_and_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    common = ["prune", "--arch", "mine.py:net", "--rounds", "1", "--steps", "4"]
    assert main([*common, "--out", "run"]) == 0
    assert main(["export", "run", "--to", "state-dict", "--out", "net.pt", "--trust"]) == 0
    assert main(["import", "net.pt"]) == 0
    assert main([*common, "--out", "again", "--weights", "net.safetensors"]) == 0


def test_pairs_of_nn_utils_prune_load_strictly(tmp_path: Path) -> None:
    _, model, ticket, x = odd()
    EXPORTS.load("prune")(exportable_of(model, ticket, (5,)), tmp_path / "pairs.pt")
    pairs = torch.load(tmp_path / "pairs.pt", weights_only=True)
    other = Odd()
    first = first_names(lf.from_module(Odd(), tokens=True).evaluating)
    for name in [key.removesuffix("_mask") for key in pairs if key.endswith("_mask")]:
        owner, _, leaf = name.rpartition(".")
        if "parametrizations" not in name and "again" not in name:
            torch_prune.identity(other.get_submodule(owner), leaf)
    for name in ("words.weight", "out.weight"):
        assert torch.equal(pairs[f"{name}_mask"].bool(), ticket.masks[first[name]])
    # A parametrised direction is none that nn.utils.prune could take: its pair becomes its product.
    for name in [key.removesuffix("_orig") for key in pairs if key.endswith("_orig") and "parametrizations" in key]:
        pairs[name] = pairs.pop(f"{name}_orig") * pairs.pop(f"{name}_mask")
    other.load_state_dict(pairs, strict=True)
    for name in [key.removesuffix("_mask") for key in pairs if key.endswith("_mask")]:
        owner, _, leaf = name.rpartition(".")  # PyTorch's attention reads what a hook of its last layer computes late
        torch_prune.remove(other.get_submodule(owner), leaf)
    torch.testing.assert_close(other.eval()(x), lf.to_module(ticket, model)(x))
    pairs = torch.load(tmp_path / "pairs.pt", weights_only=True)
    assert lf.same_bits(lf.init(with_initial_values(model, pairs)).params, ticket.params)


LAYERS = [
    (nn.Linear(6, 4), (6,)),
    (nn.Conv1d(4, 6, 3, groups=2), (4, 9)),
    (nn.Conv2d(2, 4, (3, 2)), (2, 5, 5)),
    (nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (4, 5)),
    (nn.ConvTranspose2d(3, 4, (3, 2)), (3, 4, 4)),
    (nn.ConvTranspose2d(6, 4, 2, groups=2, stride=2), (6, 3, 3)),
    (nn.ConvTranspose3d(2, 4, 2), (2, 3, 3, 3)),
]


def mapped(layer: Any, matrix: Any, x: Tensor) -> Tensor:
    """What a layer gives, by its definition, with the weights of a matrix (outputs, inputs of a group)."""
    if isinstance(layer, nn.Linear):
        return torch.from_numpy(matrix) @ x
    out = torch.zeros(layer(x[None]).shape[1:])
    ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    kernel = list(itertools.product(*map(range, layer.kernel_size)))
    for o, i, (at, k) in itertools.product(range(layer.out_channels), range(ins), enumerate(kernel)):
        weight, given = float(matrix[o, i * len(kernel) + at]), x[o // outs * ins + i]
        if layer.transposed:
            places = tuple(slice(a, a + s * n, s) for a, s, n in zip(k, layer.stride, given.shape, strict=True))
            out[o][places] += weight * given
        else:
            out[o] += weight * given[tuple(slice(a, a + n) for a, n in zip(k, out.shape[1:], strict=True))]
    return out


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_matrices_are_the_layers_linear_maps(layer: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    from scipy import sparse

    model = lf.from_module(nn.Sequential(layer), prunable=["*.bias"])
    state = lf.init(model)
    draw = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(leaf.shape, generator=draw) < 0.6 for name, leaf in state.params.items()}
    params = {name: torch.randn(leaf.shape, generator=draw) * masks[name] for name, leaf in state.params.items()}
    ticket = lf.Ticket(params, {}, masks)
    EXPORTS.load("scipy")(exportable_of(model, ticket, shape), tmp_path)
    weight, bias = (sparse.load_npz(tmp_path / f"0.{name}.npz").toarray() for name in ("weight", "bias"))
    x = torch.randn(shape, generator=draw)
    wanted = lf.to_module(ticket, model)(x[None])[0].detach()
    got = mapped(layer, weight, x) + torch.from_numpy(bias).reshape(-1, *(1,) * (wanted.ndim - 1))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_embeddings_and_shared_weights_as_matrices(tmp_path: Path) -> None:
    from scipy import sparse

    _, model, ticket, _ = odd()
    EXPORTS.load("scipy")(exportable_of(model, ticket, (5,)), tmp_path)
    words, out = (sparse.load_npz(tmp_path / f"{name}.weight.npz").toarray() for name in ("words", "out"))
    np.testing.assert_array_equal(words, ticket.params["words.weight"].T.numpy())  # a token in, features out
    np.testing.assert_array_equal(out, ticket.params["words.weight"].numpy())
    assert sparse.load_npz(tmp_path / "attention.in_proj_weight.npz").shape == (24, 8)


class Halves(torch.Tensor):
    """A kind of tensor of somebody's own."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), r"of a sparse layout \(sparse_coo\)"),
        (lambda: torch.eye(3).to_sparse_csr(), r"of a sparse layout \(sparse_csr\)"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.ones(3, device="meta"), "on the meta device and has no values"),
        (lambda: torch.ones(3).as_subclass(Halves), "a Halves, a kind of tensor of its own"),
        (lambda: torch.ones(3, dtype=torch.complex128), "of the type complex128"),
    ],
)
def test_what_no_file_can_hold_is_refused_at_the_start(value: Any, words: str) -> None:
    module = nn.Sequential(nn.Linear(3, 2))
    module.register_buffer("extra", value())
    with pytest.raises(UserError, match=f"Sequential: extra is {words}, which a ticket's file cannot hold"):
        lf.from_module(module)


def test_settings_of_windows_editors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b"rounds = 3\n")
    assert read_config(path).rounds == 3


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("timm:vit_tiny", "timm-vit_tiny"),
        ("a/b:c d", "a-b-c-d"),
        ('x<>:"|?*y', "x-y"),
        (":", "unnamed"),
        ("..", "unnamed"),
    ],
)
def test_names_that_every_file_system_takes(name: str, wanted: str) -> None:
    assert safe_file_name(name) == wanted


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_module_under_two_names_is_afterwards_what_it_was(wrapped: bool) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.Linear(4, 4)
            self.one = self.two = weight_norm(layer) if wrapped else layer
            self.norm = self.other = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.two(self.other(self.one(x))))
            return out

    model = lf.from_module(Twice())
    held = [
        (mode, name, leaf, leaf.clone())
        for mode in model[1:3]
        for name, leaf in mode.state_dict(keep_vars=True).items()
    ]
    state, x = lf.init(model, 1), torch.randn(8, 4)
    outputs, buffers = apply_training(model, state.params, state.buffers, x)
    apply_evaluating(model, state.params, state.buffers, x)
    lf.compact(model, state, (4,))
    for mode, name, leaf, value in held:
        assert mode.state_dict(keep_vars=True)[name] is leaf
        assert torch.equal(leaf, value)
    reference = lf.to_module(lf.ticket(state), model).train()
    torch.testing.assert_close(outputs, reference(x))
    assert lf.same_bits(buffers, dict(reference.named_buffers()))
