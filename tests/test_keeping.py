"""Modules that keep what they have just computed, as features of a layer are looked at: nothing of it lasts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_engines import interpreted
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.training.engines.toolchain import why_not
from lthfunc.trees.model import apply_training

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
DATA = lf.data.from_tensors("d", (X, Y), (X, Y), val=8)


class Net(nn.Module):
    """`keep` is called with the module and the hidden layer's outputs, and gives what goes on."""

    def __init__(self, keep: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.keep = nn.Linear(6, 8), nn.Linear(8, 3), keep
        self.last: Any = None
        self.seen: dict[str, Any] = {"features": []}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.keep(self, torch.tanh(self.a(x))))
        return out


def attribute(net: Any, h: Tensor) -> Tensor:
    net.last = h
    found: Tensor = net.last
    return found


def late_attribute(net: Any, h: Tensor) -> Tensor:
    net.penalty = h.square().sum()
    found: Tensor = h + 0 * net.penalty
    return found


def in_a_dictionary(net: Any, h: Tensor) -> Tensor:
    net.seen["h"] = h
    out: Tensor = net.seen["h"]
    return out


def in_a_list(net: Any, h: Tensor) -> Tensor:
    net.seen["features"].clear()
    net.seen["features"].append(h)
    out: Tensor = net.seen["features"][0]
    return out


def a_constant(net: Any, h: Tensor) -> Tensor:
    if "mask" not in net.seen:  # made in the first call, whatever that is a part of
        net.seen["mask"] = torch.ones(8)
    out: Tensor = h * net.seen["mask"]
    return out


KEEPING = [attribute, late_attribute, in_a_dictionary, in_a_list, a_constant]
ENGINES: list[Any] = ["eager", *([interpreted, lf.sparse_engine] if why_not("cpu") is None else [])]


def check_as_before(module: nn.Module) -> None:
    kept = vars(module)
    assert kept["last"] is None
    assert kept["seen"] == {"features": []}
    assert "penalty" not in kept
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied(X).shape == (40, 3)


@pytest.mark.parametrize("keep", KEEPING, ids=lambda keep: keep.__name__)
def test_what_is_kept_of_the_last_call_does_not_last(keep: Any) -> None:
    module = Net(keep)
    model = lf.from_module(module, init=lf.as_built)
    start = lf.init(model)
    loss = F.cross_entropy(module(X), Y)
    names, leaves = zip(*module.named_parameters(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(loss, leaves), strict=True))
    for engine in ENGINES if keep is attribute else ENGINES[:2] if keep is a_constant else ENGINES[:1]:
        whole = DATA._replace(train=lf.Split(X, Y))
        done = lf.train(model, whole, optimizer=lf.sgd(1.0), steps=1, batch_size=40, engine=engine)(start)
        for name, leaf in done.params.items():
            torch.testing.assert_close(start.params[name] - leaf, wanted[name], rtol=1e-4, atol=1e-5)
        check_as_before(model.training)
        check_as_before(model.evaluating)
    score = lf.fisher(lf.loss_of(model, start.buffers), [(X, Y)])  # gradients under vmap
    assert all(leaf.isfinite().all() for leaf in score(start.params, start.masks).values())
    apply_training(model, start.params, start.buffers, X)
    right = (module(X).argmax(1) == Y).double().mean()
    assert lf.accuracy_on(model, start, DATA) == pytest.approx(float(right))
    check_as_before(model.training)
    check_as_before(model.evaluating)
    again = lf.from_module(module, init=lf.as_built)  # which holds a tensor with a history now
    assert lf.same_bits(lf.init(again).params, start.params)


def read_before(net: Any, h: Tensor) -> Tensor:
    before, net.last = net.last, h.detach().mean()
    return h if before is None else h + before


def first_inputs(net: Any, h: Tensor) -> Tensor:
    if net.last is None:
        net.last = h.detach().mean()
    out: Tensor = h - net.last
    return out


def turns(net: Any, h: Tensor) -> Tensor:
    net.last = not net.last
    return h if net.last else -h


def average(net: Any, h: Tensor) -> Tensor:
    net.last = 0.9 * (net.last or 0.0) + 0.1 * float(h.mean())
    return h


def grows(net: Any, h: Tensor) -> Tensor:
    net.seen["features"].append(h)
    return h


@pytest.mark.parametrize("keep", [read_before, first_inputs, turns, average, grows], ids=lambda keep: keep.__name__)
def test_what_depends_on_the_calls_before_is_refused(keep: Any) -> None:
    model = lf.from_module(Net(keep))
    name = "seen" if keep is grows else "last"
    words = f"Net keeps {name} from call to call outside of buffers; use register_buffer"
    for _ in range(2):  # no matter what was called before
        with pytest.raises(UserError, match=words):
            lf.train(model, DATA, optimizer=lf.sgd(0.1), steps=1, batch_size=8)
