"""Trainings on few sequences, whose tokens are lanes: against the eager engine, and which ones these are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_programs import kernels  # noqa: F401
from test_decoding import Gated, Tokens, attended
from token_lanes import network, program_for, ticket
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.methods.during_training import exchanges
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored
from lthfunc.sparse.token_lanes import training_on_lanes
from lthfunc.sparse.training_programs import Programs
from lthfunc.training.engines.interface import Work
from lthfunc.training.loop import fit_together, take_steps
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.types import Dataset, Split, TrainState

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


def text(length: int = 20, vocabulary: int = 13) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    whole = torch.randint(0, vocabulary, (48, length + 1), generator=draw)
    split = Split(whole[:, :-1].contiguous(), whole[:, 1:].contiguous())
    return Dataset("text", split, split, split, classes=vocabulary)


def trained(state: TrainState, model: lf.Model, engine: Any, until: int, **given: Any) -> TrainState:
    # By SGD: Adam would take steps by the rounding of keys' biases, whose gradients are zero.
    settings: dict[str, Any] = {"optimizer": lf.sgd(0.1, momentum=0.9), "loss": lf.next_token} | given
    return take_steps(make_trainer(model, text(), engine=engine, **settings), state, seed=0, until=until)[0]


def assert_alike(one: TrainState, other: TrainState) -> None:
    for name, leaf in one.params.items():
        torch.testing.assert_close(other.params[name], leaf, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_trainings_equal_the_eager_engine(batch: int) -> None:
    """Stated: 1e-3 relative and absolute. Ten of them resumed after four have the same bits."""
    model = lf.models.char_transformer((20,), 13, layers=1, width=16, heads=2)
    start = ticket(model, 0.4)
    found = trained(start, model, lf.sparse_engine, 10, batch_size=batch)
    assert_alike(trained(start, model, "eager", 10, batch_size=batch), found)
    again = trained(start, model, lf.sparse_engine, 4, batch_size=batch)
    again = trained(again, model, lf.sparse_engine, 10, batch_size=batch)
    assert all(torch.equal(found.params[name], leaf) for name, leaf in again.params.items())


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": lf.chain(lf.accumulate(2), lf.clip_by_global_norm(1.0), lf.sgd(0.1))},
        {"optimizer": lf.chain(lf.sam(0.1), lf.sgd(0.1))},
    ],
    ids=["two parts of a batch", "a part by Python"],
)
def test_optimisers_see_the_same_gradients(given: dict[str, Any]) -> None:
    model = lf.models.char_transformer((20,), 13, layers=1, width=16, heads=2)
    start = ticket(model, 0.4)
    states = [trained(start, model, engine, 6, batch_size=6, **given) for engine in ("eager", lf.sparse_engine)]
    assert_alike(*states)


def tokens_of(model: lf.Model, batch: int, length: int = 20, **given: Any) -> int:
    """Of a sequence, in the program of a training; 0 where lanes are examples."""
    trainer = make_trainer(model, text(length), optimizer=lf.adam(1e-3), batch_size=batch, engine=Works.engine, **given)
    state = lf.init(model)
    assert Works.found is not None, trainer
    return Programs(Works.found).program(state, batch, Stored((length,), torch.int64)).tokens


class Works:
    """An engine that remembers for what it was made."""

    found: Work | None = None

    @staticmethod
    def engine(work: Work) -> Any:
        Works.found = work
        return lf.sparse_engine(work)


def test_the_choice_is_by_sizes_and_by_what_the_machine_computes() -> None:
    model = lf.models.char_transformer((20,), 13, layers=1, width=8, heads=2)
    given: dict[str, Any] = {"loss": lf.next_token}
    assert [tokens_of(model, batch, **given) for batch in (1, 4, 8, 9, 15, 16)] == [20, 20, 20, 0, 0, 0]
    assert tokens_of(model, 4, loss=lf.label_smoothed_next_token(0.1)) == 0
    dropping = lf.models.char_transformer((20,), 13, layers=1, width=8, heads=2, dropout=0.1)
    assert tokens_of(dropping, 4, **given) == 20


class Detached(Tokens):
    """No gradient goes through what it embeds."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.function(self.tokens(x))
        found: Tensor = self.head(x)
        return found


@pytest.mark.parametrize(
    "net",
    [
        Tokens(lambda x: x + x.cumsum(1)),
        Tokens(lambda x: x + x.mean(1, keepdim=True)),
        Tokens(lambda x: x + x.transpose(1, 2).reshape(x.shape)),
        Tokens(lambda x: attended(x, attn_mask=torch.ones(x.shape[1], x.shape[1]).tril(1).bool())),
        Detached(lambda x: x + 1),
    ],
    ids=["sums", "mean", "mixed by a view", "another mask", "without gradients"],
)
def test_networks_that_mix_tokens_otherwise_keep_lanes_of_examples(net: nn.Module) -> None:
    model = network(net)
    assert training_on_lanes(model, lf.init(model), 3, 20, Epilogue()) is None


class Shared(nn.Module):
    """A function of a table and of the number of tokens, which are added."""

    def __init__(self, function: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.function, self.tokens, self.head = function, nn.Embedding(13, 6), nn.Linear(6, 13)
        self.table = nn.Parameter(torch.randn(20, 6))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.tokens(x) + self.function(self.table, x.shape[1]))
        return found


def test_what_ran_before_still_trains() -> None:
    """On lanes of examples: a table that is scaled before tokens read it."""
    model = network(Shared(lambda table, n: 2 * table[:n]))
    start = ticket(model, 0.5)
    assert training_on_lanes(model, start, 4, 20, Epilogue()) is None
    assert_alike(*(trained(start, model, engine, 3, batch_size=4) for engine in ("eager", lf.sparse_engine)))


def test_numbers_that_two_tokens_read_are_refused() -> None:
    """Each token's part of the gradient would be all of it."""
    model = network(Shared(lambda table, n: torch.cat([table[: n // 2], table[: n - n // 2]])))
    assert training_on_lanes(model, lf.init(model), 4, 20, Epilogue()) is None


def test_other_buffers_have_another_program() -> None:
    """Tables of places are made of them."""
    model = network(Gated(20, vocabulary=13))
    state = ticket(model, 0.5)
    program = program_for(model, state, 3, 20)
    assert program.fits(state.buffers)
    assert not program.fits(state.buffers | {"cos": state.buffers["cos"] + 1})


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_masks_change_as_those_of_dense_trees_do(growth: str) -> None:
    model = network(Gated(20, vocabulary=13))
    trainer = lf.make_trainer(
        model, text(), optimizer=lf.adam(1e-3), batch_size=4, engine=lf.sparse_engine, loss=lf.next_token
    )
    updates = exchanges(trainer, (2, 4), growth_of(growth), lambda step: 0.3)
    ours, theirs = (
        fit_together(trainer, [ticket(model, 0.5)], seeds=[0], until=5, eval_every=5, updates=each)[0]
        for each in (updates, updates._replace(exchange=None))
    )
    assert [each.step for each in ours.changes] == [2, 4]
    assert all(each.exchanged > 0 for each in ours.changes)
    masks = zip(ours.state.masks.values(), theirs.state.masks.values(), strict=True)
    if growth == "random":
        assert lf.same_bits(ours.state, theirs.state)
    else:  # by gradients that rounding may order otherwise
        assert all(float((one == other).float().mean()) > 0.98 for one, other in masks)
