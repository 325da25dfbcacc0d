"""A graph of operations stands for a module only where it has the module's outputs and its gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lthfunc_cli.main import main
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.compaction.compact import compact_training
from lthfunc.errors import UserError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build as kernels


class Reversed(torch.autograd.Function):
    """The gradient's sign is turned, as in domain-adversarial training."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Rounded(torch.autograd.Function):
    """Quantised, with the gradient of what isn't: a straight-through estimator."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x * 4).round() / 4

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def hooked(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient * 0.5)
    return h


def asked(h: Tensor) -> Tensor:
    return h.detach() if torch.is_grad_enabled() and h.requires_grad else h


def half_frozen(h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = h.abs().mean()
    return h / (scale + 1) + h.detach()


class Net(nn.Module):
    def __init__(self, between: Any, last: float | None = None) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(64, 20), nn.Dropout(0.3), nn.Linear(20, 10)
        self.between = between
        if last is not None:
            nn.init.constant_(self.last.weight, last)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.drop(self.between(torch.relu(self.first(x.flatten(1))))))
        return out


def model_with(between: Any, last: float | None = None) -> lf.Model:
    return lf.from_module(Net(between, last), init=lf.as_built)


@pytest.mark.parametrize("last", [None, 0.0])  # zeros would hide what lies before them
@pytest.mark.parametrize("between", [Reversed.apply, Rounded.apply, hooked, asked])
def test_another_gradient_than_the_operations_have_is_refused(between: Any, last: float | None) -> None:
    model = model_with(between, last)
    words = r"the gradient of first\.(weight|bias) is not that of the operations in it"
    with pytest.raises(UserError, match=f"^engine: sparse cannot trace Net: {words}"):
        captured(model, (1, 8, 8), training=True)
    with pytest.raises(UserError, match=f"^compact: Net cannot be compacted: {words}"):
        compact_training(model, lf.init(model), (1, 8, 8))


def test_other_outputs_without_gradients_are_refused() -> None:
    model = model_with(lambda h: h * 2 if torch.is_grad_enabled() else h)
    captured(model, (1, 8, 8), training=True)
    with pytest.raises(UserError, match=r"Net: its outputs are not those of the operations in it; it may ask whether"):
        captured(model, (1, 8, 8), training=False)
    with pytest.raises(UserError, match=r"^compact: Net cannot be compacted: its outputs are not those"):
        lf.compact(model, lf.init(model), (1, 8, 8))


@pytest.mark.parametrize("between", [torch.tanh, torch.detach, half_frozen])
def test_what_a_graph_can_hold_is_none_of_it(between: Any) -> None:
    model = model_with(between, 0.0)
    for training in (True, False):
        assert captured(model, (1, 8, 8), training=training).params == (
            "first.weight", "first.bias", "last.weight", "last.bias",
        )  # fmt: skip


def test_a_generator_of_ones_own_is_refused_with_its_line() -> None:
    model = model_with(lambda h: h * torch.rand(h.shape, generator=torch.Generator().manual_seed(0)))
    line, words = r"\(line \d+ of .*test_faithful_graphs.py", "takes a Generator, which is no tensor"
    told = rf"Net: rand {words} {line}|Net {line}: .*: an operation {words}$"  # the latter by PyTorch 2.11
    with pytest.raises(UserError, match=f"^engine: sparse cannot trace (?:{told})"):
        captured(model, (1, 8, 8), training=True)


class Padded(nn.Module):
    """The mean of tokens that are no padding, which is no number where all are."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(3, 4))
        self.table, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = (tokens != 0).unsqueeze(-1)
        out: Tensor = self.head(((self.table(tokens) + self.places) * seen).sum(1) / seen.sum(1))
        return out


def test_gradients_that_are_no_numbers_say_nothing_of_others() -> None:
    assert captured(lf.from_module(Padded(), tokens=True, warn=False), (3,), training=True).params[0] == "places"


class Overflowing(nn.Module):
    """Numbers too large for float32, whose differences are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (1 + self.out(self.one(x)).abs()) * 1e30 * 1e30
        return out


def test_outputs_that_are_infinite_say_nothing() -> None:
    assert captured(lf.from_module(Overflowing()), (3,), training=True).params[0] == "one.weight"


OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 20), nn.Linear(20, 10)

    def forward(self, x):
        h = torch.relu(self.first(x.flatten(1)))
        if h.requires_grad:
            h.register_hook(lambda gradient: -gradient)
        return self.last(h)
"""


@pytest.mark.skipif(kernels.why_no_kernels() is not None, reason=str(kernels.why_no_kernels()))
def test_the_default_engine_trains_such_a_network_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    short = ["prune", "--arch", "mine.py:Net", "--rounds", "1", "--rate", "0.8", "--steps", "4", "--threads", "1"]
    for engine in ("auto", "eager"):
        assert main([*short, "--engine", engine, "--out", engine]) == 0
    ends = [Path(engine, "last_round.safetensors").read_bytes() for engine in ("auto", "eager")]
    assert ends[0] == ends[1]
    assert main([*short, "--engine", "sparse", "--out", "sparse"]) == 2
    assert "cannot trace mine.py:Net: the gradient of first.weight is not that of" in capsys.readouterr().err
    assert not Path("sparse").exists()
