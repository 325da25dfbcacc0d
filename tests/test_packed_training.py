"""Networks that are sparse from the first step on: the bits of dense trees, without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from documentation import blocks
from test_exchanges import MODEL, NET, OPTIMIZERS, images
from torch import nn

import lthfunc as lf
from lthfunc.errors import DivergedError, UserError
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

SEED, STEPS = 3, 12
DATA = images()


def change(state: lf.TrainState, now: Any) -> lf.TrainState:
    return lf.drop_and_grow(state, lf.random_growth(now.seed, now.step), 0.3)


SET = lf.MaskUpdates((2, 5, 9), change, exchange=lambda network, now: (lf.random_growth(now.seed, now.step), 0.3))


def training(optimizer: lf.Optimizer, steps: int = STEPS, updates: lf.MaskUpdates | None = SET) -> Any:
    return lf.train_packed(NET, DATA, optimizer=optimizer, steps=steps, batch_size=8, seed=SEED, updates=updates)


def large() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(72, 100_000), nn.ReLU(), nn.Linear(100_000, 100_000), nn.ReLU(),
            nn.Linear(100_000, 3),
        )  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_packed_training_has_the_bits_of_dense_trees(optimizer: str) -> None:
    made, start = OPTIMIZERS[optimizer], lf.init_packed(NET, density=0.4, seed=SEED)
    trainer = lf.make_trainer(MODEL, DATA, optimizer=made, batch_size=8, engine=lf.sparse_engine)
    expected = lf.fit(trainer, lf.unpack_state(start), seed=SEED, until=STEPS, eval_every=STEPS, updates=SET).state
    found = training(made)(start)
    assert lf.same_bits(lf.unpack_state(found), expected)
    assert lf.same_bits(lf.pack_state(expected), found)
    assert lf.mask_distance(lf.unpack_state(start).masks, expected.masks) > 0, "weights were exchanged"
    accuracy = lf.packed_accuracy(NET, found, DATA, "train")
    assert accuracy == pytest.approx(lf.accuracy_on(MODEL, expected, DATA, "train"))


@pytest.mark.parametrize("optimizer", ["momentum", "everything"])
def test_survivors_are_pruned_to_the_bits_of_dense_trees(optimizer: str) -> None:
    def pruned(state: lf.TrainState, now: Any) -> lf.TrainState:
        return lf.prune(density=0.8 / now.step, keep_moments=True)(state)

    made, start = OPTIMIZERS[optimizer], lf.init_packed(NET, density=0.4, seed=SEED)
    updates = lf.MaskUpdates((2, 5, 9), pruned, exchange=lambda network, now: lf.prune_survivors(0.8 / now.step))
    trainer = lf.make_trainer(MODEL, DATA, optimizer=made, batch_size=8, engine=lf.sparse_engine)
    given: dict[str, Any] = {"seed": SEED, "until": STEPS, "eval_every": STEPS}
    expected = lf.fit(trainer, lf.unpack_state(start), updates=updates._replace(exchange=None), **given)
    found = training(made, updates=updates)(start)
    assert lf.same_bits(lf.unpack_state(found), expected.state)
    assert lf.count(expected.state.masks).density == pytest.approx(0.8 / 9, abs=0.001)
    assert expected.changes == lf.fit(trainer, lf.unpack_state(start), updates=updates, **given).changes
    more = updates._replace(exchange=lambda network, now: lf.prune_survivors(0.41))
    with pytest.raises(UserError, match=r"^density: invalid value 0\.41 \(expected a number in \(0, 0\.4"):
        training(made, updates=more)(start)
    with pytest.raises(UserError, match=r"^allocate: invalid value .* \(expected globally, globally_with_minimum"):
        lf.prune_survivors(0.4, allocate=lf.lamp)


def test_a_network_of_tokens_trains_packed() -> None:
    """Embeddings take whole numbers, and each token of a text has a target; the first's tells nothing of the others."""
    x = torch.randint(7, (40, 6), generator=torch.Generator().manual_seed(SEED))
    y = (x + 1) % 7
    y[:, 0] = y.sum(1) % 7
    data = lf.data.from_tensors("tokens", (x, y), (x[:9], y[:9]), val=8)
    model, adam = lf.models.char_transformer(data.shape, data.classes, width=16, heads=2, layers=1), lf.adam(0.01)
    start = lf.init_packed(model.training, density=0.4, seed=SEED)
    given: dict[str, Any] = {"optimizer": adam, "batch_size": 8}
    found = lf.train_packed(model.training, data, steps=STEPS, seed=SEED, updates=SET, **given)(start)
    trainer = lf.make_trainer(model, data, engine=lf.sparse_engine, **given)
    expected = lf.fit(trainer, lf.unpack_state(start), seed=SEED, until=STEPS, eval_every=STEPS, updates=SET).state
    assert lf.same_bits(lf.unpack_state(found), expected)
    with torch.no_grad():
        outputs = torch.func.functional_call(model.evaluating, expected.params, (data.test.x,))
    right = float((outputs.argmax(-1) == data.test.y).float().mean())
    assert 0.5 < right < 1
    assert lf.packed_accuracy(model.training, found, data) == pytest.approx(right)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.see, self.read, self.judge = nn.Conv2d(1, 3, 3), nn.Embedding(6, 4), nn.Linear(60, 3)

    def forward(self, image: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        both = [self.see(image).flatten(1), self.read(words).flatten(1)]
        found: torch.Tensor = self.judge(torch.relu(torch.cat(both, 1)))
        return found


@pytest.mark.parametrize("named", [False, True])
def test_a_network_of_several_inputs_trains_packed(named: bool) -> None:
    draw = torch.Generator().manual_seed(SEED)
    inputs = torch.randn(40, 1, 6, 6, generator=draw), torch.randint(6, (40, 3), generator=draw)
    x: Any = dict(zip(("image", "words"), inputs, strict=True)) if named else inputs
    data = lf.data.from_tensors("two", (x, inputs[1][:, 0] % 3), (x, inputs[1][:, 0] % 3), val=8)
    net = Two()
    model, start = lf.from_module(net, parts=data.parts), lf.init_packed(net, density=0.5, seed=SEED)
    given: dict[str, Any] = {"optimizer": lf.adam(0.02), "batch_size": 8}
    trainer = lf.make_trainer(model, data, engine=lf.sparse_engine, **given)
    expected = lf.fit(trainer, lf.unpack_state(start), seed=SEED, until=60, eval_every=60, updates=SET).state
    for module in (net, model.training):  # which takes the row of inputs apart itself
        found = lf.train_packed(module, data, steps=60, seed=SEED, updates=SET, **given)(start)
        assert lf.same_bits(lf.unpack_state(found), expected)
    image, words = inputs
    right = torch.func.functional_call(net, expected.params, (image, words)).argmax(1) == words[:, 0] % 3
    assert lf.packed_accuracy(net, found, data) == pytest.approx(float(right.float().mean()))
    assert right.float().mean() > 0.6
    assert not net._forward_pre_hooks


@pytest.mark.parametrize("stop", [5, 7])  # right before an update, and between two
def test_a_saved_training_goes_on_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    for name, optimizer in OPTIMIZERS.items():
        start = lf.init_packed(NET, density=0.4, seed=SEED)
        lf.save_packed(tmp_path / name, training(optimizer, stop)(start))
        again = lf.load_packed(tmp_path / name, optimizer)
        assert int(again.step) == stop
        assert lf.same_bits(training(optimizer)(again), training(optimizer)(start))
    with pytest.raises(UserError, match="not that of this optimizer"):
        lf.load_packed(tmp_path / "momentum", OPTIMIZERS["adamw"])
    assert lf.load_packed(tmp_path / "momentum").opt == ()
    lf.save_ticket(tmp_path / "ticket", lf.ticket(lf.init(MODEL)))
    with pytest.raises(UserError, match="is not a packed state"):
        lf.load_packed(tmp_path / "ticket")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tree: tree.pop("step"), "it has no step"),
        (lambda tree: tree["positions"].pop("0.weight"), "0.weight lacks its values, positions or shape"),
        (lambda tree: tree["shapes"].pop("0.weight"), "0.weight lacks its values, positions or shape"),
        (lambda tree: tree["params"].pop("0.weight"), "0.weight lacks its values, positions or shape"),
        (lambda tree: tree["positions"].update({"0.weight": torch.arange(3)}), "other positions than one for each"),
        (lambda tree: tree["positions"]["0.weight"].mul_(-1), "not rising numbers below 8"),
        (lambda tree: tree["positions"]["0.weight"].copy_(torch.tensor([0, 2, 2, 3])), "not rising numbers below 8"),
        (lambda tree: tree["positions"]["0.weight"][-1:].fill_(8), "not rising numbers below 8"),
    ],
)
def test_a_damaged_file_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    state, path = lf.init_packed(nn.Sequential(nn.Linear(4, 2)), density=0.5), tmp_path / "packed.safetensors"
    lf.save_packed(path, state)
    tree, about = lf.load_tree(path)
    change(tree)
    lf.save_tree(path, tree, about)
    with pytest.raises(UserError, match=f"packed.safetensors: is no whole packed state: .*{why}"):
        lf.load_packed(path)


def test_masks_and_weights_are_drawn_as_promised() -> None:
    state = lf.init_packed(NET, density=0.3, seed=SEED)
    dense = lf.prune(density=0.3, score=lf.random_scores(0), allocate=lf.erk())(lf.init(MODEL))
    assert {name: len(places) for name, places in state.positions.items()} == {
        name: int(mask.sum()) for name, mask in dense.masks.items()
    }
    wide = lf.init_packed(nn.Conv2d(40, 60, 5), density=0.5, seed=1)
    assert float(wide.params["weight"].std()) == pytest.approx((2 / (25 * 100 * 0.5)) ** 0.5, rel=0.02)
    places = wide.positions["weight"]
    assert (places.diff() > 0).all()
    assert float(places.double().mean()) == pytest.approx(60_000 / 2, rel=0.02)
    assert int(wide.params["bias"].count_nonzero()) == 0
    other = lf.init_packed(nn.Conv2d(40, 60, 5), density=0.5, seed=2)
    assert not torch.equal(places, other.positions["weight"])
    assert lf.same_bits(wide, lf.init_packed(nn.Conv2d(40, 60, 5), density=0.5, seed=1))
    with torch.device("meta"):
        norm = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    state = lf.init_packed(norm, density=1.0)
    assert state.params["1.weight"].tolist() == [1.0] * 4
    assert state.buffers["1.running_var"].tolist() == [1.0] * 4
    assert int(state.buffers["1.num_batches_tracked"]) == 0


def test_what_a_real_module_has_stays_as_it_is() -> None:
    norm = nn.BatchNorm1d(4)
    norm.load_state_dict({**norm.state_dict(), "weight": torch.full((4,), 0.25), "running_var": torch.full((4,), 3.0)})
    net = nn.Sequential(nn.Linear(6, 4), norm).double()
    state = lf.init_packed(net, density=0.5)
    assert {leaf.dtype for leaf in state.params.values()} == {torch.float64}
    assert state.params["1.weight"].tolist() == [0.25] * 4
    assert state.buffers["1.running_var"].tolist() == [3.0] * 4
    assert state.params["0.bias"].tolist() == [0.0] * 4


@pytest.mark.parametrize("updates", [SET, None])
def test_a_training_that_diverges_gives_no_network(updates: lf.MaskUpdates | None) -> None:
    start = lf.init_packed(NET, density=0.4, seed=SEED)
    train = lf.train_packed(NET, DATA, optimizer=lf.sgd(1e30), steps=STEPS, batch_size=8, seed=SEED, updates=updates)
    with pytest.raises(DivergedError, match=f"^training diverged by step {STEPS if updates is None else 2}: a loss or"):
        train(start)


def test_an_exchange_draws_the_same_numbers_in_every_training() -> None:
    def change(network: Any, now: Any) -> Any:
        return lf.random_growth(int(torch.randint(1000, ()))), 0.3

    made, start = OPTIMIZERS["adamw"], lf.init_packed(NET, density=0.4, seed=SEED)
    updates = SET._replace(exchange=change)
    trainer = lf.make_trainer(MODEL, DATA, optimizer=made, batch_size=8, engine=lf.sparse_engine)
    expected = lf.fit(trainer, lf.unpack_state(start), seed=SEED, until=STEPS, eval_every=STEPS, updates=updates).state
    before = torch.get_rng_state()
    assert lf.same_bits(lf.unpack_state(training(made, updates=updates)(start)), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_ten_thousand_million_weights_train_and_are_exchanged() -> None:
    """Forty gigabytes if anything on the way were dense."""
    net = large()
    start = lf.init_packed(net, density=1e-6)
    train = lf.train_packed(net, DATA, optimizer=lf.adam(0.01), steps=3, batch_size=8, updates=SET)
    found = train(start)
    assert sum(found.sizes.values()) == 100_000 * (72 + 100_000 + 3)
    for name, places in found.positions.items():
        kept = torch.isin(places, start.positions[name]).double().mean()
        assert 0.69 < float(kept) < 0.71, "three tenths were exchanged, hardly any for itself"
        assert len(places.unique()) == len(places) == len(found.params[name])
    assert not torch.equal(found.params["5.bias"], start.params["5.bias"])


class Own(nn.Linear):
    pass


def test_what_cannot_train_packed_is_refused() -> None:
    start, adam = lf.init_packed(NET, density=0.5), lf.adam(0.01)

    def scored(network: Any, now: Any) -> Any:
        return lf.magnitude(network().params, network().masks), 0.3

    def half_as_much_again(network: Any, now: Any) -> Any:
        return lf.random_growth(0), 1.5

    def a_number(network: Any, now: Any) -> Any:
        return 3

    dense: Any = lf.init(lf.from_module(NET))
    with torch.device("meta"):
        own, other = Own(72, 3), nn.ParameterList([nn.Parameter(torch.zeros(3))])
    of_own = lf.init_packed(own, density=0.5)
    for words, call in (
        ("already at step", lambda: training(adam, 2)(start._replace(step=torch.tensor(2)))),
        ("expected parts that the sparse engine", lambda: training(lf.lion(0.01))),
        ("expected one whose exchange", lambda: training(adam, updates=lf.MaskUpdates((2,), change))),
        ("no dense network", lambda: training(adam, updates=SET._replace(exchange=scored))(start)),
        ("expected a number in", lambda: training(adam, updates=SET._replace(exchange=half_as_much_again))(start)),
        (
            r"updates: exchange: invalid value '3' \(expected \(growth, fraction\)",
            lambda: training(adam, updates=SET._replace(exchange=a_number))(start),
        ),
        ("state must be a PackedState, as .* give it, not a TrainState", lambda: training(adam)(dense)),
        (
            r"fit the module: weight is missing in the state and \(3, 72\) in the module$",
            lambda: lf.packed_accuracy(nn.Linear(72, 3), lf.init_packed(nn.Sequential(nn.Linear(72, 3)), 0.5), DATA),
        ),
        (
            r"weight is \(3, 72\) in the state and \(3, 71\) in the module$",
            lambda: lf.packed_accuracy(nn.Linear(71, 3), lf.init_packed(nn.Linear(72, 3), 0.5), DATA),
        ),
        (
            "running_mean is missing in the state and a buffer in the module$",
            lambda: lf.packed_accuracy(nn.BatchNorm1d(3), lf.init_packed(nn.LayerNorm(3), 0.5), DATA),
        ),
        ("Own: cannot be compared", lambda: lf.train_packed(own, DATA, optimizer=adam, steps=2)(of_own)),
        ("density: invalid value 1.5", lambda: lf.init_packed(NET, density=1.5)),
        ("value of 1.0 is not known", lambda: lf.init_packed(nn.Sequential(nn.Linear(2, 2), other), density=0.5)),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_the_page_trains_packed() -> None:
    """Narrower here: what steps cost are the units, which are dense."""
    names: dict[str, Any] = {}
    for code in blocks("docs/how-to/packed.md", "python"):  # with SET, and then with RigL
        exec(compile(code.replace("20_000", "200").replace("2e-4", "0.1"), "packed.md", "exec"), names)
        assert int(names["state"].step) == 60
        assert lf.packed_accuracy(names["net"], names["state"], names["data"]) > 0.5
