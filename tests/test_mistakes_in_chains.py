"""Mistakes in chains of parts, and in parts of one's own: one line, before a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mistakes import assert_told_in_one_line
from torch import nn

import lthfunc

lf: Any = lthfunc  # What is passed is wrong on purpose.
MODEL = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def trained(optimizer: Any, **given: Any) -> Any:
    return lf.train(MODEL, lf.data.load("digits"), optimizer=optimizer, steps=2, **given)(lf.init(MODEL))


def mine(init: Any, update: Any = lambda grads, state, context: (grads, state)) -> Any:
    return trained(lf.chain(lf.Part("mine", init, update), lf.sgd(0.1)))


def own(init: Any) -> Any:
    return trained(lf.Optimizer(init, lambda grads, state, params, step: (params, state)))


#: What is typed, and what the one line says.
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a part that is not called": (lambda: lf.chain(lf.sam, lf.sgd(0.1)), r"the function sam; call it: lf.sam\(…\)$"),
    "a list": (lambda: lf.chain([lf.sgd(0.1)]), r"give them one by one: lf.chain\(\*parts\)$"),
    "a number as state": (
        lambda: mine(lambda params, buffers: 0),
        r"^optimizer: 'mine' has an int in its state \(expected tensors, in tuples and dicts\)$",
    ),
    "a state that becomes numbers": (
        lambda: mine(lambda params, buffers: (), lambda grads, state, context: (grads, (1, 2))),
        "has an int in its state",
    ),
    "an init of other arguments": (lambda: mine(lambda params: ()), "^optimizer: 'mine' fails: TypeError: .* takes 1 "),
    "an optimiser with numbers": (lambda: own(lambda params: {"step": "0"}), "has a str in its state"),
    "mixed weights": (
        lambda: trained(lf.muon(0.1), engine=lf.sparse_engine),
        "^engine: sparse updates surviving weights alone, and this optimiser mixes all of a layer's; use compile$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name: str) -> None:
    assert_told_in_one_line(*MISTAKES[name])


def test_states_of_tensors_none_and_nothing_are_right() -> None:
    for state in ((), {"a": None}, [torch.zeros(())], {"n": torch.zeros(3), "more": ({"x": torch.ones(())},)}):
        assert int(mine(lambda params, buffers, state=state: state).step) == 2
