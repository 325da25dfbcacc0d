"""Modules that do more than compute: write into what they are given, keep things, draw from other generators."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_engines import interpreted
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.data.digits import read_digits
from lthfunc.errors import UserError
from lthfunc.training.engines.toolchain import why_not
from lthfunc.trees.flops import flops_of
from lthfunc.trees.model import apply_evaluating, apply_training
from lthfunc.trees.ops import clone, same_bits

ENGINES: list[Any] = ["eager", *([interpreted] if why_not("cpu") is None else [])]


class Net(nn.Module):
    """Two layers; `act` is called with the module, the input and what the first layer makes of it."""

    def __init__(self, act: Callable[[Any, Tensor], Tensor], *, tokens: bool = False) -> None:
        super().__init__()
        self.first = nn.Embedding(17, 12, max_norm=0.5) if tokens else nn.Linear(64, 12)
        self.fc, self.act = nn.Linear(12, 10), act
        self.register_buffer("seen", torch.zeros(()))
        self.n = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self, x)
        h = self.first(x)
        out: Tensor = self.fc(torch.relu(h.mean(1) if h.ndim > 2 else h))
        return out


def minus_mean(module: Any, x: Tensor) -> Tensor:
    x -= x.mean()
    return x


def relu_first(module: Any, x: Tensor) -> Tensor:
    return F.relu(x.sub_(0.3), inplace=True)


def only_large(module: Any, x: Tensor) -> Tensor:
    if x.max() > 0.9:  # not so for zeros, or for the first examples alone
        x.mul_(0.5)
    return x


def clamped(module: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        module.first.weight.clamp_(-0.1, 0.1)
    return x


def by_data(module: Any, x: Tensor) -> Tensor:
    module.first.weight.data = torch.renorm(module.first.weight.data, 2, 0, 0.5)
    return x


def counted(module: Any, x: Tensor) -> Tensor:
    module.seen += 1
    return x


def replaced(module: Any, x: Tensor) -> Tensor:
    module.seen = module.seen + 1
    return x


def nothing(module: Any, x: Tensor) -> Tensor:
    return x


WRITERS = [minus_mean, relu_first, only_large, clamped, counted, replaced]


def digits(*, tokens: bool = False) -> lf.Dataset:
    images, labels = read_digits()
    x, y = images[:700].flatten(1), labels[:700]
    x = (16 * x).long() if tokens else x
    return lf.data.from_tensors("digits", (x[:500], y[:500]), (x[500:], y[500:]), val=60, classes=10)


def snapshot(*things: Any) -> Any:
    return clone(things)


@pytest.mark.parametrize("act", [*WRITERS, by_data, nothing], ids=lambda act: act.__name__)
def test_no_function_changes_an_argument(act: Any) -> None:
    tokens = act is nothing  # an embedding that shortens its rows as they are read
    data, model = digits(tokens=tokens), lf.from_module(Net(act, tokens=tokens), tokens=tokens)
    state = lf.with_optimizer(lf.init(model, 1), lf.sgd(0.1, 0.9))
    state = state._replace(params={name: leaf * 3 for name, leaf in state.params.items()})
    batch = (data.train.x[:16], data.train.y[:16])
    before = snapshot(state, data.train, data.val, data.test, model.init(0))
    loss = lf.loss_of(model, state.buffers)
    calls: list[Callable[[], Any]] = [
        lambda: apply_training(model, state.params, state.buffers, batch[0])[0],
        lambda: apply_evaluating(model, state.params, state.buffers, batch[0]),
        lambda: lf.make_eval_step(model)(state.params, state.buffers, batch),
        lambda: lf.accuracy_on(model, state, data),
        lambda: flops_of(model.evaluating, data.shape, tokens=tokens),
        lambda: lf.wanda(lf.input_moments(model, state, [batch[0]]))(state.params, state.masks),
        lambda: lf.line(model, state, lf.init(model, 2), data.test, data.scale, points=3).error,
    ]
    if act is not by_data:
        trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1, 0.9), batch_size=20)
        calls += [
            lambda: lf.make_train_step(model, lf.cross_entropy, lf.sgd(0.1, 0.9))(state, batch)[0].params,
            lambda: lf.fit(trainer, state, seed=0, until=4, eval_every=2).state.params,
            *(
                partial(make(loss, [batch, batch]), state.params, state.masks)
                for make in (lf.snip, lf.grasp, lf.taylor)
            ),
        ]
    if act in (minus_mean, relu_first, nothing):  # those that vmap can run
        calls.append(lambda: lf.fisher(loss, [batch])(state.params, state.masks))
    for call in calls:
        results = [call(), call()]
        now = state, data.train, data.val, data.test, model.init(0)
        for was, is_now in zip(before, now, strict=True):
            assert same_bits(clone(was), clone(is_now)), call
        assert same_bits(*(each if isinstance(each, (Tensor, dict)) else torch.tensor(each) if isinstance(each, float)
                           else torch.zeros(()) for each in results))  # fmt: skip


def test_a_parameter_written_through_data_is_refused_for_training_with_the_line() -> None:
    with pytest.raises(UserError, match=r"(?s)Net .*test_user_modules.py: module.first.weight.data = .*no_grad"):
        lf.make_trainer(lf.from_module(Net(by_data)), digits(), optimizer=lf.sgd(0.1), batch_size=20)


def plain(module: nn.Module, start: lf.TrainState, data: lf.Dataset, steps: int) -> dict[str, Tensor]:
    """Training as PyTorch's users write it: the same batches, torch's own SGD."""
    module.load_state_dict({**start.params, **start.buffers})
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    from lthfunc.training.batches import BatchOrder

    rows = BatchOrder(len(data.train.x), 20, 0).rows(0, steps)
    module.train()
    for index in rows:
        optimizer.zero_grad()
        F.cross_entropy(module(data.train.x[index].clone()), data.train.y[index]).backward()
        optimizer.step()
    return {name: leaf.detach() for name, leaf in module.state_dict().items()}


@pytest.mark.parametrize("engine", [*ENGINES, pytest.param("compile", marks=pytest.mark.long)])
@pytest.mark.parametrize("act", [minus_mean, relu_first, clamped, counted, nothing], ids=lambda act: act.__name__)
def test_what_a_module_writes_counts_as_in_plain_pytorch(act: Any, engine: Any) -> None:
    if engine == "compile" and (act not in (clamped, minus_mean) or why_not("cpu") is not None):
        pytest.skip("two compilations tell as much, where there is a compiler")
    tokens = act is nothing
    module, data = Net(act, tokens=tokens), digits(tokens=tokens)
    model = lf.from_module(module, tokens=tokens)
    start = lf.init(model, 1)
    before = snapshot(start, data.train, data.val, data.test)
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1, 0.9), batch_size=20, engine=engine)
    fits = [lf.fit(trainer, start, seed=0, until=8, eval_every=4) for _ in range(2)]
    assert same_bits(before, snapshot(start, data.train, data.val, data.test))
    assert same_bits(fits[0].state, fits[1].state)
    wanted = plain(module, start, data, 8)
    for name, leaf in {**fits[0].state.params, **fits[0].state.buffers}.items():
        torch.testing.assert_close(leaf, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", [act for act in WRITERS if act is not only_large], ids=lambda act: act.__name__)
def test_side_by_side_as_one_after_the_other(act: Any) -> None:
    data, model = digits(), lf.from_module(Net(act))
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=20)
    starts = [lf.init(model, seed) for seed in (0, 1)]
    together = lf.fit_together(trainer, starts, seeds=[0, 1], until=4, eval_every=2)
    for number, start in enumerate(starts):
        alone = lf.fit(trainer, start, seed=number, until=4, eval_every=2)
        for name, leaf in alone.state.params.items():
            torch.testing.assert_close(together[number].state.params[name], leaf, rtol=1e-4, atol=1e-5)
        assert together[number].curve[-1].val_loss == pytest.approx(alone.curve[-1].val_loss, rel=1e-4)


def test_pruned_weights_that_a_module_brings_back_are_told() -> None:
    def lifted(module: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            module.first.weight.add_(0.01)
        return x

    data, model = digits(), lf.from_module(Net(lifted))
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=20)
    pruned = lf.prune(density=0.5)(lf.init(model))
    with pytest.raises(UserError, match=r"first.weight.* are no longer zero"):
        lf.fit(trainer, pruned, seed=0, until=4, eval_every=2)


def _number(module: Any, x: Tensor) -> Tensor:
    module.n += 1
    out: Tensor = x * (1 + (module.n > 100))
    return out


def _list(module: Any, x: Tensor) -> Tensor:
    module.__dict__.setdefault("all_of_them", []).append(len(x))
    return x


def _registers(module: Any, x: Tensor) -> Tensor:
    if not hasattr(module, "late"):
        module.register_buffer("late", torch.ones(()))
    out: Tensor = x * module.late
    return out


def _last(module: Any, x: Tensor) -> Tensor:
    before = getattr(module, "last", None)
    module.last = x.mean()
    return x if before is None else x + before


def _generator(module: Any, x: Tensor) -> Tensor:
    module.__dict__.setdefault("rng", np.random.default_rng(0))
    return x * float(module.rng.random())


def _entropy(module: Any, x: Tensor) -> Tensor:
    return x * float(np.random.default_rng().random())


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (_number, "Net keeps n from call to call outside of buffers; use register_buffer"),
        (_list, "Net keeps all_of_them from call to call"),
        (_registers, "Net changes the buffer late in forward; make it in __init__"),
        (_last, "Net .*(keeps last from call to call|returns different outputs when called again)"),
        (_generator, "Net keeps rng from call to call"),
        (_entropy, "Net returns different outputs when called again with the same"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_what_lasts_from_call_to_call_outside_of_buffers_is_refused(act: Any, words: str) -> None:
    data, model = digits(), lf.from_module(Net(act))
    for call in (
        lambda: lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=20),
        lambda: lf.accuracy_on(model, lf.init(model), data),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_a_cache_that_settles_is_no_fault() -> None:
    def cached(module: Any, x: Tensor) -> Tensor:
        module.size, module.table = x.shape[1], torch.arange(3)
        return x

    data, model = digits(), lf.from_module(Net(cached))
    assert 0 <= lf.accuracy_on(model, lf.init(model), data) <= 1


@pytest.mark.parametrize("source", ["python", "numpy", "torch"])
def test_random_numbers_of_python_and_numpy_depend_on_the_seed_alone(source: str) -> None:
    draws: dict[str, Callable[[], float]] = {
        "python": random.random, "numpy": np.random.rand, "torch": lambda: float(torch.rand(()))
    }  # fmt: skip

    def noisy(module: Any, x: Tensor) -> Tensor:
        return x * (0.5 + draws[source]())

    data, model = digits(), lf.from_module(Net(noisy))
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=20)
    start = lf.init(model)
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist(), torch.get_rng_state()
    one = lf.fit(trainer, start, seed=0, until=6, eval_every=3)
    assert random.getstate() == before[0]
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    other = lf.fit(trainer, start, seed=0, until=6, eval_every=3)
    assert same_bits(one.state, other.state)
    assert one.curve[1:] == other.curve[1:]
    assert lf.accuracy_on(model, one.state, data) == lf.accuracy_on(model, one.state, data)
    assert not same_bits(one.state.params, lf.fit(trainer, start, seed=1, until=6, eval_every=3).state.params)
    half, _ = lf.take_steps(trainer, start, seed=0, until=3)  # other steps, other numbers
    if source != "torch":  # whose generator's state is kept with the fit
        again = lf.fit(trainer, half, seed=0, until=6, eval_every=3, so_far=None)
        assert same_bits(again.state.params, one.state.params)
        with pytest.raises(UserError, match=r"^engine: Net draws from \w+'s \w+ in forward, which only"):
            lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=20, engine="compile")
