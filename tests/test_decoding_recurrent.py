"""Recurrent networks token by token, on states that they keep, against float64 networks that read all tokens anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lthfunc_cli.main import main
from sparse_programs import kernels  # noqa: F401
from test_decoding import TOLERANCE, check, made
from test_generation import LENGTH, VOCABULARY, drawn
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.runs.tickets import tickets_of_run
from lthfunc.sparse.kernels import build
from lthfunc.trees.model import apply_evaluating

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Recurrent(nn.Module):
    """Embedded tokens, a recurrent layer, and logits of its outputs, of which nothing below zero is kept."""

    def __init__(self, kind: str, vocabulary: int, width: int, units: int, **given: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.layer: nn.RNNBase = getattr(nn, kind)(width, units, **given)
        self.head = nn.Linear(units, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x)
        y = self.layer(y)[0] if self.layer.batch_first else self.layer(y.mT.movedim(-1, 0))[0].transpose(0, 1)
        found: Tensor = self.head(torch.relu(y))
        return found


@pytest.mark.parametrize(
    ("kind", "units", "length", "density", "given"),
    [
        ("LSTM", 37, 17, 0.2, {"num_layers": 2, "batch_first": True}),
        ("LSTM", 4, 3, 0.0, {"bias": False}),
        ("GRU", 19, 12, 0.5, {"num_layers": 2, "batch_first": True, "bias": False}),
        ("GRU", 16, 2, 1.0, {}),
        ("RNN", 33, 9, 0.3, {"num_layers": 3}),
        ("RNN", 8, 21, 0.8, {"nonlinearity": "relu", "batch_first": True}),
    ],
)
def test_logits(kind: str, units: int, length: int, density: float, given: dict[str, Any]) -> None:
    """Also of the next sequence, which begins with zeros again."""
    torch.manual_seed(units)
    net = Recurrent(kind, 11, 6, units, **given)
    program = check(net, length, 11, density, length)
    assert torch.ops.lthfunc.runs_single(program._number)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_program_on_tiles_keeps_its_states(kind: str) -> None:
    torch.manual_seed(0)
    program = check(nn.Sequential(Recurrent(kind, 7, 5, 18, batch_first=True), nn.LogSoftmax(-1)), 9, 7, 0.5)
    assert not torch.ops.lthfunc.runs_single(program._number)


class Remembering(nn.Module):
    """Places, a recurrent layer, and causal attention to what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, 12), nn.Embedding(13, 12)
        self.layer, self.qkv, self.head = nn.GRU(12, 12, batch_first=True), nn.Linear(12, 36), nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        y = y + self.layer(y)[0]
        q, k, v = (each[:, None] for each in self.qkv(y).chunk(3, -1))
        found: Tensor = self.head(y + F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        return found


def test_recurrent_layers_beside_attention() -> None:
    torch.manual_seed(0)
    assert torch.ops.lthfunc.runs_single(check(Remembering(), 13, 9, 0.5)._number)


def test_several_sequences_are_read_in_turn() -> None:
    """Each gives what a batch of all of them gives."""
    torch.manual_seed(0)
    program, network = made(Recurrent("LSTM", 7, 6, 20, num_layers=2, batch_first=True), 10, 0.3)
    tokens = torch.randint(0, 7, (5, 10))
    expected = torch.stack([network(each) for each in tokens])
    found = torch.stack([program(each) for each in tokens])
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("given", [1, 2 * LENGTH])
def test_tokens_are_drawn_from_the_network_s_outputs(kind: str, given: int) -> None:
    """Also beyond the length of a sequence, whose last half then begins a new one, from zeros."""
    torch.manual_seed(1)
    net = Recurrent(kind, VOCABULARY, 8, 24, num_layers=2, batch_first=True)
    nn.init.normal_(net.head.weight, std=2.0)
    program, network = made(net, LENGTH, 0.5)
    prompt = torch.randint(0, VOCABULARY, (given,))
    found = lf.generate(program, prompt, 40, temperature=0.7, seed=3)
    assert found.tolist() == drawn(network, prompt.tolist(), 40, 0.7, 0, 3)
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_one_example_of_several_steps(kind: str) -> None:
    """Whose units are a sequence apart, on the kernels for one example."""
    model = lf.from_module(Recurrent(kind, 7, 5, 19, num_layers=2, batch_first=True), tokens=True)
    state = lf.prune(density=0.4)(lf.init(model, seed=1))
    tokens = torch.randint(0, 7, (1, 6))
    expected = apply_evaluating(model, state.params, state.buffers, tokens)
    torch.testing.assert_close(lf.sparse_program(model, state)(tokens), expected, rtol=1e-5, atol=1e-5)


class Tokens(nn.Module):
    """What a function makes of a recurrent layer and of embedded tokens."""

    def __init__(self, layer: nn.Module, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function, self.tokens = layer, function, nn.Embedding(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, self.tokens(x))


@pytest.mark.parametrize(
    ("layer", "function", "words"),
    [
        (nn.LSTM(7, 4, bidirectional=True, batch_first=True), lambda layer, x: layer(x)[0][..., :7],
         r"has no rule for lstm in both directions in Tokens \(line \d+ of .*test_decoding_recurrent.py"),
        (nn.GRU(7, 7), lambda layer, x: layer(x)[0], "gru over another dimension than that of tokens"),
        (nn.LSTM(7, 9, proj_size=7, batch_first=True), lambda layer, x: layer(x)[0], "lstm with projections"),
        (nn.GRU(7, 7, batch_first=True), lambda layer, x: layer(x)[0] + layer(x)[1].movedim(0, 1),
         "getitem of other tokens than the one at its place"),
        (nn.GRU(7, 7, batch_first=True), lambda layer, x: layer(x, torch.ones(1, len(x), 7))[0],
         "gru from a state that is not zero"),
        (nn.RNN(7, 7, batch_first=True), lambda layer, x: layer(x, x[None, :, 0])[0],
         "select of other tokens|rnn_tanh from a state that is not zero|unsqueeze of other tokens"),
    ],
    ids=["both directions", "over the batch", "projections", "last state", "ones", "a token"],
)  # fmt: skip
def test_layers_that_keep_other_states_are_refused(
    layer: nn.Module, function: Callable[[Any, Tensor], Tensor], words: str
) -> None:
    model = lf.from_module(Tokens(layer, function), tokens=True, init=lf.as_built, warn=False)
    with pytest.raises(lf.UserError, match=words):
        lf.decoding_program(model, lf.init(model), 9)


def test_the_command_writes_with_a_recurrent_ticket(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "counts.txt").write_text("".join("abcdefgh"[min(k % 14, 14 - k % 14)] for k in range(3000)))
    words = [
        "prune", "--arch", "lstm", "--dataset", f"text:{tmp_path / 'counts.txt'}", "--dataset-option", "length=12",
        "--arch-option", "width=12", "--rounds", "1", "--rate", "0.5", "--steps", "2", "--engine", "eager", "--out",
        str(tmp_path / "RUN"),
    ]  # fmt: skip
    assert main(words) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "RUN"), "--prompt", "ab", "--tokens", "9", "--temperature", "0"]) == 0
    (found,) = tickets_of_run(tmp_path / "RUN", [None], None, None)
    module, labels = lf.to_module(found.ticket, found.model).eval(), found.data.labels
    tokens = [labels.index(each) for each in "ab"]
    with torch.no_grad():
        for _ in range(9):
            tokens.append(int(module(torch.tensor([tokens]))[0, -1].argmax()))
    assert capsys.readouterr().out.startswith("".join(labels[each] for each in tokens) + "\n")
