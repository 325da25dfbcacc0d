"""Loops that write into an attached module between two steps, and mistakes in what is attached."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lthfunc
from lthfunc.errors import UserError

lf: Any = lthfunc  # What is passed is wrong on purpose.


def pruned() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A network of half of its weights, after three steps with moments."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    attached = lf.attach(net, optimizer, lf.prune(fraction=0.5))
    steps(net, optimizer, 3)
    attached.next_round()
    return net, optimizer, attached


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        net(torch.ones(4, 6)).square().sum().backward()
        optimizer.step()


def loads(net: nn.Module) -> None:
    net.load_state_dict({name: torch.ones_like(leaf) for name, leaf in net.state_dict().items()})


def loads_a_layer(net: nn.Module) -> None:
    loads(net.get_submodule("2"))


def initialises(net: nn.Module) -> None:
    nn.init.ones_(net.get_parameter("0.weight"))


def replaces_data(net: nn.Module) -> None:
    net.get_parameter("0.weight").data = torch.ones(8, 6)


@pytest.mark.parametrize("write", [loads, loads_a_layer, initialises, replaces_data])
def test_what_is_written_between_steps_is_pruned_again(write: Callable[[nn.Module], None]) -> None:
    net, optimizer, attached = pruned()
    steps(net, optimizer, 2)
    write(net)
    with pytest.warns(UserWarning, match=r"attach: \d+ pruned weights of [02].weight were written to, "):
        steps(net, optimizer, 1)
    for _ in range(2):
        for name, mask in attached.masks.items():
            assert not net.get_parameter(name)[~mask].any()
            assert net.get_parameter(name)[mask].all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            steps(net, optimizer, 2)


def test_what_pytorch_does_not_count_is_pruned_again_within_a_hundred_steps() -> None:
    net, optimizer, attached = pruned()
    steps(net, optimizer, 2)
    net.get_parameter("0.weight").data.copy_(torch.ones(8, 6))
    mask = attached.masks["0.weight"]
    with pytest.warns(UserWarning, match=rf"attach: {int((~mask).sum())} pruned weights of 0.weight were written to, "):
        steps(net, optimizer, 100)
    assert not net.get_parameter("0.weight")[~mask].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(net, optimizer, 200)


def test_moments_of_pruned_weights_that_are_loaded_move_none() -> None:
    net, optimizer, attached = pruned()
    steps(net, optimizer, 1)
    dense = copy.deepcopy(optimizer.state_dict())
    dense["state"] = {
        key: {"step": torch.tensor(5.0), "exp_avg": torch.ones_like(leaf), "exp_avg_sq": torch.ones_like(leaf)}
        for key, leaf in enumerate(net.parameters())
    }
    optimizer.load_state_dict(dense)
    steps(net, optimizer, 3)
    for name, mask in attached.masks.items():
        assert not net.get_parameter(name)[~mask].any()
        assert not optimizer.state[net.get_parameter(name)]["exp_avg"][~mask].any()


def test_a_checkpoint_of_other_masks_is_whole_whichever_part_is_loaded_first() -> None:
    """Its weights are not masked by the sparser masks of now."""
    net, optimizer, attached = pruned()
    steps(net, optimizer, 1)
    saved: Any = copy.deepcopy((net.state_dict(), optimizer.state_dict(), attached.state_dict()))
    found = []
    for first in ("module", "attached"):
        attached.next_round()
        steps(net, optimizer, 2)
        parts: dict[str, Callable[[], Any]] = {
            "module": lambda: (net.load_state_dict(saved[0]), optimizer.load_state_dict(copy.deepcopy(saved[1]))),
            "attached": lambda: attached.load_state_dict(saved[2]),
        }
        for name in sorted(parts, key=lambda each: each != first):
            parts[name]()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            steps(net, optimizer, 2)
        found.append([leaf.detach().clone() for leaf in net.parameters()])
    assert all(map(torch.equal, *found))


def attaches(**changed: Any) -> Any:
    net = nn.Linear(4, 2)
    given = {"plan": lf.prune(fraction=0.5), **changed}
    return lf.attach(net, torch.optim.SGD(net.parameters(), 0.1), given.pop("plan"), **given)


def replaced() -> None:
    net, _, attached = pruned()
    net.add_module("0", nn.Linear(6, 8))
    attached.next_round()


def one(state: Any) -> Any:
    return state


START = lf.init(lf.from_module(nn.Linear(4, 2)))
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "prune": (lambda: attaches(plan=lf.prune), "not the function prune; call it: lf.prune(…)"),
    "prune in a list": (lambda: attaches(plan=[(3, lf.prune)]), "not the function prune; call it: lf.prune(…)"),
    "a transformation": (
        lambda: attaches(rewind=lf.rewind(to=START)),
        "attach: rewind must be a function (state, ancho",
    ),
    "a state": (
        lambda: attaches(rewind=START),
        "rewind must be a function (state, anchor), such as lf.rewound, not a T",
    ),
    "one argument": (lambda: attaches(rewind=one), "such as lf.rewound, not the function one"),
    "a switch": (lambda: attaches(rewind=True), "such as lf.rewound, not True"),
    "before the start": (lambda: attaches(anchor_step=-1), "attach: anchor_step: invalid value -1 (expected a whole n"),
    "another layer": (replaced, "attached: 0.weight is another parameter than when it was attached; attach it again"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str) -> None:
    call, words = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whatever_takes_a_state_and_an_anchor_rewinds() -> None:
    def mine(network: Any, at: Any, scale: float = 1.0) -> Any:
        return lf.rewound(network, at)

    for rewind in (mine, lf.rewound, lambda state, anchor: lf.learning_rate_rewound(state, int(anchor.step))):
        attached = attaches(rewind=rewind)
        assert attached.next_round().kept == 4
        weight: Tensor = attached.state.params["weight"]
        assert int(weight.count_nonzero()) == 4
