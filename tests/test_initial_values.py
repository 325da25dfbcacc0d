"""Which layers are pruned and drawn, and initial values that mean something."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import lthfunc as lf
from lthfunc.trees.ops import same_bits
from lthfunc.trees.types import Params


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils: weights are (inputs, outputs)."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(0.02 * torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Reading(nn.Module):
    """A recurrent layer over a sequence, and a linear layer on its mean output."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.fc = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.RNNCellBase):
            h = None
            for step in x.unbind(1):
                h = self.layer(step, h)
            y = h[0] if isinstance(h, tuple) else h
        else:
            y = self.layer(x)
            y = (y[0] if isinstance(y, tuple) else y).mean(1)
        out: Tensor = self.fc(y)
        return out


RECURRENT = {
    "lstm": lambda: Reading(nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True, proj_size=4), 8),
    "gru": lambda: Reading(nn.GRU(5, 6, batch_first=True), 6),
    "rnn": lambda: Reading(nn.RNN(5, 6, batch_first=True, bias=False), 6),
    "lstm-cell": lambda: Reading(nn.LSTMCell(5, 6), 6),
    "gru-cell": lambda: Reading(nn.GRUCell(5, 6), 6),
    "conv1d": lambda: Reading(Conv1D(6, 5), 6),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_and_conv1d_are_pruned_drawn_and_trained(kind: str) -> None:
    module = RECURRENT[kind]()
    model = lf.from_module(module)
    matrices = [name for name, leaf in module.named_parameters() if leaf.ndim > 1]
    assert sorted(model.prunable) == sorted(matrices)
    one, other = lf.init(model, 0), lf.init(model, 1)
    for name, leaf in one.params.items():
        drawn = leaf.ndim > 1 or (leaf.any() and "bias" in name)
        assert torch.equal(leaf, other.params[name]) != drawn, name
        if "layer." in name and kind != "conv1d":  # PyTorch's own: uniform within 1 / sqrt(units)
            assert leaf.abs().max() <= 6**-0.5
            assert leaf.std() == pytest.approx(6**-0.5 / math.sqrt(3), rel=0.4)
    if kind == "conv1d":
        assert one.params["layer.weight"].std() == pytest.approx(0.02, rel=0.4)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 7, 5, generator=draw), torch.randint(0, 3, (60,), generator=draw)
    data = lf.data.from_tensors("d", (x, y), (x, y), val=12, classes=3)
    pruned = lf.prune(density=0.5)(one)
    before = lf.ticket(pruned)
    end = lf.train(model, data, optimizer=lf.adam(1e-2), steps=6, batch_size=12)(pruned)
    for name, mask in end.masks.items():
        assert not end.params[name][~mask].any()
        assert not torch.equal(end.params[name], before.params[name])
    trained: Any = lf.to_module(lf.ticket(end), model)
    right = float((trained(x).argmax(1) == y).double().mean())
    assert right == pytest.approx(lf.accuracy_on(model, end, data))


def test_conv1d_of_transformers_itself() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model = lf.from_module(nn.Sequential(pytorch_utils.Conv1D(6, 5), nn.ReLU(), nn.Linear(6, 3)))
    assert model.prunable == ("0.weight", "2.weight")


def test_wanda_and_sparsegpt_read_conv1d_along_its_inputs() -> None:
    turned: Any = nn.Sequential(Conv1D(6, 5), nn.ReLU(), nn.Linear(6, 3))
    plain: Any = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        plain[0].weight.copy_(turned[0].weight.T)
        plain[2].load_state_dict(turned[2].state_dict())
    x = torch.randn(40, 5) * torch.tensor([0.1, 1, 3, 0.5, 2])
    found = []
    for module in (turned, plain):
        model = lf.from_module(module, init=lf.as_built)
        state = lf.init(model)
        moments = lf.input_moments(model, state, [x])
        cut = lf.sparsegpt(moments, 0.5)(state)
        found.append((lf.wanda(moments)(state.params, state.masks)["0.weight"], cut.params["0.weight"]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.T, other)


def test_matrices_that_are_neither_pruned_nor_drawn_are_named() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.gate = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 4))
            self.token, self.norm = nn.Parameter(torch.randn(1, 1, 4)), nn.LayerNorm((2, 2))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x) @ self.gate
            return out

    with pytest.warns(UserWarning, match=r"Gated: neither pruned nor reinitialised, so the same for every seed: gate$"):
        lf.from_module(Gated())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lf.from_module(nn.Linear(3, 2)).fixed == ()
        assert lf.from_module(Gated(), init=lf.as_built).fixed == ()
        for model in (lf.from_module(Gated(), prunable=["gate"]), lf.from_module(Gated(), prune_only=["gate"])):
            assert "gate" in model.prunable
            one, other = lf.init(model, 0).params["gate"], lf.init(model, 1).params["gate"]
            assert not torch.equal(one, other)  # whatever is pruned is drawn
            assert torch.equal(one, lf.init(model, 0).params["gate"])


def test_layers_of_ones_own_are_drawn_by_reset_parameters_without_the_global_generator() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.gain = nn.Parameter(torch.empty(4, 6)), nn.Parameter(torch.empty(4))
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.uniform_(self.mix, 3, 4)
            nn.init.ones_(self.gain)

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.mix.T) * self.gain

    module: Any = nn.Sequential(Own(), nn.Linear(4, 3))
    with torch.no_grad():
        module[0].gain.fill_(0.5)
    before = torch.get_rng_state()
    model = lf.from_module(module)
    one, other = lf.init(model, 0).params, lf.init(model, 1).params
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one["0.mix"], other["0.mix"])
    assert one["0.mix"].min() > 3
    assert torch.equal(one["0.gain"], torch.full((4,), 0.5))  # set after it was drawn
    assert same_bits(one, lf.init(model, 0).params)


def test_padding_rows_stay_and_never_learn() -> None:
    module = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))
    bags = nn.EmbeddingBag(9, 4, padding_idx=-1)
    model = lf.from_module(module, tokens=True)
    state = lf.init(model, 3)
    assert not state.params["0.weight"][0].any()
    assert (state.params["0.weight"][1:].std() - (2 / 13) ** 0.5).abs() < 0.12
    x, y = torch.randint(0, 9, (40, 3)), torch.randint(0, 3, (40,))
    data = lf.data.from_tensors("d", (x, y), (x, y), val=8, classes=3)
    end = lf.train(model, data, optimizer=lf.adam(1e-2), steps=5, batch_size=8)(state)
    assert not end.params["0.weight"][0].any()
    assert not lf.init(lf.from_module(bags, tokens=True)).params["weight"][-1].any()


@pytest.mark.parametrize("seed", [0, 1])
def test_parametrised_layers_stay_what_they_are(seed: int) -> None:
    torch.manual_seed(0)
    built: Any = nn.Sequential(
        orthogonal(nn.Linear(6, 4)), orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"),
        spectral_norm(nn.Linear(4, 5)), weight_norm(nn.Linear(5, 5)),
    )  # fmt: skip
    with torch.no_grad():
        built[3].parametrizations.weight.original0.fill_(2.0)  # lengths that a user has set
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all of them are drawn
        model = lf.from_module(built)
    assert model.prunable == ("2.parametrizations.weight.original", "3.parametrizations.weight.original1")
    module: Any = lf.to_module(lf.ticket(lf.init(model, seed)), model).requires_grad_(False)
    for layer in module[:2]:
        torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-5, rtol=0)
    assert torch.linalg.matrix_norm(module[2].weight, 2) == pytest.approx(1, abs=2e-2)
    torch.testing.assert_close(module[3].weight.norm(dim=1), torch.full((5,), 2.0))
    again: Any = lf.to_module(lf.ticket(lf.init(model, seed + 1)), model)
    for number in range(4):
        assert not torch.allclose(module[number].weight, again[number].weight)


class Meant(nn.Module):
    """Values that somebody put there."""

    def __init__(self) -> None:
        super().__init__()
        self.zero, self.eye, self.blur = nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 3, 3, groups=3, bias=False)
        self.stn, self.prior, self.drawn = nn.Linear(8, 6), nn.Linear(4, 5), nn.Linear(4, 4)
        self.lstm, self.places = nn.LSTM(4, 6), nn.Embedding(10, 4)
        self.norm, self.scale = nn.BatchNorm2d(4), nn.Parameter(torch.full((4,), 1e-5))
        with torch.no_grad():
            for leaf in (self.zero.weight, self.stn.weight, self.norm.weight):
                leaf.zero_()
            nn.init.eye_(self.eye.weight)
            self.blur.weight.copy_(torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16)
            self.stn.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
            self.prior.bias.fill_(-math.log(99))
            self.lstm.get_parameter("bias_ih_l0")[6:12] = 1
            turn = torch.arange(10)[:, None] / 100 ** (torch.arange(0, 4, 2) / 4)
            self.places.weight.copy_(torch.stack([turn.sin(), turn.cos()], 2).flatten(1))
        self.register_buffer("target", self.drawn.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_values_that_mean_something_stay() -> None:
    module = Meant()
    model = lf.from_module(module)
    state = lf.init(model, 5)
    kept = ["zero.weight", "eye.weight", "blur.weight", "stn.weight", "stn.bias", "prior.bias", "lstm.bias_ih_l0",
            "places.weight", "norm.weight", "norm.bias", "scale"]  # fmt: skip
    built: dict[str, Any] = dict(module.named_parameters())
    for name in kept:
        assert torch.equal(state.params[name], built[name]), name
    for name in ("drawn.weight", "prior.weight", "lstm.weight_hh_l0", "lstm.bias_hh_l0"):
        assert not torch.equal(state.params[name], built[name]), name
    assert not state.params["drawn.bias"].any()
    assert torch.equal(state.buffers["target"], state.params["drawn.weight"])  # a copy stays one


def test_the_modules_of_a_model_have_one_memory_of_their_own() -> None:
    """Of a network of gigabytes, modules for two modes and what it was built with would be three more."""
    tied = nn.Linear(4, 4, bias=False)
    net: Any = nn.Sequential(tied, nn.BatchNorm1d(4), tied, nn.Linear(4, 2))

    def writes(module: nn.Module, params: Params, seed: int) -> Params:
        with torch.no_grad():
            for leaf in (*module.parameters(), *params.values()):
                leaf += 1
        return params

    model = lf.from_module(net, init=writes)
    modes = [dict(each.named_parameters()) for each in (model.training, model.evaluating)]
    for name, leaf in net.named_parameters():
        first, second = (each[name] for each in modes)
        assert first.data_ptr() == second.data_ptr() != leaf.data_ptr()
        assert torch.equal(first, leaf)
        assert first is not second
        assert not first.requires_grad
    assert model.training[0] is model.training[2]  # type: ignore[index]
    buffers = [dict(each.named_buffers())["1.running_mean"].data_ptr() for each in (model.training, model.evaluating)]
    assert len({*buffers, net[1].running_mean.data_ptr()}) == 3  # which PyTorch writes into in training mode
    for seed in range(2):
        state = lf.init(model, seed)
        for name, leaf in net.named_parameters():
            assert torch.equal(state.params[name], leaf + 1)
            assert torch.equal(modes[0][name], leaf)
    for leaf in lf.to_module(lf.ticket(state), model).parameters():
        leaf.data.zero_()
    assert torch.equal(modes[0]["3.weight"], net[3].weight)
