"""PyTorch's attention layers are evaluated as they are trained, on every engine, where a query reads no key."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_engines import interpreted
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build
from lthfunc.training.engines.toolchain import why_not
from lthfunc.trees.attention_paths import one_path_of_attention
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.types import Dataset, Split

WORDS, LENGTH, N = 11, 6, 20
ENGINES = [
    "eager",
    pytest.param(
        lf.sparse_engine, id="sparse", marks=pytest.mark.skipif(build.why_no_kernels() is not None, reason="no kernels")
    ),
    pytest.param(
        interpreted, id="compile", marks=pytest.mark.skipif(why_not("cpu") is not None, reason=str(why_not("cpu")))
    ),
]


class LeftPadded(nn.Module):
    """Two layers of causal attention; token 0 is padding, and comes first, so that it reads no key."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x, later = self.table(tokens), torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = x + layer(x, x, x, key_padding_mask=tokens == 0, attn_mask=later, need_weights=False)[0]
        found: Tensor = self.head(x)
        return found


class Encoder(nn.Module):
    """Padding comes last; its outputs count, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.table(tokens), src_key_padding_mask=tokens == 0).mean(1))
        return found


def padded(*, first: bool) -> Tensor:
    tokens = torch.randint(1, WORDS, (N, LENGTH), generator=torch.Generator().manual_seed(0))
    tokens[torch.arange(LENGTH) < torch.arange(N)[:, None] % LENGTH] = 0
    return tokens if first else tokens.flip(1)


@pytest.mark.parametrize("kind", [LeftPadded, Encoder])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_loss_of_evaluation_is_that_of_the_trained_network(kind: type[nn.Module], engine: Any) -> None:
    """Validation losses were NaN, or those of another network, on the dense engines."""
    x = padded(first=kind is LeftPadded)
    part = Split(x, x if kind is LeftPadded else x[:, 0])
    data = Dataset("padded", part, part, part, classes=WORDS)
    model = lf.from_module(kind(), tokens=True, warn=False)
    state = lf.prune(density=0.5)(lf.init(model))
    net = kind().double().train()
    net.load_state_dict({**state.params, **state.buffers})
    expected = F.cross_entropy(net(x).flatten(0, -2), part.y.flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's, of prototypes
        trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=5, engine=engine)
        fit = lf.fit(trainer, state, seed=0, until=2, eval_every=2)
    assert fit.curve[0].val_loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_switch_of_all_threads_is_put_back_by_the_last() -> None:
    inside, left = threading.Event(), threading.Event()

    def other() -> None:
        with one_path_of_attention:
            inside.set()
            left.wait()

    thread = threading.Thread(target=other)
    with one_path_of_attention:
        thread.start()
        inside.wait()
    assert not torch.backends.mha.get_fastpath_enabled()
    left.set()
    thread.join()
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_switch_is_put_back_as_it_was_and_after_errors() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with one_path_of_attention:
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    model = lf.from_module(LeftPadded(), tokens=True, warn=False)
    state = lf.init(model)
    with pytest.raises(IndexError):
        apply_evaluating(model, state.params, state.buffers, torch.full((1, LENGTH), WORDS))
    assert torch.backends.mha.get_fastpath_enabled()
