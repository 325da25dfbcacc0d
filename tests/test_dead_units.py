"""Networks without dead units, against a list of weights that shrinks while some read or feed nothing.

And what may depend on what: tokens, half precision, layers that are no layers of units.
"""

from __future__ import annotations

import functools
from collections import OrderedDict

import pytest
import torch
from test_structures import Residual
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.dependencies import INPUT
from lthfunc.trees.types import Masks

#: (layer, output, input within the weight, place in the kernel)
Weight = tuple[str, int, int, int]
PLACES = {"first": 9, "branch": 9, "fc": 1}


def listed(masks: Masks) -> set[Weight]:
    flat = {layer: masks[f"{layer}.weight"].flatten(2) if masks[f"{layer}.weight"].ndim > 2
            else masks[f"{layer}.weight"][:, :, None] for layer in PLACES}  # fmt: skip
    return {(layer, *place) for layer, mask in flat.items() for place in mask.nonzero().tolist()}


def sources(layer: str, output: int, column: int) -> set[tuple[str, int]]:
    """The units that a weight of `Residual` reads, by its definition."""
    if layer == "first":
        return {("input", column)}
    if layer == "branch":  # of two groups of four
        return {("first", 4 * (output // 4) + column)}
    return {("first", column % 8), *({("branch", column)} if column < 8 else set())}


def shrunk(left: set[Weight]) -> set[Weight]:
    while True:
        alive = {("input", channel) for channel in range(3)} | {(layer, output) for layer, output, *_ in left}
        read = set().union(*(sources(*weight[:3]) for weight in left)) | {("fc", output) for output in range(4)}
        rest = {each for each in left if sources(*each[:3]) & alive and each[:2] in read}
        if rest == left:
            return left
        left = rest


@functools.cache
def traced() -> tuple[lf.Model, lf.Dependencies]:
    model = lf.from_module(Residual())
    return model, lf.dependencies(model, (3, 6, 6))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_left_is_what_lives_and_is_read(seed: int) -> None:
    draw, (model, found) = torch.Generator().manual_seed(seed), traced()
    state = lf.init(model, seed)
    masks = {name: torch.rand(mask.shape, generator=draw) < 0.5 for name, mask in state.masks.items()}
    masks["first.weight"][torch.rand(8, generator=draw) < 0.4] = False
    masks["branch.weight"][torch.rand(8, generator=draw) < 0.4] = False
    masks["fc.weight"][:, torch.rand(16, generator=draw) < 0.5] = False
    params = {name: torch.rand(leaf.shape, generator=draw) + 1 for name, leaf in state.params.items()}
    state = state._replace(params=lf.apply_masks(params, masks), masks=masks, opt=("moments",))
    before = lf.tree_map(torch.clone, (state.params, state.masks, found.feeds, found.shown))
    tidy = lf.without_dead_units(state, found)
    assert lf.same_bits((state.params, state.masks, found.feeds, found.shown), before)
    left = shrunk(listed(masks))
    assert left < listed(masks)
    assert listed(tidy.masks) == left
    assert tidy.opt == ()
    alive = {unit[:2] for unit in left}
    kept = {"norm.weight": "first", "norm.bias": "first", "first.bias": "first", "branch.bias": "branch"}
    for name, layer in kept.items():
        wanted = [value if (layer, unit) in alive else 0 for unit, value in enumerate(state.params[name].tolist())]
        assert tidy.params[name].tolist() == wanted, name
    assert torch.equal(tidy.params["fc.bias"], state.params["fc.bias"])  # which is seen, whatever feeds it
    for name, mask in tidy.masks.items():
        assert torch.equal(tidy.params[name], torch.where(mask, state.params[name], 0))
    assert lf.dead_units(tidy.masks) == {
        f"{layer}.weight": len(mask) - len({unit for other, unit in alive if other == layer})
        for layer, mask in zip(PLACES, tidy.masks.values(), strict=True)
    }


class Tokens(nn.Module):
    """An embedding that is not pruned, and two layers that read it at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(self.words(x)).relu())
        return out


def test_units_are_followed_at_each_position_of_tokens() -> None:
    model = lf.with_prunable(lf.from_module(Tokens(), tokens=True), never_prune=["words.*"])
    found = lf.dependencies(model, (6,))
    assert not any(source == INPUT for source, _ in found.feeds)
    assert found.shown.keys() == {"up.weight", "down.weight"}
    assert torch.equal(found.feeds["up.weight", "down.weight"], torch.eye(5, dtype=torch.bool))
    state = lf.init(model)
    masks = {"up.weight": torch.arange(5)[:, None].expand(5, 4) != 2, "down.weight": torch.arange(5).expand(3, 5) != 4}
    tidy = lf.without_dead_units(state._replace(masks=masks), found)
    assert tidy.masks["up.weight"].any(1).tolist() == [True, True, False, True, False]
    assert tidy.masks["down.weight"].any(0).tolist() == [True, True, False, True, False]


def test_half_precision_has_the_dependencies_of_float32() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 3))
    wide, half = (lf.dependencies(lf.from_module(each), (2, 6)) for each in (net, net.bfloat16()))
    assert lf.same_bits((wide.feeds, wide.shown), (half.feeds, half.shown))
    assert (wide.groups, wide.beside) == ({"0.weight": 1}, {"0.weight": "0.bias", "3.weight": "3.bias"})
    assert torch.equal(wide.feeds["0.weight", "3.weight"], torch.eye(4, dtype=torch.bool).repeat_interleave(4, 1))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Bilinear(3, 3, 2), "units prunes linear and convolution layers, but weight belongs to neither"),
        (nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2)), "but 0.weight belongs to neither"),
        (nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3))), "original belongs to neither"),
    ],
)
def test_layers_without_units_are_refused_by_name(net: nn.Module, words: str) -> None:
    model = lf.from_module(net, prunable=[name for name, leaf in net.named_parameters() if leaf.ndim > 1], warn=False)
    with pytest.raises(UserError, match=rf"^structure: .*({words})"):
        lf.dependencies(model, (3,))


def test_dependencies_of_another_network_are_refused() -> None:
    _, found = traced()
    narrower = {"first": nn.Linear(3, 7), "branch": nn.Linear(7, 8), "fc": nn.Linear(8, 4)}
    for net in (nn.Sequential(nn.Linear(3, 4)), nn.Sequential(OrderedDict(narrower))):
        with pytest.raises(
            UserError, match=r"^found: belongs to another network, in which 'first.weight' has 8 units$"
        ):
            lf.without_dead_units(lf.init(lf.from_module(net)), found)


def test_inputs_and_layers_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(UserError, match=r"cannot take inputs of shape \(4, 6, 6\)"):
        lf.dependencies(traced()[0], (4, 6, 6))
    turned = lf.from_module(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 2)))
    with pytest.raises(
        UserError, match=r"^structure: units takes no transposed convolutions, such as that of 1.weight"
    ):
        lf.dependencies(turned, (2, 5, 5))
