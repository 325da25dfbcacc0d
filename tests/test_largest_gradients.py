"""Weights of the largest gradients, which the machine finds row by row: against float64, on dense trees, and packed."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import random_masks
from test_exchanges import MODEL, NET, images
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import DivergedError, UserError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.largest_gradients import places_of_largest
from lthfunc.sparse.program import IN_PARTS, Epilogue, Stored, lower
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.cpu_threads import using_threads
from lthfunc.trees.model import apply_training

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

DATA = images()


class Tokens(nn.Module):
    """A linear layer of each of twelve tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(6, 10), nn.Linear(120, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.each(x.flatten(1, 2))).flatten(1))
        return scores


class Words(nn.Module):
    """Numbers as tokens of a table, which is that of the outputs as well where it is tied, and a table of places."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tied, self.table, self.places = tied, nn.Embedding(9, 20, padding_idx=4), nn.Parameter(torch.randn(12, 20))
        self.each, self.head = nn.Linear(20, 20), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (9 * torch.sigmoid(x.flatten(1)[:, :12])).long()
        hidden = torch.relu(self.each(self.table(tokens) + self.places))
        if self.tied:
            hidden = torch.relu(self.each(hidden))
        words = F.linear(hidden, self.table.weight) if self.tied else hidden[..., :9]
        scores: Tensor = self.head(words.mean(1))
        return scores


class Sequence(nn.Module):
    """Recurrent layers in both directions over twelve steps of six numbers."""

    def __init__(self, layer: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.layer = layer(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layer(x.flatten(1, 2))[0].mean(1))
        return scores


NETWORKS = {
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(72, 90), nn.ReLU(), nn.Linear(90, 3)),
    "convolutions": nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, groups=2),
        nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3),
    ),
    "tokens": Tokens(),
    "transposed": nn.Sequential(
        nn.ConvTranspose2d(2, 6, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(), nn.AvgPool2d(13), nn.Flatten(),
        nn.Unflatten(1, (2, 2)), nn.ConvTranspose1d(2, 3, 2, stride=2), nn.Flatten(), nn.Linear(12, 3),
    ),
    "lstm": Sequence(nn.LSTM),
    "gru": Sequence(nn.GRU),
    "words": Words(tied=False),
    "tied": Words(tied=True),
}  # fmt: skip


@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("examples", [5, 40])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_largest_are_those_of_float64(network: str, examples: int, density: float) -> None:
    tables = ["places"] if hasattr(NETWORKS[network], "places") else []
    model = lf.from_module(NETWORKS[network], prunable=tables, warn=False)
    masks = random_masks(model, density, 1)
    params, buffers = model.init(0)
    params = lf.apply_masks(params, masks)
    x, y = (part[:examples] for part in DATA.train)
    program = lower(
        captured(model, x.shape[1:], training=True), params, buffers, masks, batch=40,
        stored=Stored(tuple(x.shape[1:]), x.dtype), epilogue=Epilogue(), builder=IN_PARTS,
    ).program  # fmt: skip
    assert program.whole_layers().sizes.keys() == masks.keys()
    half = random_masks(model, 0.5, 2)
    taken = {name: (mask & half[name]).flatten().nonzero().flatten() for name, mask in masks.items()}
    counts = {name: (mask.numel() - len(taken[name])) // 3 for name, mask in masks.items()}
    running = Workspace(program, params, buffers)
    before = [part.clone() for part in (running.values, running.constants, running.totals)]
    found = places_of_largest(running.aside(program), (x, y), (3, 0), taken, counts)
    with using_threads(2):
        assert lf.same_bits(places_of_largest(running.aside(program), (x, y), (3, 0), taken, counts), found)
    assert lf.same_bits([running.values, running.constants, running.totals], before), "the network stays as it was"
    wide = {name: leaf.double().requires_grad_() for name, leaf in params.items()}
    kept = {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in buffers.items()}
    F.cross_entropy(apply_training(model, wide, kept, x.double())[0], y).backward()
    assert found is not None
    for name, places in found.items():
        gradient = wide[name].grad
        assert gradient is not None
        hope = gradient.abs().flatten().index_fill(0, taken[name], -1.0)
        best = hope.topk(counts[name]).values
        assert len(places) == counts[name] > 0
        assert best[0] > 0
        assert (places.diff() > 0).all()
        torch.testing.assert_close(hope[places].sort(descending=True).values, best, rtol=1e-3, atol=1e-6)


def rigl(examples: int = 8) -> lf.MaskUpdates:
    def change(state: lf.TrainState, now: Any) -> lf.TrainState:
        raise AssertionError("there is a dense network")

    def exchange(network: Any, now: Any) -> Any:
        return lf.gradient_growth(DATA, examples, now.seed, now.step), 0.3

    return lf.MaskUpdates((2, 5, 9), change, exchange=exchange)


def packed(net: nn.Module = NET, updates: lf.MaskUpdates | None = None, data: lf.Dataset = DATA) -> Any:
    given: Any = {"optimizer": lf.adam(0.01), "steps": 12, "batch_size": 8, "seed": 3}
    return lf.train_packed(net, data, updates=updates or rigl(), **given)


@pytest.mark.parametrize("network", ["images", "transposed", "gru", "tied"])
def test_packed_trainings_grow_by_gradient_to_the_bits_of_dense_trees(network: str) -> None:
    net = NET if network == "images" else NETWORKS[network]
    start = lf.init_packed(net, density=0.4, seed=3)
    model = MODEL if net is NET else lf.from_module(net, warn=False)
    trainer = lf.make_trainer(model, DATA, optimizer=lf.adam(0.01), batch_size=8, engine=lf.sparse_engine)
    expected = lf.fit(trainer, lf.unpack_state(start), seed=3, until=12, eval_every=12, updates=rigl())
    assert lf.same_bits(packed(net)(start), lf.pack_state(expected.state))
    assert all(change.exchanged > 0 for change in expected.changes)


def test_a_layer_whose_gradient_would_not_fit_is_taken_row_by_row() -> None:
    """Its gradient would take 0.4 GB, and the process grows by less than a tenth of that."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(72, 10_000), nn.ReLU(), nn.Linear(10_000, 10_000), nn.ReLU(),
                            nn.Linear(10_000, 3))  # fmt: skip
    start = lf.init_packed(net, density=1e-4)
    packed(net, rigl()._replace(steps=()))(start)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = packed(net, rigl()._replace(steps=(2,)))(start)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 40e6
    assert not torch.equal(state.positions["3.weight"], start.positions["3.weight"])


def test_growth_that_packed_trainings_cannot_take_is_refused() -> None:
    start = lf.pack_state(lf.prune(density=0.5)(lf.init(lf.from_module(NET))))
    with pytest.raises(UserError, match="at most 8, the batch_size"):
        packed(NET, rigl(9))(start)


def test_a_gradient_that_is_no_number_is_a_divergence() -> None:
    def exchange(network: Any, now: Any) -> Any:
        x, y = DATA.train
        return lf.gradient_growth(DATA, 8, now.seed)._replace(batch=lambda: (x[8:16] * torch.inf, y[8:16])), 0.3

    updates = rigl()._replace(exchange=exchange)
    with pytest.raises(DivergedError, match="by step 2: a gradient is not finite"):
        packed(updates=updates)(lf.init_packed(NET, density=0.4))


def test_engines_that_take_no_gradients_of_pruned_weights_say_so() -> None:
    trainer = lf.make_trainer(
        MODEL, DATA, optimizer=lf.adam(0.01), batch_size=8, engine=lf.sparse_engine,
        loss=lf.label_smoothed_cross_entropy(0.1),
    )  # fmt: skip
    state = lf.prune(density=0.5)(lf.init(MODEL))
    with pytest.raises(UserError, match=r"gradient_growth: .* no engine .*\(expected the sparse engine, cross"):
        lf.fit(trainer, state, seed=0, until=6, eval_every=6, updates=rigl(9))


def test_numbers_are_moved_from_where_their_sources_say() -> None:
    build.load_kernels()
    numbers, sources = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([2, -1, 0, 1])
    moved = torch.full((2, 4), 9.0)
    torch.ops.lthfunc.move_numbers(numbers, sources, moved)
    assert moved.tolist() == [[3.0, 0.0, 1.0, 2.0], [6.0, 0.0, 4.0, 5.0]]
    for wrong, into in ((torch.tensor([0, 3]), torch.empty(2, 2)), (torch.tensor([0, 1]), torch.empty(3))):
        with pytest.raises(ValueError, match="lthfunc: "):
            torch.ops.lthfunc.move_numbers(numbers, wrong, into)
