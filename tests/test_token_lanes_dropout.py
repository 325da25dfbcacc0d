"""Dropout where lanes are tokens: what is dropped where lanes are examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import kernels  # noqa: F401
from test_token_lanes_masks import causal, read
from test_token_lanes_training import text
from token_lanes import batch_of, gradients_on, network, program_for, ticket
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer
from lthfunc.sparse import training_programs
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES, column_of
from lthfunc.sparse.program import Epilogue, Lowered, Program
from lthfunc.sparse.token_lanes import lanes_program, training_on_lanes
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.types import TrainState

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

LENGTH = 20


class Dropping(nn.Module):
    """Attention that drops some of its weights, for heads that share keys or not."""

    def __init__(self, share: float, shared: int = 1, mask: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.share, self.shared, self.mask = share, shared, mask
        self.tokens, self.q, self.kv = nn.Embedding(13, 24), nn.Linear(24, 24), nn.Linear(24, 48 // shared)
        self.head = nn.Linear(24, 13)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        q, k, v = (each.unflatten(-1, (-1, 6)).transpose(1, 2) for each in (self.q(x), *self.kv(x).chunk(2, -1)))
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if self.mask is None else self.mask(tokens), is_causal=self.mask is None,
            dropout_p=self.share if self.training else 0.0, enable_gqa=self.shared > 1,
        )  # fmt: skip
        found: Tensor = self.head(x + mixed.transpose(1, 2).flatten(2))
        return found


class Layers(nn.Module):
    """PyTorch's own layers, with dropout in four places."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(13, 12), nn.Linear(12, 13)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 20, dropout=0.3, batch_first=True), 2)
        self.places: Tensor
        self.register_buffer("places", torch.linspace(-1, 1, LENGTH)[:, None].expand(-1, 12).contiguous())

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.dropout(self.tokens(tokens) + self.places[: tokens.shape[1]], 0.2, self.training)
        found: Tensor = self.head(self.layers(x, src_key_padding_mask=tokens == 0))
        return found


#: Operations that drop something.
DRAWS = {
    "of layers": 4, "of weights": 1, "of weights of shared keys": 1, "of masked weights": 1, "in PyTorch's layers": 9,
}  # fmt: skip
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "of layers": lambda: CharTransformer((LENGTH,), 13, layers=2, heads=2, width=16, dropout=0.3),
    "of weights": lambda: Dropping(0.4),
    "of weights of shared keys": lambda: Dropping(0.4, 2),
    "of masked weights": lambda: Dropping(0.4, mask=lambda tokens: read(tokens) & causal(tokens.shape[1])),
    "in PyTorch's layers": Layers,
}


def trained(state: TrainState, model: lf.Model, *, batch: int = 4, **given: Any) -> TrainState:
    settings: dict[str, Any] = {"optimizer": lf.sgd(0.1, momentum=0.9), "loss": lf.next_token} | given
    trainer = make_trainer(model, text(LENGTH), engine=lf.sparse_engine, batch_size=batch, **settings)
    return take_steps(trainer, state, seed=3, until=6)[0]


def assert_alike(one: TrainState, other: TrainState) -> None:
    for name, leaf in one.params.items():
        torch.testing.assert_close(other.params[name], leaf, rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_same_is_dropped_as_on_lanes_of_examples(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another number were drawn, weights would differ in the second place."""
    torch.manual_seed(0)
    model = network(NETWORKS[kind]())
    start, made = ticket(model, 0.6), list[Lowered | None]()

    def remembered(*given: Any) -> Lowered | None:
        made.append(training_on_lanes(*given))
        return made[-1]

    monkeypatch.setattr(training_programs, "training_on_lanes", remembered)
    on_tokens = trained(start, model)
    (lowered,) = made
    assert lowered is not None
    assert len(set(draws(lowered.program))) == DRAWS[kind]
    monkeypatch.setattr(training_programs, "training_on_lanes", lambda *given: None)
    assert_alike(trained(start, model), on_tokens)


def draws(program: Program) -> list[int]:
    """The numbers of operations that drop something, forward and backward."""
    columns = {OPCODES[name]: (column_of(name, "threshold"), column_of(name, "number"))
               for name in ("dropout", "token_attention", "token_attention_gradient")}  # fmt: skip
    rows = [row for row in program.code.rows.tolist() if row[0] in columns]
    return [row[columns[row[0]][1]] for row in rows if row[columns[row[0]][0]]]


def test_parts_of_a_batch_drop_other_numbers() -> None:
    """Also of a batch that is taken in parts, the program is the same, and the second part draws by its own number."""
    model = network(NETWORKS["of layers"]())
    start = ticket(model, 0.6)
    twice: dict[str, Any] = {"optimizer": lf.chain(lf.accumulate(2), lf.sgd(0.1)), "batch": 8}
    once: dict[str, Any] = {"optimizer": lf.sgd(0.1), "batch": 4}
    found = [trained(start, model, **given) for given in (twice, twice, once)]
    assert lf.same_bits(found[0].params, found[1].params)
    assert not lf.same_bits(found[0].params, found[2].params)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    model = network(NETWORKS["of masked weights"]())
    state, batch = ticket(model, 0.3), batch_of(7, 70, 13)
    program = program_for(model, state, 7, 70)
    one, two, other = (gradients_on(*each) for each in (
        (1, state, program, batch, 5), (2, state, program, batch, 5), (2, state, program, batch, 6),
    ))  # fmt: skip
    assert torch.equal(one, two)
    assert not torch.equal(other, one)


class Tabled(nn.Module):
    """A table of places that is dropped by itself: of numbers that are trained, or of none."""

    def __init__(self, *, trained: bool) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(13, 6), nn.Linear(6, 13)
        table = torch.randn(LENGTH, 6)
        self.places: Tensor
        if trained:
            self.places = nn.Parameter(table)
        else:
            self.register_buffer("places", table)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.tokens(x) + F.dropout(self.places[: x.shape[1]], 0.5, self.training))
        return found


@pytest.mark.parametrize("learned", [False, True])
def test_what_all_sequences_share_is_dropped_for_none_alone(learned: bool) -> None:
    model = network(Tabled(trained=learned))
    state, x = lf.init(model), batch_of(3, LENGTH, 13)[0]
    assert training_on_lanes(model, state, 3, LENGTH, Epilogue()) is None
    assert lanes_program(model, state.params, state.buffers, state.masks, x) is not None
