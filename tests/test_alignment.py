"""Units of two networks in one order: known permutations, and all permutations of a small layer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from method_plans import plan_for
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.types import Params


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3, bias=False)
        self.three, self.four = nn.Linear(5 * 4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.two(self.one(x).relu()).relu(), 2)
        out: Tensor = self.four(self.three(x.flatten(1)).tanh())
        return out


@pytest.fixture(scope="module", name="chained")
def a_chain() -> tuple[lf.Model, Params, lf.Dependencies]:
    model = lf.from_module(Convolutions())
    random = torch.Generator().manual_seed(1)
    params = {name: torch.randn(leaf.shape, generator=random) for name, leaf in lf.init(model).params.items()}
    return model, params, lf.dependencies(model, (2, 6, 6))


def shuffled(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    sizes = {"one.weight": 6, "two.weight": 5, "three.weight": 7}
    return {name: torch.randperm(size, generator=random) for name, size in sizes.items()}


def test_a_network_with_moved_units_computes_the_same(chained: tuple[lf.Model, Params, lf.Dependencies]) -> None:
    model, params, found = chained
    moved = lf.permute_units(params, shuffled(2), found)
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(apply_evaluating(model, moved, {}, x), apply_evaluating(model, params, {}, x))
    assert all(not torch.equal(moved[name], params[name]) for name in params if name != "four.bias")
    by_hand = params["two.weight"][shuffled(2)["two.weight"]][:, shuffled(2)["one.weight"]]
    assert torch.equal(moved["two.weight"], by_hand)
    one = lf.permute_units(params, {"one.weight": shuffled(2)["one.weight"]}, found)
    assert torch.equal(one["three.weight"], params["three.weight"])
    second = lf.permute_units(params, {"two.weight": shuffled(2)["two.weight"]}, found)
    assert torch.equal(second["two.weight"], params["two.weight"][shuffled(2)["two.weight"]])
    assert torch.equal(second["one.weight"], params["one.weight"])


@pytest.mark.parametrize("seed", [2, 3])
def test_known_permutations_are_found(chained: tuple[lf.Model, Params, lf.Dependencies], seed: int) -> None:
    _, params, found = chained
    other = lf.permute_units(params, shuffled(seed), found)
    noise = torch.Generator().manual_seed(seed)
    other = {name: leaf + 0.01 * torch.randn(leaf.shape, generator=noise) for name, leaf in other.items()}
    order = lf.align_units(params, other, found)
    for name, places in shuffled(seed).items():
        assert torch.equal(order[name], places)


@pytest.mark.parametrize(
    ("first", "places", "kind"),
    [(nn.Linear(3, 5), 1, torch.float32), (nn.Linear(3, 5), 1, torch.bfloat16), (nn.Conv2d(2, 5, 1), 4, torch.float32)],
)
def test_of_all_orders_of_one_layer_the_closest_is_found(first: nn.Module, places: int, kind: torch.dtype) -> None:
    """places: in which the second layer reads each unit."""
    model = lf.from_module(nn.Sequential(first, nn.Flatten(), nn.Linear(5 * places, 2)).to(kind))
    found = lf.dependencies(model, (3,) if places == 1 else (2, 2, 2))
    ours, theirs = lf.init(model, 1).params, lf.init(model, 2).params
    for params, other in ((ours, theirs), (theirs, ours)):

        def distance(order: tuple[int, ...], params: Params = params, other: Params = other) -> float:
            at = list(order)
            ours, theirs = (tree["2.weight"].view(2, 5, places) for tree in (params, other))
            pairs = ((params["0.weight"][at], other["0.weight"]), (ours[:, at], theirs),
                     (params["0.bias"][at], other["0.bias"]))  # fmt: skip
            return sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)

        assert lf.align_units(params, other, found)["0.weight"].tolist() == [*min(permutations(range(5)), key=distance)]


def test_a_layer_of_one_unit_stays_as_it_is_beside_others_that_move() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 2)))
    found, params, places = lf.dependencies(model, (3,)), lf.init(model).params, torch.tensor([3, 0, 2, 1])
    other = lf.permute_units(params, {"0.weight": places}, found)
    params = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    assert lf.same_bits(lf.align_units(params, other, found), {"0.weight": places, "1.weight": torch.tensor([0])})


def test_the_search_ends_with_the_first_round_that_changes_nothing(
    chained: tuple[lf.Model, Params, lf.Dependencies], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers that are in order are looked at once each; of one that is not, a second round finds no change."""
    model = lf.from_module(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    own, params = lf.dependencies(model, (3,)), lf.init(model).params
    other, calls = lf.permute_units(params, {"0.weight": torch.tensor([1, 0, 4, 2, 3])}, own), list[int]()

    def assigned(costs: Any, **how: Any) -> Any:
        calls.append(len(costs))
        return linear_sum_assignment(costs, **how)

    monkeypatch.setattr("scipy.optimize.linear_sum_assignment", assigned)
    lf.align_units(chained[1], chained[1], chained[2])
    assert sorted(calls) == [5, 6, 7]
    calls.clear()
    lf.align_units(params, other, own)
    assert calls == [5, 5]


def test_units_that_differ_in_their_biases_alone_are_told_apart() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    found, places = lf.dependencies(model, (3,)), torch.tensor([3, 1, 4, 0, 2])
    params = {
        **lf.tree_map(torch.ones_like, lf.init(model).params),
        "0.bias": torch.tensor([0.1, -0.4, 0.3, 0.7, -0.2]),
    }
    other = lf.permute_units(params, {"0.weight": places}, found)
    assert torch.equal(lf.align_units(params, other, found)["0.weight"], places)


class Wired(nn.Module):
    """Linear layers of some sizes, put together by a function of the module and its inputs."""

    def __init__(self, give: Callable[[Any, Tensor], Tensor], **sizes: tuple[int, int]) -> None:
        super().__init__()
        self.give = give
        for name, size in sizes.items():
            self.add_module(name, nn.Linear(*size))

    def forward(self, x: Tensor) -> Tensor:
        return self.give(self, x)


ALONE, MIXED = "one.weight is not read by one other layer alone", "two.weight reads mixtures of the units of one.weight"
SIZES = {"one": (3, 4), "two": (4, 4), "three": (4, 2)}


@pytest.mark.parametrize(
    ("net", "words", "layer"),
    [
        (Wired(lambda net, x: net.three((h := net.one(x)) + net.two(h)), **SIZES), ALONE, 2),
        (Wired(lambda net, x: net.three(net.one(x) + net.two(x)), **{**SIZES, "two": (3, 4)}), ALONE, 1),
        (Wired(lambda net, x: (h := net.one(x)) + net.two(h), one=(3, 2), two=(2, 2)), ALONE, 2),  # h is an output
        (Wired(lambda net, x: net.one(x)[:, :2], one=(3, 4)), ALONE, 3),
        (Wired(lambda net, x: net.two(net.one(x).view(-1, 2, 2).sum(1)), one=(3, 4), two=(2, 2)), MIXED, 2),
        (Wired(lambda net, x: net.two(net.one(x)[:, [0, 0, 0, 1]]), one=(3, 2), two=(4, 2)), MIXED, 2),
    ],
)
def test_networks_whose_units_cannot_be_moved_are_refused(
    few_digits: lf.Dataset, net: nn.Module, words: str, layer: int
) -> None:
    """layer: the first whose units cannot, where the network comes behind a layer of its own."""
    model = lf.from_module(net)
    params, found = lf.init(model).params, lf.dependencies(model, (3,))
    with pytest.raises(UserError, match=f"^align_units: {words}"):
        lf.align_units(params, params, found)
    whole = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 3), net, nn.Linear(2, 10)))
    with pytest.raises(UserError, match=rf"^--method: rebasin cannot permute this network \({layer}\."):
        plan_for("rebasin", whole, few_digits, steps=9, eval_every=3, batch_size=40)


def test_layers_may_be_declared_in_any_order() -> None:
    model = lf.from_module(Wired(lambda net, x: net.one(net.two(x).relu()), one=(4, 2), two=(3, 4)))
    found, params, places = lf.dependencies(model, (3,)), lf.init(model).params, torch.tensor([3, 0, 2, 1])
    other = lf.permute_units(params, {"two.weight": places}, found)
    assert lf.same_bits(lf.align_units(params, other, found), {"two.weight": places})


@pytest.mark.parametrize("groups", [(1, 2), (2, 1)])
def test_grouped_convolutions_are_refused(groups: tuple[int, int]) -> None:
    """Units of two groups read different inputs: in each other's place they would compute something else."""
    one, two = nn.Conv2d(2, 4, 3, groups=groups[0]), nn.Conv2d(4, 4, 1, groups=groups[1])
    model = lf.from_module(nn.Sequential(one, two, nn.Flatten(), nn.Linear(16, 3)))
    params, found = lf.init(model).params, lf.dependencies(model, (2, 4, 4))
    with pytest.raises(UserError, match=r"^align_units: 0.weight is not .* must follow one another, without .* groups"):
        lf.permute_units(params, {"0.weight": torch.tensor([2, 1, 0, 3])}, found)


def normalised(affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6, affine=affine), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5),
        nn.BatchNorm1d(5, affine=affine), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


@pytest.mark.parametrize("affine", [True, False])
def test_normalisations_move_with_their_units(affine: bool) -> None:
    model, random = lf.from_module(normalised(affine)), torch.Generator().manual_seed(4)
    state = lf.init(model)
    params = {name: torch.rand(leaf.shape, generator=random) + 0.5 for name, leaf in state.params.items()}
    floats = {name: leaf for name, leaf in state.buffers.items() if leaf.ndim}
    buffers = {**state.buffers, **{name: torch.rand(leaf.shape, generator=random) for name, leaf in floats.items()}}
    found = lf.dependencies(model, (2, 4, 4))
    order = {"0.weight": torch.randperm(6, generator=random), "4.weight": torch.tensor([2, 4, 0, 1, 3])}
    x = torch.randn(3, 2, 4, 4, generator=random)
    moved, means = (lf.permute_units(tree, order, found) for tree in (params, buffers))
    torch.testing.assert_close(apply_evaluating(model, moved, means, x), apply_evaluating(model, params, buffers, x))
    assert torch.equal(means["5.running_mean"], buffers["5.running_mean"][order["4.weight"]])


def test_all_places_of_a_channel_move_in_a_normalisation_behind_flattening() -> None:
    model = lf.from_module(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)))
    random = torch.Generator().manual_seed(5)
    state = lf.init(model)
    params = {name: torch.rand(leaf.shape, generator=random) + 0.5 for name, leaf in state.params.items()}
    buffers = {name: torch.rand(leaf.shape, generator=random) for name, leaf in state.buffers.items()}
    found, order = lf.dependencies(model, (2, 4, 4)), {"0.weight": torch.tensor([2, 0, 1])}
    x = torch.randn(3, 2, 4, 4, generator=random)
    moved, means = (lf.permute_units(tree, order, found) for tree in (params, buffers))
    torch.testing.assert_close(apply_evaluating(model, moved, means, x), apply_evaluating(model, params, buffers, x))


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"three": torch.arange(7)}, "permute_units: order: invalid value 'three' .*a hidden layer: one.weight"),
        ({"four.weight": torch.arange(3)}, "permute_units: order: invalid value 'four.weight'"),
        ({"three.weight": torch.arange(6)}, r"permute_units: order\['three.weight'\]: .*each of 0 to 6 once"),
        ({"two.weight": torch.tensor([0, 1, 2, 3, 3])}, r"permute_units: order\['two.weight'\]: .*each of 0 to 4 once"),
    ],
)
def test_an_order_is_one_of_a_hidden_layers_units(
    chained: tuple[lf.Model, Params, lf.Dependencies], order: dict[str, Tensor], words: str
) -> None:
    _, params, found = chained
    with pytest.raises(UserError, match=f"^{words}"):
        lf.permute_units(params, order, found)


@pytest.mark.parametrize("units", [2, 4])
def test_parameters_that_may_belong_to_units_are_refused(units: int) -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(3, units), nn.PReLU(units), nn.Linear(units, 2)))
    params, found = lf.init(model).params, lf.dependencies(model, (3,))
    assert torch.equal(lf.align_units(params, params, found)["0.weight"], torch.arange(units))
    with pytest.raises(UserError, match=r"^permute_units: 1.weight is no weight, bias or batch normalisation's"):
        lf.permute_units(params, {"0.weight": torch.arange(units).flip(0)}, found)


def test_transposed_convolutions_are_refused() -> None:
    model = lf.from_module(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 2)))
    with pytest.raises(UserError, match=r"^structure: units takes no transposed convolutions, such as .* 1.weight"):
        lf.dependencies(model, (2, 5, 5))
